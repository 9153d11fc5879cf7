"""Predictions as a table, JSON, JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from textwrap import indent
from typing import TYPE_CHECKING

import click

from clipmlu.backends.provenance import provenance_of
from clipmlu.bundle.manifest import emulated_mark
from clipmlu.data.class_names import distinct_names
from clipmlu.files.publish import encode_json
from clipmlu.report.tables import row_lines
from clipmlu.report.wrapping import cells, pad

if TYPE_CHECKING:
    from clipmlu.classify.classifier import ZeroShotClassifier
    from clipmlu.classify.results import Prediction
    from clipmlu.embed.items import RowBatch


_NAME_WIDTH = 28  # longer class names are shown whole, and move the rest of their line


class PredictionFormat:
    """A format of predictions: ``head``, one ``row`` for each prediction, ``tail``."""

    head: str = ""
    tail: str = ""

    def __init__(self, classifier: ZeroShotClassifier, top_k: int) -> None:
        self.classifier = classifier
        self.top_k = top_k
        self._provenance = provenance_of(classifier.encoder.bundle, classifier.encoder.devices)
        self._emulated = self._provenance.emulated
        self._names = distinct_names(classifier.outcomes)

    def ranked(self, prediction: Prediction) -> Iterator[tuple[str, float]]:
        """Yield classes and scores, best first; repeated class names get their position as a suffix."""
        return ((self._names[index], score) for index, score in zip(prediction.indices, prediction.scores, strict=True))

    def row(self, prediction: Prediction) -> str:
        """Return the lines for one image."""
        raise NotImplementedError


class _Table(PredictionFormat):
    """One aligned line per image; on a terminal that is too narrow, the image's name and below it the classes."""

    def __init__(self, classifier: ZeroShotClassifier, top_k: int) -> None:
        super().__init__(classifier, top_k)
        mark = emulated_mark(self._emulated).strip()
        self.head = f"{mark}\n" if mark else ""
        self._width = min(_NAME_WIDTH, max(map(cells, self._names)))

    def row(self, prediction: Prediction) -> str:
        columns = [f"{pad(name, self._width)} {score:6.1%}" for name, score in self.ranked(prediction)]
        return "".join(f"{line}\n" for line in row_lines(columns, prediction.source))


class _Json(PredictionFormat):
    """One JSON object for all images, written incrementally."""

    tail = "\n  ]\n}\n"

    def __init__(self, classifier: ZeroShotClassifier, top_k: int) -> None:
        super().__init__(classifier, top_k)
        provenance = indent(encode_json(self._provenance).decode().strip(), "  ").lstrip()
        self.head = f'{{\n  "provenance": {provenance},\n  "results": ['
        self._separator = "\n"

    def row(self, prediction: Prediction) -> str:
        text = self._separator + indent(json.dumps(prediction.to_dict(), indent=2, ensure_ascii=False), "    ")
        self._separator = ",\n"
        return text


class _JsonLines(PredictionFormat):
    """One JSON object per line."""

    def row(self, prediction: Prediction) -> str:
        mark = {"emulated": True} if self._emulated else {}
        return json.dumps({**prediction.to_dict(), **mark}, ensure_ascii=False) + "\n"


class _Csv(PredictionFormat):
    """One line per image, below a header."""

    def __init__(self, classifier: ZeroShotClassifier, top_k: int) -> None:
        super().__init__(classifier, top_k)
        ranks = range(1, classifier.most_ranked(top_k) + 1)
        columns = [f"{column}_{rank}" for rank in ranks for column in ("class_name", "score")]
        self.head = _csv_line(["source", *columns, *(["emulated"] if self._emulated else [])])

    def row(self, prediction: Prediction) -> str:
        cells = [cell for name, score in self.ranked(prediction) for cell in (name, f"{score:.6f}")]
        return _csv_line([prediction.source, *cells, *(["true"] if self._emulated else [])])


def _csv_line(cells: Iterable[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


FORMATS: dict[str, type[PredictionFormat]] = {"table": _Table, "json": _Json, "jsonl": _JsonLines, "csv": _Csv}


def write_predictions(
    output: PredictionFormat, batches: Iterable[RowBatch], *, on_note: Callable[[str], object]
) -> int:
    """Print predictions on stdout after each batch.

    If the run ends early, also by Ctrl-C, the printed output is a complete document of the finished images.

    Args:
        output: the format.
        batches: rows of the format's classifier.
        on_note: called with one line for each image that could not be read.

    Returns:
        The number of images that could not be read.
    """
    broken = 0
    begun = False
    try:
        for batch in batches:
            sources = [item.id for item in batch.computed()]
            rows = output.classifier.predictions_from_rows(batch.rows, sources, top_k=output.top_k)
            click.echo(("" if begun else output.head) + "".join(map(output.row, rows)), nl=False)
            begun = True
            broken += len(batch.errors)
            for error in batch.errors.values():
                on_note(f"skipped: {error}")
    finally:
        if begun:
            click.echo(output.tail, nl=False)
    return broken
