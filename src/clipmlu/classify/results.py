"""Predictions of a classifier, with forms for terminals, notebooks and programs."""

from __future__ import annotations

import dataclasses
import html
from typing import Any


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best classes for one image, best first.

    Attributes:
        source: the image's path or name.
        class_names: the classes.
        indices: their positions in the classifier's class names.
        scores: their probabilities, 0..1: softmax over all classes, or the sigmoid of each for a model with a logit
            bias.
    """

    source: str
    class_names: tuple[str, ...]
    indices: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def class_name(self) -> str:
        """The best class."""
        return self.class_names[0]

    @property
    def score(self) -> float:
        """The best class's probability, 0..1."""
        return self.scores[0]

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON: ``source`` and ``predictions``, each with ``class_name``, ``index`` and ``score``."""
        rows = zip(self.class_names, self.indices, self.scores, strict=True)
        return {
            "source": self.source,
            "predictions": [{"class_name": name, "index": index, "score": score} for name, index, score in rows],
        }

    def __repr__(self) -> str:
        ranked = ", ".join(f"'{name}' {score:.3f}" for name, score in zip(self.class_names, self.scores, strict=True))
        return f"Prediction({self.source}: {ranked})"

    def _repr_html_(self) -> str:
        return _html_table([self])


class Predictions(list[Prediction]):
    """Predictions of many images, in the order of the images."""

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
        rows.append(f"<tr><th>{html.escape(prediction.source)}</th>{cells}</tr>")
    count = max((len(prediction.class_names) for prediction in predictions), default=0)
    heads = "".join(f"<th>{rank}</th>" for rank in range(1, count + 1))
    return f"<table><thead><tr><th>image</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
