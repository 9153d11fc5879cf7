"""Predictions as a table, JSON, JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from textwrap import indent
from typing import TYPE_CHECKING

from clipmlu.backends.provenance import provenance_of
from clipmlu.bundle.manifest import emulated_mark
from clipmlu.data.class_names import distinct_names
from clipmlu.files.publish import encode_json
from clipmlu.report.tables import row_lines, terminal_width
from clipmlu.report.wrapping import cells, pad, shown

if TYPE_CHECKING:
    from clipmlu.classify.classifier import ZeroShotClassifier
    from clipmlu.classify.results import Prediction
    from clipmlu.embed.items import RowBatch


_NAME_WIDTH = 28  # longer class names are shown whole, and move the rest of their line
_SOURCE_WIDTH = 60  # likewise for names of images


class PredictionFormat:
    """A format of predictions: ``head``, one ``row`` for each prediction, ``tail``.

    Args:
        classifier: the classifier.
        top_k: classes per image; None for the default of the format.
        to_file: the lines are not for a terminal, so they may have any length.

    Attributes:
        default_top_k: classes per image if not chosen.
    """

    head: str = ""
    tail: str = ""
    default_top_k = 5

    def __init__(self, classifier: ZeroShotClassifier, top_k: int | None, *, to_file: bool = False) -> None:
        self.classifier = classifier
        self.top_k = self.default_top_k if top_k is None else top_k
        self._to_file = to_file
        self._provenance = provenance_of(classifier.encoder.bundle, classifier.encoder.devices)
        self._emulated = self._provenance.emulated
        self._names = distinct_names(classifier.outcomes)

    def ranked(self, prediction: Prediction) -> Iterator[tuple[str, float]]:
        """Yield classes and scores, best first; repeated class names get their position as a suffix."""
        return ((self._names[index], score) for index, score in zip(prediction.indices, prediction.scores, strict=True))

    def rows(self, predictions: Sequence[Prediction]) -> str:
        """Return the lines for some images."""
        return "".join(map(self.row, predictions))

    def row(self, prediction: Prediction) -> str:
        """Return the lines for one image."""
        raise NotImplementedError


class _Table(PredictionFormat):
    """One aligned line per image; on a terminal that is too narrow, the image's name and below it the classes."""

    default_top_k = 1

    def __init__(self, classifier: ZeroShotClassifier, top_k: int | None, *, to_file: bool = False) -> None:
        super().__init__(classifier, top_k, to_file=to_file)
        self._source_width = 0
        mark = emulated_mark(self._emulated).strip()
        self.head = f"{mark}\n" if mark else ""
        self._width = min(_NAME_WIDTH, max(map(cells, self._names)))

    def rows(self, predictions: Sequence[Prediction]) -> str:
        widths = (cells(shown(prediction.source)) for prediction in predictions)
        self._source_width = max(self._source_width, *(width for width in widths if width <= _SOURCE_WIDTH), 0)
        return super().rows(predictions)

    def row(self, prediction: Prediction) -> str:
        columns = [f"{pad(name, self._width)} {score:6.1%}" for name, score in self.ranked(prediction)]
        width = None if self._to_file else terminal_width()
        lines = row_lines(prediction.source, self._source_width, columns, width)
        return "".join(f"{line}\n" for line in lines)


class _Json(PredictionFormat):
    """One JSON object for all images, written incrementally."""

    tail = "\n  ]\n}\n"

    def __init__(self, classifier: ZeroShotClassifier, top_k: int | None, *, to_file: bool = False) -> None:
        super().__init__(classifier, top_k, to_file=to_file)
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

    def __init__(self, classifier: ZeroShotClassifier, top_k: int | None, *, to_file: bool = False) -> None:
        super().__init__(classifier, top_k, to_file=to_file)
        ranks = range(1, classifier.most_ranked(self.top_k) + 1)
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
SUFFIXES = {".txt": "table", ".json": "json", ".jsonl": "jsonl", ".csv": "csv"}
"""Maps the suffix of a file to its format."""


def write_predictions(
    output: PredictionFormat,
    batches: Iterable[RowBatch],
    *,
    write: Callable[[str], object],
    on_note: Callable[[str], object],
) -> tuple[int, int]:
    """Write predictions after each batch.

    If the run ends early, also by Ctrl-C, the written text is a complete document of the finished images.

    Args:
        output: the format.
        batches: rows of the format's classifier.
        write: called with the next part of the document.
        on_note: called with one line for each image that could not be read.

    Returns:
        The numbers of images that were classified, and that could not be read.
    """
    classified = broken = 0
    begun = False
    try:
        for batch in batches:
            sources = [item.id for item in batch.computed()]
            rows = output.classifier.predictions_from_rows(batch.rows, sources, top_k=output.top_k)
            write(("" if begun else output.head) + output.rows(rows))
            begun = True
            classified += len(rows)
            broken += len(batch.errors)
            for error in batch.errors.values():
                on_note(f"skipped: {error}")
    finally:
        if begun:
            write(output.tail)
    return classified, broken
