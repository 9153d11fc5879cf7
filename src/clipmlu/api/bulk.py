"""The public functions for many images: jobs that classify or embed, and embedding files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

from clipmlu.api.compile_keywords import ReadingKeywords
from clipmlu.api.measure_keywords import EngineKeywords, RunningKeywords, engine_options
from clipmlu.api.open_set_keywords import OpenSetKeywords
from clipmlu.arguments import as_path, shown
from clipmlu.classify.classifier import DEFAULT_TOP_K
from clipmlu.data.class_prompts import ClassLabels, resolve_labels
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.data.finding import SkippedFiles
from clipmlu.data.prompts import Templates
from clipmlu.data.url.options import UrlOptions
from clipmlu.embed.file import EmbeddingFile, check_embedding_output, embed_images_into, embed_lines_into
from clipmlu.errors import InputError, OptionError
from clipmlu.jobs.folder import ShardRecord
from clipmlu.jobs.formats import FormatName
from clipmlu.jobs.inputs import JobInput
from clipmlu.jobs.opening import input_items
from clipmlu.jobs.options import ClassificationOptions, JobOptions
from clipmlu.jobs.rows import EmbeddingDtype
from clipmlu.jobs.run import JobReport, JobStart, run_job
from clipmlu.keywords import check_keywords, with_keywords
from clipmlu.measure.speed.load import PipelineLoad
from clipmlu.model import load
from clipmlu.specs import PositiveInt

Inputs = str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | JobInput
"""A file, folder, glob pattern or URL, or several of them."""


class UrlKeywords(TypedDict, total=False):
    """Keywords of URLs.

    Attributes:
        allow_urls: fetch images that are http or https URLs.
        allow_private_urls: fetch URLs of private addresses, too.
        url_timeout: seconds for each URL, in total; 30 by default.
        url_max_bytes: largest file of a URL; 67,108,864 by default.
    """

    allow_urls: bool
    allow_private_urls: bool
    url_timeout: float
    url_max_bytes: PositiveInt


class InputKeywords(UrlKeywords, total=False):
    """Keywords of images in bulk.

    Attributes:
        files_from: a file that lists more inputs, one per line or separated by zero bytes.
        image_column: column of the images in Parquet and Arrow files; None to find it by name.
        id_column: column of the ids in Parquet and Arrow files; None for ``FILE#ROW``.
        dataset: read a dataset, too: ``cifar100``, ``cifar10``, ``imagefolder:PATH`` or ``demo``.
        split: split of the dataset.
        data_dir: folder that holds the dataset.
        overwrite: replace existing output.
    """

    files_from: str | os.PathLike[str] | None
    image_column: str | None
    id_column: str | None
    dataset: str | None
    split: str | None
    data_dir: str | os.PathLike[str] | None
    overwrite: bool


class ShardKeywords(TypedDict, total=False):
    """Keywords of the files of a job.

    Attributes:
        shard_size: images per shard.
        shard_format: format of the shard files.
        max_errors: stop when more images cannot be read: a number, or a percentage of those so far such as ``"1%"``; None never.
        retry_errors: compute the shards that hold images that could not be read again.
        dtype: dtype of the stored embeddings.
    """

    shard_size: PositiveInt
    shard_format: FormatName
    max_errors: int | str | None
    retry_errors: bool
    dtype: EmbeddingDtype


class EmbedFileKeywords(InputKeywords, RunningKeywords, ReadingKeywords, total=False):
    """Keywords of ``embed_to_file``."""


class EmbedKeywords(InputKeywords, ShardKeywords, RunningKeywords, ReadingKeywords, EngineKeywords, total=False):
    """Keywords of ``embed_images``."""


class ClassifyKeywords(EmbedKeywords, OpenSetKeywords, total=False):
    """Keywords of ``classify_images``.

    Attributes:
        classifier: a classifier file instead of ``labels``; see ``ZeroShotClassifier.save``.
        templates: prompt templates: one template, the name of a set, a file, or a list.
        top_k: classes per image; at most all classes are stored.
        embeddings: store the embeddings, too.
    """

    classifier: str | os.PathLike[str] | None
    templates: Templates
    top_k: PositiveInt
    embeddings: bool


class EmbeddingReport(NamedTuple):
    """What ``embed_to_file`` wrote.

    Attributes:
        path: the ``.npy`` file: float32, shape (``rows``, D).
        rows: number of embeddings.
        errors: reasons of the images that could not be read, which have no row.
    """

    path: Path
    rows: int
    errors: tuple[str, ...]


_EXPECTED_INPUTS = (
    "expected a file, folder, glob pattern or URL, or a list of them; for images in memory see predict and embed_images of a "
    "model that clipmlu.load gives"
)
_BULK = (InputKeywords, UrlKeywords, ReadingKeywords, RunningKeywords)
_RUNNING = ("batch_size", "threads", "workers", "fast_preprocess", "device", "devices", "max_pixels")
_SHARDS = ("shard_size", "shard_format", "max_errors", "retry_errors", "dtype", "overwrite")


@with_keywords(*_BULK, ShardKeywords, EngineKeywords, OpenSetKeywords, ClassifyKeywords, defaults=JobOptions)
def classify_images(
    bundle: str | os.PathLike[str],
    inputs: Inputs,
    output: str | os.PathLike[str],
    labels: ClassLabels | None = None,
    *,
    on_start: Callable[[JobStart], object] = lambda _job: None,
    on_shard: Callable[[ShardRecord], object] = lambda _record: None,
    on_load: Callable[[PipelineLoad], object] = lambda _load: None,
    on_note: Callable[[str], object] = lambda _note: None,
    **keywords: Unpack[ClassifyKeywords],
) -> JobReport:
    """Classify any number of images into the folder of a job, as ``clipmlu classify -o DIR`` does.

    A job that was interrupted goes on with the same call. ``open_job(output)`` reads the rows. For some images in memory see
    ``ZeroShotClassifier.predict``.

    Args:
        bundle: directory of a compiled bundle.
        inputs: a file, folder, glob pattern or URL, or several of them.
        output: folder of the job.
        labels: class names, as for ``Model.classifier``; None with ``classifier``.
        on_start: called with the size of the job before the work begins.
        on_shard: called with the record of each finished shard.
        on_load: called with what a worker's pipeline did since its last call.
        on_note: called with a line for people.

    Returns:
        The report: numbers of images and of those that could not be read.

    Raises:
        UnknownNameError: there is no such dataset or keyword.
        OptionError: a value is wrong, or the job was begun with other options or inputs.
        MissingDependencyError: the format of the shards needs an optional package.
        OutputExistsError: the output is something else than a job.
        InputError: there are no images, none could be read, or more than ``max_errors`` could not.
    """
    given = check_keywords(keywords, ClassifyKeywords, "classify_images")
    classifier = given.get("classifier")
    classification = ClassificationOptions(
        class_names=None if labels is None else resolve_labels(labels),
        templates=given.get("templates"),
        classifier=None if classifier is None else as_path(classifier, "the classifier file"),
        top_k=given.get("top_k", DEFAULT_TOP_K),
        embeddings=given.get("embeddings", False),
        **{name: given[name] for name in OpenSetKeywords.__annotations__ if name in given},
    )
    return run_job(
        bundle,
        _job_input(inputs, given),
        output,
        _job_options(given, classification),
        engine=engine_options(given),
        on_start=on_start,
        on_shard=on_shard,
        on_load=on_load,
        on_note=on_note,
    )


@with_keywords(*_BULK, ShardKeywords, EngineKeywords, defaults=JobOptions)
def embed_images(
    bundle: str | os.PathLike[str],
    inputs: Inputs,
    output: str | os.PathLike[str],
    *,
    on_start: Callable[[JobStart], object] = lambda _job: None,
    on_shard: Callable[[ShardRecord], object] = lambda _record: None,
    on_load: Callable[[PipelineLoad], object] = lambda _load: None,
    on_note: Callable[[str], object] = lambda _note: None,
    **keywords: Unpack[EmbedKeywords],
) -> JobReport:
    """Embed any number of images into the folder of a job, as ``clipmlu embed -o DIR`` does.

    A job that was interrupted goes on with the same call. ``open_job(output)`` reads the rows. For some images in memory see
    ``Model.embed_images``.

    Args:
        bundle: directory of a compiled bundle.
        inputs: a file, folder, glob pattern or URL, or several of them.
        output: folder of the job.
        on_start: called with the size of the job before the work begins.
        on_shard: called with the record of each finished shard.
        on_load: called with what a worker's pipeline did since its last call.
        on_note: called with a line for people.

    Returns:
        The report: numbers of images and of those that could not be read.

    Raises:
        ClipmluError: as ``classify_images``.
    """
    given = check_keywords(keywords, EmbedKeywords, "embed_images")
    return run_job(
        bundle,
        _job_input(inputs, given),
        output,
        _job_options(given, None),
        engine=engine_options(given),
        on_start=on_start,
        on_shard=on_shard,
        on_load=on_load,
        on_note=on_note,
    )


@with_keywords(*_BULK)
def embed_to_file(
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str],
    inputs: Inputs = (),
    *,
    texts: str | os.PathLike[str] | None = None,
    on_note: Callable[[str], None] = lambda _note: None,
    **keywords: Unpack[EmbedFileKeywords],
) -> EmbeddingReport:
    """Write embeddings of images, or of the lines of a text file, to a ``.npy`` file, as ``clipmlu embed -o FILE.npy`` does.

    The ids of the rows are in the file of the same name with ``.ids.json``. An error leaves no file.

    Args:
        bundle: directory of a compiled bundle.
        output: a path that ends in ``.npy``.
        inputs: a file, folder, glob pattern or URL, or several of them.
        texts: embed the lines of this file instead of images.
        on_note: called with a line for people.

    Returns:
        The report; embeddings are float32 with unit L2 norm.

    Raises:
        UnknownNameError: there is no such dataset or keyword.
        OptionError: a value is wrong, or not exactly one of images and texts is given.
        OutputExistsError: the file exists, and ``overwrite`` is False.
        InputError: the texts, or all images, cannot be read.
        OutputError: the file cannot be written.
    """
    given = check_keywords(keywords, EmbedFileKeywords, "embed_to_file")
    images, path = _job_input(inputs, given), as_path(output, "the output")
    if images.given == (texts is not None):
        raise OptionError("expected either inputs or texts; give one of them")
    overwrite, errors = given.get("overwrite", False), list[str]()
    check_embedding_output(path, overwrite=overwrite)
    running = {name: given[name] for name in _RUNNING if name in given}
    sizes = {name: running.pop(name, None) for name in ("batch_size", "workers")}
    with (
        load(bundle, image_only=texts is None, busy_wait=False, **running) as encoder,
        EmbeddingFile(path, encoder.embedding_dim, overwrite=overwrite) as file,
    ):
        if texts is None:
            items = input_items(images, SkippedFiles(), url_options(given))
            embed_images_into(file, encoder, items, **sizes, on_skipped=lambda error: errors.append(str(error)))
        else:
            embed_lines_into(file, encoder, as_path(texts, "the text file"), on_note=on_note)
        if errors and not file.rows:
            raise InputError(f"Not one of {len(errors)} image(s) could be read; nothing was written. {errors[0]}")
        return EmbeddingReport(file.publish(), file.rows, tuple(errors))


def _job_input(inputs: Inputs, given: Mapping[str, Any]) -> JobInput:
    if isinstance(inputs, JobInput):
        return inputs
    files_from = given.get("files_from")
    return JobInput(
        paths=_paths(inputs),
        files_from=None if files_from is None else os.fspath(files_from),
        dataset=_dataset(given),
        image_column=given.get("image_column"),
        id_column=given.get("id_column"),
    )


def _paths(inputs: Any) -> list[str]:
    given = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    if isinstance(given, bytes | bytearray | Mapping | Set) or not isinstance(given, Iterable):
        raise OptionError(f"inputs are {shown(inputs)}; {_EXPECTED_INPUTS}")
    paths = [os.fspath(each) if isinstance(each, str | os.PathLike) else each for each in given]
    for position, path in enumerate(paths):
        if not isinstance(path, str):
            raise OptionError(f"inputs[{position}] is {shown(path)}; {_EXPECTED_INPUTS}")
    return paths


def _dataset(given: Mapping[str, Any]) -> DatasetChoice | None:
    if given.get("dataset") is None:
        for name in ("split", "data_dir", "offline"):
            if given.get(name):
                raise OptionError(f"{name.replace('_', ' ')} is about a dataset; give dataset, too")
        return None
    fields = {name: given[name] for name in ("split", "data_dir", "max_pixels") if name in given}
    return DatasetChoice(name=given["dataset"], download=not given.get("offline", False), **fields)


def url_options(given: Mapping[str, Any]) -> UrlOptions | None:
    """Return the limits of URLs that keywords give; None if URLs are not allowed.

    Raises:
        OptionError: there are limits, and URLs are not allowed.
    """
    named = {"allow_private": "allow_private_urls", "timeout_s": "url_timeout", "max_bytes": "url_max_bytes"}
    limits = {field: given[name] for field, name in named.items() if name in given}
    if given.get("allow_urls"):
        return UrlOptions(**limits)
    if limits:
        raise OptionError(f"{named[next(iter(limits))]} is for URLs; give allow_urls=True with it")
    return None


def _job_options(given: Mapping[str, Any], classification: ClassificationOptions | None) -> JobOptions:
    chosen = {name: given[name] for name in (*_RUNNING, *_SHARDS) if name in given}
    return JobOptions(classification=classification, urls=url_options(given), **chosen)
