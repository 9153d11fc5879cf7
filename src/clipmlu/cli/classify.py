"""``clipmlu classify``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._shared import (
    PATH,
    batch_size_option,
    bundle_argument,
    device_option,
    note,
    templates_option,
    threads_option,
)
from clipmlu.errors import OptionError

if TYPE_CHECKING:
    from clipmlu.classify.classifier import ZeroShotClassifier
    from clipmlu.classify.encoder import Encoder
    from clipmlu.classify.results import Prediction


@click.command("classify")
@bundle_argument
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option(
    "--labels", metavar="FILE|LIST", help="Class names: a file with one per line, or a list such as 'cat,dog'."
)
@click.option("--classifier", "classifier_file", type=PATH, help="A classifier file instead of --labels.")
@click.option("--save-classifier", type=PATH, help="Write a classifier file, for use without the text tower.")
@templates_option
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes per image.")
@click.option(
    "--format", "format_name", type=click.Choice(["table", "json", "jsonl", "csv"]), default="table", show_default=True
)
@batch_size_option
@threads_option
@device_option
def classify_command(
    bundle: Path,
    inputs: tuple[str, ...],
    labels: str | None,
    classifier_file: Path | None,
    save_classifier: Path | None,
    templates: str,
    top_k: int,
    format_name: str,
    batch_size: int | None,
    threads: int,
    device: int,
) -> int:
    """Classify images with a compiled BUNDLE.

    INPUT is a file, a folder (searched recursively), a glob pattern, or - for a list of paths on stdin, one per line.
    An image that cannot be read is reported and skipped; the exit code is then 1.
    """
    from clipmlu.classify.bulk import embed_items
    from clipmlu.classify.encoder import load
    from clipmlu.cli._inputs import image_items

    if (labels is None) == (classifier_file is None):
        raise OptionError("Give either --labels or --classifier.")
    if not inputs and save_classifier is None:
        raise OptionError("Give at least one INPUT: a file, a folder, a glob pattern, or - for a list on stdin.")
    broken = 0
    with load(bundle, threads=threads, device=device, image_only=classifier_file is not None) as encoder:
        classifier = _classifier(encoder, labels, classifier_file, templates)
        if save_classifier is not None:
            classifier.save(save_classifier)
            note(f"Wrote classifier file {save_classifier}")

        def predictions() -> Iterator[Prediction]:
            nonlocal broken
            for outcome in embed_items(encoder, image_items(inputs), batch_size=batch_size):
                if outcome.embedding is None:
                    broken += 1
                    note(f"skipped: {outcome.error}")
                else:
                    yield classifier.prediction_from_embedding(outcome.embedding, outcome.item.id, top_k=top_k)

        if inputs:
            for line in _FORMATS[format_name](predictions(), classifier, top_k):
                click.echo(line)
    if broken:
        note(f"{broken} image(s) could not be read.")
    return 1 if broken else 0


def _classifier(encoder: Encoder, labels: str | None, file: Path | None, templates: str) -> ZeroShotClassifier:
    from clipmlu.data.prompts import resolve_class_names

    if file is not None:
        return encoder.load_classifier(file)
    assert labels is not None
    return encoder.classifier(resolve_class_names(labels), templates)


def _table(predictions: Iterable[Prediction], classifier: ZeroShotClassifier, top_k: int) -> Iterator[str]:
    """One aligned line per image, as soon as it is there."""
    width = min(28, max(len(name) for name in classifier.class_names))
    if classifier.encoder.bundle.compilation.emulated:
        yield "(emulated)"
    for prediction in predictions:
        ranked = zip(prediction.class_names, prediction.scores, strict=True)
        columns = [f"{name:<{width}} {score:6.1%}" for name, score in ranked]
        yield "  ".join([*columns, prediction.source])


def _json(predictions: Iterable[Prediction], classifier: ZeroShotClassifier, top_k: int) -> Iterator[str]:
    rows = [prediction.to_dict() for prediction in predictions]
    yield json.dumps(
        {"emulated": classifier.encoder.bundle.compilation.emulated, "results": rows}, indent=2, ensure_ascii=False
    )


def _jsonl(predictions: Iterable[Prediction], classifier: ZeroShotClassifier, top_k: int) -> Iterator[str]:
    mark = {"emulated": True} if classifier.encoder.bundle.compilation.emulated else {}
    for prediction in predictions:
        yield json.dumps({**prediction.to_dict(), **mark}, ensure_ascii=False)


def _csv(predictions: Iterable[Prediction], classifier: ZeroShotClassifier, top_k: int) -> Iterator[str]:
    ranks = range(1, min(top_k, len(classifier.class_names)) + 1)
    mark = ["emulated"] if classifier.encoder.bundle.compilation.emulated else []
    yield _csv_line(["source", *(f"{column}_{rank}" for rank in ranks for column in ("class_name", "score")), *mark])
    for prediction in predictions:
        ranked = zip(prediction.class_names, prediction.scores, strict=True)
        yield _csv_line(
            [
                prediction.source,
                *(cell for name, score in ranked for cell in (name, f"{score:.6f}")),
                *(["true"] if mark else []),
            ]
        )


def _csv_line(cells: Iterable[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()


_FORMATS: dict[str, Callable[[Iterable[Prediction], ZeroShotClassifier, int], Iterator[str]]] = {
    "table": _table,
    "json": _json,
    "jsonl": _jsonl,
    "csv": _csv,
}
