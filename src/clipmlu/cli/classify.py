"""``clipmlu classify``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._notes import note, note_inputs
from clipmlu.cli._options import (
    PATH,
    RunningOptions,
    bundle_argument,
    overwrite_option,
    running_options,
    templates_option,
)
from clipmlu.cli._urls import url_options
from clipmlu.errors import OptionError
from clipmlu.file_names import name_from_path

if TYPE_CHECKING:
    from clipmlu.classify.classifier import ZeroShotClassifier
    from clipmlu.data.url.options import UrlOptions
    from clipmlu.model import Model


@click.command("classify")
@bundle_argument
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option(
    "--labels", metavar="FILE|LIST", help="Class names: a file with one per line, or a list such as 'cat,dog'."
)
@click.option("--classifier", "classifier_file", type=PATH, help="A classifier file instead of --labels.")
@click.option("--save-classifier", type=PATH, help="Write a classifier file, for use without the text tower.")
@overwrite_option
@templates_option
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes per image.")
@click.option(
    "--format", "format_name", type=click.Choice(["table", "json", "jsonl", "csv"]), default="table", show_default=True
)
@url_options
@running_options
def classify_command(
    bundle: Path,
    inputs: tuple[str, ...],
    labels: str | None,
    classifier_file: Path | None,
    save_classifier: Path | None,
    overwrite: bool,
    templates: str,
    top_k: int,
    format_name: str,
    urls: UrlOptions | None,
    running: RunningOptions,
) -> int:
    """Classify images with a compiled BUNDLE.

    INPUT is a file, a folder (searched recursively), a glob pattern, or - for a list of paths on stdin, one per line.
    With --allow-urls, it or a line of the list may be a URL.
    An image that cannot be read is reported and skipped; the exit code is then 1.
    """
    from clipmlu.data.finding import SkippedFiles
    from clipmlu.data.listing import find_inputs
    from clipmlu.embed.images import run_batches
    from clipmlu.embed.items import items_from_found
    from clipmlu.files.publish import check_files_free
    from clipmlu.report.predictions import FORMATS, write_predictions

    if (labels is None) == (classifier_file is None):
        raise OptionError("Give either --labels or --classifier.")
    if not inputs and save_classifier is None:
        raise OptionError("Give at least one INPUT: a file, a folder, a glob pattern, or - for a list on stdin.")
    check_files_free([save_classifier], overwrite=overwrite)
    broken, skipped_files = 0, SkippedFiles()
    with running.load(bundle, image_only=classifier_file is not None) as encoder:
        classifier = _classifier(encoder, labels, classifier_file, templates)
        if save_classifier is not None:
            classifier.save(save_classifier, overwrite=overwrite)
            note(f"Wrote classifier file {name_from_path(save_classifier)}")

        if inputs:
            if cost := classifier.scorer.describe_cost(encoder.check_batch_size(running.batch_size)):
                note(cost)
            output = FORMATS[format_name](classifier, top_k)
            batches = run_batches(
                classifier.scorer,
                items_from_found(find_inputs(inputs, skipped_files, urls)),
                batch_size=running.batch_size,
                workers=running.workers,
            )
            with contextlib.closing(batches):
                broken = write_predictions(output, batches, on_note=note)
    return note_inputs(broken, skipped_files)


def _classifier(encoder: Model, labels: str | None, file: Path | None, templates: str) -> ZeroShotClassifier:
    from clipmlu.data.class_names import resolve_class_names

    if file is not None:
        return encoder.load_classifier(file)
    assert labels is not None
    return encoder.classifier(resolve_class_names(labels, on_note=note), templates)
