"""Predictions of a classifier, with forms for terminals, notebooks and programs."""

from __future__ import annotations

import dataclasses
import html
from typing import Any

from clipmlu.errors import InputError


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best classes for one image, best first; or why the image could not be read.

    Attributes:
        source: the image's path or name.
        class_names: the classes.
        indices: their positions in the classifier's class names.
        scores: their probabilities, 0..1: softmax over all classes, or the sigmoid of each for a model with a logit
            bias.
        error: why the image could not be read, in one line; it then has no classes. None for an image that was read.
    """

    source: str
    class_names: tuple[str, ...]
    indices: tuple[int, ...]
    scores: tuple[float, ...]
    error: str | None = None

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

        An image that could not be read has ``error`` and no predictions.
        """
        rows = zip(self.class_names, self.indices, self.scores, strict=True)
        return {
            "source": self.source,
            **({} if self.error is None else {"error": self.error}),
            "predictions": [{"class_name": name, "index": index, "score": score} for name, index, score in rows],
        }

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Prediction({self.source}: error: {self.error})"
        ranked = ", ".join(f"'{name}' {score:.3f}" for name, score in zip(self.class_names, self.scores, strict=True))
        return f"Prediction({self.source}: {ranked})"

    def _repr_html_(self) -> str:
        return _html_table([self])


class Predictions(list[Prediction]):
    """Predictions of many images, in the order of the images."""

    @property
    def errors(self) -> dict[int, str]:
        """Maps the position of each image that could not be read to the reason."""
        return {position: each.error for position, each in enumerate(self) if each.error is not None}

    def __repr__(self) -> str:
        lines = [f"  {prediction!r}," for prediction in self[:20]]
        if len(self) > 20:
            lines.append(f"  ... {len(self) - 20} more")
        return "\n".join(["Predictions([", *lines, "])"]) if self else "Predictions([])"

    def _repr_html_(self) -> str:
        return _html_table(self)


def _html_table(predictions: list[Prediction]) -> str:
    rows = []
    for prediction in predictions:
        ranked = zip(prediction.class_names, prediction.scores, strict=True)
        cells = "".join(f"<td>{html.escape(name)} <small>{score:.1%}</small></td>" for name, score in ranked)
        if prediction.error is not None:
            cells = f'<td colspan="100">{html.escape(prediction.error)}</td>'
        rows.append(f"<tr><th>{html.escape(prediction.source)}</th>{cells}</tr>")
    count = max((len(prediction.class_names) for prediction in predictions), default=0)
    heads = "".join(f"<th>{rank}</th>" for rank in range(1, count + 1))
    return f"<table><thead><tr><th>image</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
