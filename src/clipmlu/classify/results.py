"""Predictions of a classifier, with forms for terminals, notebooks and programs."""

from __future__ import annotations

import dataclasses
import html
from typing import Any, SupportsIndex, overload

from clipmlu.data.thumbnails import ImageReference
from clipmlu.display import COLUMNS, EMULATED_MARK, LONGEST_NAME, ROWS_SHOWN, Displayed, Summary, shorten
from clipmlu.errors import InputError

_LONGEST_SOURCE = 60


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction(Displayed):
    """The best classes for one image, best first; or why the image could not be read.

    Attributes:
        source: the image's path or name.
        class_names: the classes.
        indices: their positions in the classifier's class names.
        scores: their probabilities, 0..1: softmax over all classes, or the sigmoid of each for a model with a logit
            bias.
        error: why the image could not be read, in one line; it then has no classes. None for an image that was read.
        emulated: the emulated vendor SDK computed it.
        rejected: the image shows none of the classes, according to the rules of an open set; ``class_name`` is then the none
            label, whose index is the number of classes.
        image: where a notebook finds the image for a thumbnail; None if it is not known. It takes no part in comparisons.
    """

    source: str
    class_names: tuple[str, ...]
    indices: tuple[int, ...]
    scores: tuple[float, ...]
    error: str | None = None
    emulated: bool = False
    rejected: bool = False
    image: ImageReference | None = dataclasses.field(default=None, compare=False)

    @classmethod
    def failed(cls, source: str, error: str) -> Prediction:
        """Return the result for an image that could not be read."""
        return cls(source, (), (), (), error)

    @property
    def class_name(self) -> str:
        """The best class.

        Raises:
            InputError: the image could not be read.
        """
        self._require_classes()
        return self.class_names[0]

    @property
    def score(self) -> float:
        """The best class's probability, 0..1.

        Raises:
            InputError: the image could not be read.
        """
        self._require_classes()
        return self.scores[0]

    def _require_classes(self) -> None:
        if self.error is not None:
            raise InputError(self.error)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON: ``source`` and ``predictions``, each with ``class_name``, ``index`` and ``score``.

        An image that could not be read has ``error`` and no predictions; an emulated result has ``emulated``, one that
        shows none of the classes ``rejected``.
        """
        rows = zip(self.class_names, self.indices, self.scores, strict=True)
        return {
            "source": self.source,
            **({} if self.error is None else {"error": self.error}),
            "predictions": [{"class_name": name, "index": index, "score": score} for name, index, score in rows],
            **({"rejected": True} if self.rejected else {}),
            **({"emulated": True} if self.emulated else {}),
        }

    def summary(self) -> Summary:
        """Return the image, and the classes with their probabilities or the error."""
        ranked = zip(self.class_names, self.scores, strict=True)
        classes = ", ".join(f"{name} {score:.1%}" for name, score in ranked)
        return Summary({"image": self.source, "classes": self.error or classes}, self.emulated)

    def records(self) -> list[dict[str, Any]]:
        """Return one row: ``source``, ``error``, and ``class_name_1``, ``score_1``, ``class_name_2`` and so on."""
        return Predictions([self]).records()

    def __repr__(self) -> str:
        return f"Prediction({self._line(COLUMNS - len('Prediction()'))})"

    def _line(self, width: int) -> str:
        """Return the prediction in one line of at most ``width`` characters; the last classes may be missing."""
        line = shorten(self.source, _LONGEST_SOURCE) + (EMULATED_MARK if self.emulated else "") + ": "
        if self.error is not None:
            reason = self.error.partition(f"'{self.source}': ")[2] or self.error
            return line + shorten(f"error: {reason.partition('. ')[0]}", width - len(line))
        ranked = [
            f"'{shorten(name, LONGEST_NAME)}' {score:.3f}"
            for name, score in zip(self.class_names, self.scores, strict=True)
        ]
        shown = len(ranked)
        while len(text := line + ", ".join([*ranked[:shown], *(["..."] if shown < len(ranked) else [])])) > width:
            shown -= 1
        return text

    def _repr_html_(self) -> str:
        return Predictions([self])._repr_html_()


class Predictions(Displayed, list[Prediction]):
    """Predictions of many images, in the order of the images; a list, whose slices are Predictions too."""

    @property
    def errors(self) -> dict[int, str]:
        """Maps the position of each image that could not be read to the reason."""
        return {position: each.error for position, each in enumerate(self) if each.error is not None}

    @overload
    def __getitem__(self, index: SupportsIndex) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> Predictions: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Prediction | Predictions:
        if isinstance(index, slice):
            return Predictions(super().__getitem__(index))
        return super().__getitem__(index)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON: ``results``, a list with the dict of each prediction."""
        return {"results": [prediction.to_dict() for prediction in self]}

    def summary(self) -> Summary:
        """Return the number of images and of errors."""
        errors = {"could not be read": f"{len(self.errors):,}"} if self.errors else {}
        return Summary({"images": f"{len(self):,}", **errors}, any(each.emulated for each in self))

    def columns(self) -> list[str]:
        """Return the columns that every data frame of predictions has."""
        return ["source", "error"]

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each image: ``source``, ``error``, ``class_name_1``, ``score_1``, ``class_name_2`` and so on."""
        ranks = range(max((len(each.class_names) for each in self), default=0))
        return [_record(each, ranks) for each in self]

    def __repr__(self) -> str:
        lines = [f"  Prediction({each._line(COLUMNS - len('  Prediction(),'))})," for each in self[:ROWS_SHOWN]]
        if len(self) > ROWS_SHOWN:
            lines.append(f"  ... {len(self) - ROWS_SHOWN:,} more")
        return "\n".join(["Predictions([", *lines, "])"]) if self else "Predictions([])"

    def _repr_html_(self) -> str:
        """Return a table of the first predictions, with thumbnails of the images that can still be found."""
        count = max((len(each.class_names) for each in self), default=0)
        mark = EMULATED_MARK if self.summary().emulated else ""
        heads = "".join(f"<th>{rank}</th>" for rank in range(1, count + 1))
        rows = "".join(_html_row(each, count) for each in self[:ROWS_SHOWN])
        rest = f"<p>... {len(self) - ROWS_SHOWN:,} more</p>" if len(self) > ROWS_SHOWN else ""
        head = f'<thead><tr><th colspan="2">image{mark}</th>{heads}</tr></thead>'
        return f"<table>{head}<tbody>{rows}</tbody></table>{rest}"


def _record(prediction: Prediction, ranks: range) -> dict[str, Any]:
    record: dict[str, Any] = {"source": prediction.source, "error": prediction.error}
    for rank in ranks:
        given = rank < len(prediction.class_names)
        record[f"class_name_{rank + 1}"] = prediction.class_names[rank] if given else None
        record[f"score_{rank + 1}"] = prediction.scores[rank] if given else None
    return record


def _html_row(prediction: Prediction, count: int) -> str:
    picture = "" if prediction.image is None else prediction.image.html()
    if prediction.error is not None:
        cells = f'<td colspan="{max(1, count)}">{html.escape(prediction.error)}</td>'
    else:
        ranked = zip(prediction.class_names, prediction.scores, strict=True)
        cells = "".join(f"<td>{html.escape(name)} <small>{score:.1%}</small></td>" for name, score in ranked)
    return f"<tr><td>{picture}</td><th>{html.escape(prediction.source)}</th>{cells}</tr>"
