"""``clipmlu classify``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from clipmlu.cli._engines import engine_options, refuse_engine
from clipmlu.cli._groups import Option, OptionGroup
from clipmlu.cli._help import command
from clipmlu.cli._inputs import input_options
from clipmlu.cli._jobs import JobChoice, check_job_output, job_options, run_job_command
from clipmlu.cli._notes import note, note_inputs, warn
from clipmlu.cli._options import (
    PATH,
    Choice,
    Integer,
    Number,
    RunningOptions,
    bundle_argument,
    overwrite_option,
    running_options,
    templates_option,
)
from clipmlu.cli._progress import STEPS, with_progress
from clipmlu.cli._urls import url_options
from clipmlu.errors import InputError, OptionError
from clipmlu.file_names import name_from_path

if TYPE_CHECKING:
    from clipmlu.classify.classifier import ZeroShotClassifier
    from clipmlu.data.url.options import UrlOptions
    from clipmlu.embed.items import RowBatch
    from clipmlu.jobs.engines.options import EngineOptions
    from clipmlu.jobs.inputs import JobInput
    from clipmlu.jobs.options import ClassificationOptions
    from clipmlu.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassesChoice:
    """The classes of images.

    Attributes:
        labels: class names: a file or a list; None with a classifier file.
        classifier_file: a classifier file, or None.
        templates: templates of the prompts; not used with a classifier file.
        top_k: classes per image; None for the default of the output.
        none_label: name of the result for an image of none of the classes, or None.
        background: names of background classes: a file or a list; None for the default ones with a ``none_label``.
        reject_below: smallest probability of a class that is not rejected, or None.
    """

    labels: str | None
    classifier_file: Path | None
    templates: str
    top_k: int | None
    none_label: str | None
    background: str | None
    reject_below: float | None

    def __post_init__(self) -> None:
        """Check that there are class names or a file."""
        if (self.labels is None) == (self.classifier_file is None):
            raise OptionError("Give either --labels or --classifier.")
        if self.classifier_file is not None and self.background is not None:
            raise OptionError("--background goes with --labels; a classifier file has its own background classes")

    def classifier(self, encoder: Model) -> ZeroShotClassifier:
        """Return the classifier."""
        from clipmlu.data.class_names import resolve_class_names

        if self.classifier_file is not None:
            found = encoder.load_classifier(self.classifier_file)
            return found.rejecting(none_label=self.none_label, reject_below=self.reject_below)
        assert self.labels is not None
        return encoder.classifier(
            resolve_class_names(self.labels, on_note=warn),
            self.templates,
            none_label=self.none_label,
            background=self.background,
            reject_below=self.reject_below,
            on_step=STEPS,
        )

    def for_job(self, *, embeddings: bool) -> ClassificationOptions:
        """Return the options of a job."""
        from clipmlu.jobs.options import ClassificationOptions

        return ClassificationOptions(
            class_names=self.labels,
            templates=self.templates,
            classifier=self.classifier_file,
            embeddings=embeddings,
            none_label=self.none_label,
            background=self.background,
            reject_below=self.reject_below,
            **({} if self.top_k is None else {"top_k": self.top_k}),
        )


_CLASSES = (
    Option("--labels", metavar="FILE|LIST", help="Class names: a file with one per line, or a list such as 'cat,dog'."),
    Option("--classifier", "classifier_file", type=PATH, help="A classifier file instead of --labels."),
    templates_option,
    Option("--top-k", type=Integer(min=1), help="Classes per image. [default: 1 in a table, else 5]"),
    Option(
        "--reject-below",
        type=Number(0, 1),
        metavar="P",
        help="Call an image 'none of these' if its best class has a smaller probability.",
    ),
    Option("--none-label", metavar="NAME", help="Another name for that; background classes then compete with yours."),
    Option(
        "--background", metavar="FILE|LIST", help="Background classes, as --labels takes them. [default: a list of 15]"
    ),
)
_classes_options = OptionGroup(
    "classes", _CLASSES, lambda given: ClassesChoice(**{option.name: given[option.name] for option in _CLASSES})
)


@command(
    "classify",
    short_help="Classify images into your classes.",
    examples=(
        'clipmlu classify demo-cpu photos/ --labels "red circle,blue square"',
        "clipmlu classify demo-cpu photos/ --labels labels.txt -o predictions.csv",
        "clipmlu classify demo-cpu photos/ --labels labels.txt -o classes/",
    ),
)
@bundle_argument
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@_classes_options
@click.option("--save-classifier", type=PATH, help="Write a classifier file, for use without the text tower.")
@click.option(
    "--format",
    "format_name",
    type=Choice(["table", "json", "jsonl", "csv"]),
    help="Format on standard output or of a file. [default: table, or by the name of the file]",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="FILE|DIR",
    help="A .csv, .json, .jsonl or .txt (table) file; or the folder of a job, which stores the classes of all images.",
)
@Option("--json", "as_json", is_flag=True, help="The same as --format json.")
@overwrite_option
@click.option("--embeddings", is_flag=True, help="A job stores the embeddings, too.")
@input_options
@url_options
@job_options
@engine_options
@running_options
def classify_command(
    bundle: Path,
    images: JobInput,
    classes: ClassesChoice,
    save_classifier: Path | None,
    format_name: str | None,
    output: Path | None,
    as_json: bool,
    overwrite: bool,
    embeddings: bool,
    urls: UrlOptions | None,
    job: JobChoice,
    engine: EngineOptions,
    running: RunningOptions,
) -> int:
    """Classify images with a compiled BUNDLE.

    INPUT is a file, a folder (searched recursively), a glob pattern, or - for a list of paths on stdin, one per line.
    A tar archive, a Parquet or an Arrow file holds many images. With --allow-urls, INPUT or a line of the list may be a URL.
    An image that cannot be read is reported and skipped; the exit code is then 1.

    A table shows the best class of each image, or --top-k. A file of -o is written whole or not at all. With -o DIR it is
    a job for any number of images, which goes on where it was interrupted; see 'clipmlu embed'.
    """
    from clipmlu.report.predictions import SUFFIXES

    if not images.given and (save_classifier is None or output is not None):
        raise OptionError("Give at least one INPUT: a file, a folder, a glob pattern, or - for a list on stdin.")
    if as_json and format_name not in (None, "json"):
        raise OptionError(f"--json is --format json, and --format is {format_name}; leave out one of them")
    format_name = "json" if as_json else format_name
    found = SUFFIXES.get(output.suffix.lower()) if output is not None else "table"
    if output is None or (found and not output.is_dir()):
        where = "standard output" if output is None else "a file"
        job.refuse(where)
        refuse_engine(engine, where)
        if embeddings:
            raise OptionError(f"--embeddings is for a job: give -o DIR, not {where}")
        predictions = _Predictions(output=output, format_name=format_name or str(found), overwrite=overwrite)
        return _classify(bundle, images, classes, save_classifier, predictions, urls, running)
    check_job_output(output, f", or a file that ends in {', '.join(SUFFIXES)}")
    if format_name is not None:
        raise OptionError(
            f"{'--json' if as_json else '--format'} is for standard output and files that end in {', '.join(SUFFIXES)}; a job has --shard-format"
        )
    if save_classifier is not None:
        raise OptionError("--save-classifier does not go with a job, which keeps its classifier as DIR/classifier.clf")
    if "dtype" in job.given and not embeddings:
        raise OptionError("--dtype is about stored embeddings; add --embeddings")
    options = job.options(running, urls, overwrite=overwrite, classification=classes.for_job(embeddings=embeddings))
    return run_job_command(bundle, images, output, options, engine, "classifying")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Predictions:
    """Where predictions are written.

    Attributes:
        output: a file, or None for standard output.
        format_name: one of ``report.predictions.FORMATS``.
        overwrite: replace existing files.
    """

    output: Path | None
    format_name: str
    overwrite: bool

    def write(self, classifier: ZeroShotClassifier, top_k: int | None, batches: Iterable[RowBatch]) -> int:
        """Write the predictions, and return the number of images that could not be read."""
        from clipmlu.report.predictions import FORMATS, write_predictions

        form = FORMATS[self.format_name](classifier, top_k, to_file=self.output is not None)
        if self.output is None:
            return write_predictions(form, batches, write=_echo, on_note=warn)[1]
        from clipmlu.files.publish import StagedFiles

        with StagedFiles([self.output], overwrite=self.overwrite) as staged:
            with staged.paths[0].open("w", encoding="utf-8", newline="") as file:
                classified, broken = write_predictions(form, batches, write=_writer(file, self.output), on_note=warn)
            if broken and not classified:
                raise InputError(f"Not one of {broken} image(s) could be read; nothing was written.")
            staged.publish()
        note(f"Wrote the classes of {classified} image(s) to {name_from_path(self.output)}")
        return broken


def _echo(text: str) -> None:
    click.echo(text, nl=False)


def _writer(file: TextIO, path: Path) -> Callable[[str], None]:
    from clipmlu.files.publish import output_errors

    def write(text: str) -> None:
        with output_errors(path):
            file.write(text)
            file.flush()

    return write


def _classify(
    bundle: Path,
    images: JobInput,
    classes: ClassesChoice,
    save_classifier: Path | None,
    predictions: _Predictions,
    urls: UrlOptions | None,
    running: RunningOptions,
) -> int:
    from clipmlu.data.finding import SkippedFiles
    from clipmlu.embed.images import run_batches
    from clipmlu.files.publish import check_files_free
    from clipmlu.jobs.opening import input_items

    check_files_free([save_classifier, predictions.output], overwrite=predictions.overwrite)
    broken, skipped_files = 0, SkippedFiles()
    with running.load(bundle, image_only=classes.classifier_file is not None) as encoder:
        classifier = classes.classifier(encoder)
        if save_classifier is not None:
            classifier.save(save_classifier, overwrite=predictions.overwrite)
            note(f"Wrote classifier file {name_from_path(save_classifier)}")
        if images.given:
            if cost := classifier.scorer.describe_cost(encoder.check_batch_size(running.batch_size)):
                note(cost)
            batches = run_batches(
                classifier.scorer,
                input_items(images, skipped_files, urls),
                batch_size=running.batch_size,
                workers=running.workers,
            )
            shown = with_progress(batches, "classifying")
            with contextlib.closing(batches), contextlib.closing(shown):
                broken = predictions.write(classifier, classes.top_k, shown)
    return note_inputs(broken, skipped_files)
