"""What a request asks for, whatever the form of its body."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

Labels = Sequence[str] | Mapping[str, Sequence[str]]
"""Class names, or the prompts of each class."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageInput:
    """One image of a request.

    Attributes:
        id: name of the image in results and messages.
        content: bytes of the image file; None for a URL.
        url: the URL; None for bytes.
    """

    id: str
    content: bytes | None
    url: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClassesInput:
    """The classes of a request; every field None for those of the server.

    Attributes:
        labels: class names, or prompts of each class.
        templates: texts with ``{}`` or names of sets; never paths.
        none_label: see ``Model.classifier``.
        background: see ``Model.classifier``.
        reject_below: see ``Model.classifier``.
    """

    labels: Labels | None = None
    templates: Sequence[str] | None = None
    none_label: str | None = None
    background: Sequence[str] | None = None
    reject_below: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyRequest:
    """A request for the classes of images.

    Attributes:
        model: name of the bundle; None for the first.
        images: the images.
        classes: the classes.
        top_k: classes per image; None for the server's default.
    """

    model: str | None
    images: Sequence[ImageInput]
    classes: ClassesInput
    top_k: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbedRequest:
    """A request for embeddings.

    Attributes:
        model: name of the bundle; None for the first.
        images: the images.
        texts: the texts.
    """

    model: str | None
    images: Sequence[ImageInput] = ()
    texts: Sequence[str] = ()
