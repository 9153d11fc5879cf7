"""Options of a job."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipmlu.arguments import check_fields
from clipmlu.classify.classifier import DEFAULT_TOP_K
from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.data.prompts import Templates, without_functions
from clipmlu.data.url.options import UrlOptions
from clipmlu.errors import OptionError
from clipmlu.jobs.error_limit import ErrorLimit, parse_error_limit
from clipmlu.jobs.formats import FormatName
from clipmlu.jobs.rows import EmbeddingDtype
from clipmlu.jobs.work import MachineShare
from clipmlu.specs import NaturalInt, PositiveInt, Probability

DEFAULT_SHARD_SIZE = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationOptions:
    """Options of a job that classifies: classes from names or from a classifier file.

    Attributes:
        class_names: one name per class, or a value of ``--labels``, or a map from each name to its own prompts; None with a
            classifier file.
        templates: as for ``Model.classifier``; not used with a classifier file.
        classifier: a classifier file, or None.
        top_k: classes per image; at most all classes are stored.
        embeddings: also store the embeddings of the images.
        none_label: name of the result for an image of none of the classes; see ``Model.classifier``.
        background: names of background classes; not with a classifier file, which has its own.
        reject_below: smallest probability of a class that is not rejected.

    Raises:
        OptionError: a field has another type or is out of range, not exactly one of names and file is given, or background
            classes are given with a file.
    """

    class_names: str | os.PathLike[str] | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None
    templates: Templates | None = None
    classifier: Path | None = None
    top_k: PositiveInt = DEFAULT_TOP_K
    embeddings: bool = False
    none_label: str | None = None
    background: str | Sequence[str] | None = None
    reject_below: Probability | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        if self.templates is not None:
            object.__setattr__(self, "templates", without_functions(self.templates))
        if self.classifier is not None and self.background is not None:
            raise OptionError("background is for class names; a classifier file has its own")
        if (self.class_names is None) == (self.classifier is None):
            raise OptionError("a job that classifies needs either class names or a classifier file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options of ``run_job``.

    Attributes:
        classification: classify the images with these options; None to embed them.
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
        max_errors: stop when more images cannot be read: a number such as 100, or a percentage of the images so far such as
            ``"1%"``; None never stops. The shards that are finished stay.
        retry_errors: compute the shards that hold images that could not be read again; their other rows stay the same.
        overwrite: replace a job with other inputs or options; one with the same is continued.

    Raises:
        OptionError: a field has another type or is out of range.
    """

    classification: ClassificationOptions | None = None
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
    max_errors: NaturalInt | str | None = None
    retry_errors: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        if self.max_errors is not None:
            parse_error_limit(self.max_errors)

    @property
    def error_limit(self) -> ErrorLimit | None:
        """The parsed ``max_errors``."""
        return None if self.max_errors is None else parse_error_limit(self.max_errors)

    def on(self, share: MachineShare) -> JobOptions:
        """Return the options of one of several workers on a machine."""
        return dataclasses.replace(
            self,
            threads=self.threads or share.cpus or 0,
            workers=self.workers or share.cpus,
            devices=self.devices if share.devices is None else share.devices,
        )
