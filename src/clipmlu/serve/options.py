"""Options of the server."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Annotated

import msgspec

from clipmlu.arguments import check_fields
from clipmlu.classify.classifier import DEFAULT_TOP_K
from clipmlu.data.class_prompts import ClassLabels
from clipmlu.data.prompts import Templates
from clipmlu.data.url.options import UrlOptions
from clipmlu.errors import OptionError
from clipmlu.specs import NaturalInt, PositiveInt, Probability

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of the server.

    Attributes:
        labels: classes of requests that give none; None for no such classes.
        classifier: a classifier file instead of ``labels``.
        templates: templates of requests that give none.
        top_k: classes per image of requests that do not say.
        none_label: see ``Model.classifier``; for ``labels`` and ``classifier``.
        background: see ``Model.classifier``.
        reject_below: see ``Model.classifier``.
        index: folder of the index of ``/v1/search``; None for none.
        batch_size: largest number of images per batch; None for the bundle's own.
        threads: CPU threads per batch; 0 lets the runtime choose.
        workers: threads that decode and prepare images; None for one per CPU.
        device: index of the card; None for the first one.
        devices: several cards; see ``clipmlu.load``.
        fast_preprocess: decode large JPEGs at a reduced scale.
        max_pixels: largest width x height of an image; None for 178,956,970.
        urls: limits for fetching images by URL; None refuses URLs.
        max_queue: images and texts that may wait or be computed at a time, for each bundle.
        max_images: images of one request.
        max_texts: texts of one request; for ``/v1/classify`` prompts, which are classes times templates.
        max_body: bytes of the body of one request.
        timeout_s: seconds from the arrival of a request to its answer.
        stop_timeout_s: seconds to finish the requests in progress when the server is stopped.
    """

    labels: ClassLabels | None = None
    classifier: str | os.PathLike[str] | None = None
    templates: Templates | None = None
    top_k: PositiveInt = DEFAULT_TOP_K
    none_label: str | None = None
    background: str | Sequence[str] | None = None
    reject_below: Probability | None = None
    index: str | os.PathLike[str] | None = None
    batch_size: PositiveInt | None = None
    threads: NaturalInt = 0
    workers: PositiveInt | None = None
    device: NaturalInt | None = None
    devices: Sequence[int] | str | None = None
    fast_preprocess: bool = False
    max_pixels: PositiveInt | None = None
    urls: UrlOptions | None = None
    max_queue: PositiveInt = 256
    max_images: PositiveInt = 64
    max_texts: PositiveInt = 1024
    max_body: PositiveInt = 64 << 20
    timeout_s: Seconds = 30.0
    stop_timeout_s: Seconds = 30.0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            OptionError: a field is wrong, or two exclude each other.
        """
        check_fields(self)
        if self.labels is not None and self.classifier is not None:
            raise OptionError("labels and classifier exclude each other; give one of them")
