"""Options of a job."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from clipmlu.arguments import check_fields
from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.data.url.options import UrlOptions
from clipmlu.jobs.formats import FormatName
from clipmlu.jobs.rows import EmbeddingDtype
from clipmlu.jobs.work import MachineShare
from clipmlu.model import Model, load
from clipmlu.specs import NaturalInt, PositiveInt

DEFAULT_SHARD_SIZE = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options of ``run_job``.

    Attributes:
        shard_size: images per shard.
        shard_format: format of the shard files.
        dtype: dtype of the stored embeddings.
        batch_size: images per batch; None for the bundle's own. A batch never holds images of two shards.
        threads: CPU threads per batch; 0 lets the runtime choose.
        workers: threads that read and prepare images; None for all CPUs.
        fast_preprocess: decode large JPEGs at a reduced scale.
        max_pixels: largest width x height of an image.
        device: index of the MLU card; None for the first one.
        devices: several cards, as ``load`` takes them; None for one card.
        urls: limits for fetching images by URL; None if that is not allowed.
        overwrite: replace a job with other inputs or options; one with the same is continued.

    Raises:
        OptionError: a field has another type or is out of range.
    """

    shard_size: PositiveInt = DEFAULT_SHARD_SIZE
    shard_format: FormatName = "parquet"
    dtype: EmbeddingDtype = "float32"
    batch_size: PositiveInt | None = None
    threads: NaturalInt = 0
    workers: PositiveInt | None = None
    fast_preprocess: bool = False
    max_pixels: PositiveInt = DEFAULT_MAX_PIXELS
    device: NaturalInt | None = None
    devices: Sequence[int] | str | None = None
    urls: UrlOptions | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def on(self, share: MachineShare) -> JobOptions:
        """Return the options of one of several workers on a machine."""
        return dataclasses.replace(
            self,
            threads=self.threads or share.cpus or 0,
            workers=self.workers or share.cpus,
            devices=self.devices if share.devices is None else share.devices,
        )

    def load(self, bundle: Path) -> Model:
        """Load the image tower of a compiled bundle; its threads wait passively, because images are prepared on the same CPUs."""
        return load(
            bundle,
            threads=self.threads,
            device=self.device,
            devices=self.devices,
            image_only=True,
            fast_preprocess=self.fast_preprocess,
            max_pixels=self.max_pixels,
            busy_wait=False,
        )
