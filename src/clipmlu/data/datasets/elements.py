"""Elements and slices of a dataset: ``dataset[5]``, ``dataset[:100]``, ``for element in dataset``."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex, overload

from PIL import Image

from clipmlu.data.images import ImageSource
from clipmlu.data.thumbnails import ImageReference
from clipmlu.display import Displayed, Summary, html_table

_THUMBNAILS = 8


@dataclasses.dataclass(frozen=True, repr=False)
class LabelledImage(Displayed):
    """One element of a dataset; it unpacks as ``image, label``.

    Attributes:
        image: the decoded image.
        label: its class, a position in the dataset's class names; None in a dataset without classes.
        class_name: name of the class, or None.
        key: the image's identifier in the dataset.
    """

    image: Image.Image
    label: int | None
    class_name: str | None
    key: str

    def __iter__(self) -> Iterator[Any]:
        yield self.image
        yield self.label

    def summary(self) -> Summary:
        """Return the facts that people see."""
        named = {} if self.class_name is None else {"label": f"{self.label} ({self.class_name})"}
        return Summary({"key": self.key, **named, "image": f"{self.image.width}x{self.image.height} {self.image.mode}"})

    def to_dict(self) -> dict[str, Any]:
        """Return ``key``, ``label``, ``class_name``, and the image's ``width`` and ``height`` as a dict for JSON."""
        size = {"width": self.image.width, "height": self.image.height}
        return {"key": self.key, "label": self.label, "class_name": self.class_name, **size}

    def records(self) -> list[dict[str, Any]]:
        """Return one row, ``to_dict()``."""
        return [self.to_dict()]

    def _repr_html_(self) -> str:
        return ImageReference(self.image).html() + super()._repr_html_()


class DatasetBase(Displayed):
    """Base class of datasets: elements by index, slices, and their display; see ``Dataset``."""

    name: str
    split: str
    class_names: tuple[str, ...]
    original_names: tuple[str, ...]
    max_pixels: int

    def __len__(self) -> int:
        raise NotImplementedError

    def label(self, index: int) -> int:
        """Return the class of an image."""
        raise NotImplementedError

    def image(self, index: int) -> Image.Image:
        """Return the decoded image."""
        raise NotImplementedError

    def source(self, index: int) -> ImageSource:
        """Return the image's file, or the image itself if it has no file of its own."""
        raise NotImplementedError

    def key(self, index: int) -> str:
        """Return a stable identifier of the image."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: SupportsIndex) -> LabelledImage: ...

    @overload
    def __getitem__(self, index: slice) -> DatasetSlice: ...

    def __getitem__(self, index: SupportsIndex | slice) -> LabelledImage | DatasetSlice:
        if isinstance(index, slice):
            return DatasetSlice(self, range(len(self))[index])
        try:
            place = range(len(self))[operator.index(index)]
        except IndexError:
            raise IndexError(
                f"Dataset '{self.name}' has no image {operator.index(index)}; it has {len(self):,}, from 0 on."
            ) from None
        label = self.label(place) if self.class_names else None
        name = None if label is None else self.class_names[label]
        return LabelledImage(self.image(place), label, name, self.key(place))

    def __iter__(self) -> Iterator[LabelledImage]:
        return (self[index] for index in range(len(self)))

    def summary(self) -> Summary:
        """Return the facts that people see."""
        classes = ", ".join(self.class_names[:4]) + (", ..." if len(self.class_names) > 4 else "")
        named = {"classes": f"{len(self.class_names):,} ({classes})"} if self.class_names else {}
        return Summary({"name": self.name, "split": self.split, "images": f"{len(self):,}", **named})

    def to_dict(self) -> dict[str, Any]:
        """Return ``name``, ``split``, ``images`` (their number) and ``class_names`` as a dict for JSON."""
        facts = {"name": self.name, "split": self.split, "images": len(self)}
        return {**facts, "class_names": list(self.class_names)}

    def columns(self) -> list[str]:
        """Return the columns of a data frame of a dataset."""
        return ["key", "label", "class_name"]

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each image: ``key``, ``label`` and ``class_name``; nothing is decoded."""
        return [self._record(index) for index in range(len(self))]

    def _record(self, index: int) -> dict[str, Any]:
        label = self.label(index) if self.class_names else None
        return {
            "key": self.key(index),
            "label": label,
            "class_name": None if label is None else self.class_names[label],
        }

    def _repr_html_(self) -> str:
        rows = [
            {"image": ImageReference.drawn(functools.partial(self.source, index)), **self._record(index)}
            for index in range(min(_THUMBNAILS, len(self)))
        ]
        return super()._repr_html_() + html_table(rows, more=len(self) - len(rows))


class DatasetSlice(DatasetBase):
    """Some images of a dataset; itself a dataset, so that it can be evaluated. Made by ``dataset[start:stop:step]``.

    Its split is called after the slice, such as ``test[0:100]``, so that no result of it looks like one of the whole split.
    """

    def __init__(self, whole: DatasetBase, places: Sequence[int]) -> None:
        self._whole = whole
        self._places = places
        self.name = whole.name
        self.split = f"{whole.split}{_bounds(places)}"
        self.class_names = whole.class_names
        self.original_names = whole.original_names
        self.max_pixels = whole.max_pixels

    def __len__(self) -> int:
        return len(self._places)

    def label(self, index: int) -> int:
        """Return the class of an image."""
        return self._whole.label(self._places[index])

    def image(self, index: int) -> Image.Image:
        """Return the decoded image."""
        return self._whole.image(self._places[index])

    def source(self, index: int) -> ImageSource:
        """Return the image's file, or the image itself."""
        return self._whole.source(self._places[index])

    def key(self, index: int) -> str:
        """Return the image's identifier in the whole dataset."""
        return self._whole.key(self._places[index])


def _bounds(places: Sequence[int]) -> str:
    if not isinstance(places, range) or not places:
        return "[]"
    step = "" if places.step == 1 else f":{places.step}"
    return f"[{places.start}:{places.stop}{step}]"
