"""Running a job: list the input, skip what is done, compute the rest, write the list of errors."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from clipmlu.arguments import as_path, check_argument
from clipmlu.clock import now
from clipmlu.data.finding import JOB_FILE, SkippedFiles
from clipmlu.display import Displayed, Summary
from clipmlu.errors import InputError, OptionError, OutputError
from clipmlu.file_names import name_from_path
from clipmlu.files.publish import encode_json, output_errors
from clipmlu.jobs.definition import JobDefinition, define_job
from clipmlu.jobs.engines.cards import Cards, choose_cards
from clipmlu.jobs.engines.dispatch import run_tasks
from clipmlu.jobs.engines.options import THIS_PROCESS, EngineOptions
from clipmlu.jobs.error_limit import ErrorLimit, TooManyErrorsError
from clipmlu.jobs.folder import JobFolder, ShardRecord
from clipmlu.jobs.formats import FORMATS
from clipmlu.jobs.inputs import JobInput, cut_inputs
from clipmlu.jobs.manifest import JobManifest, describe_differences, make_manifest
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.pieces import Piece, Shard
from clipmlu.jobs.plan import describe_other_input, write_plan
from clipmlu.jobs.shard_work import ShardWork
from clipmlu.measure.speed.load import PipelineLoad
from clipmlu.model import load_for_images


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class JobReport(Displayed):
    """What a run of a job did.

    Attributes:
        path: folder of the job.
        errors_path: list of the images that could not be read; it exists if there are any.
        images: images of the job, each of which has a row.
        errors: those among them that could not be read.
        shards: shards of the job.
        computed_images: images that this run read; the others were done before.
        computed_shards: shards that this run wrote.
        seconds: duration of computing them.
        emulated: the emulated vendor SDK was used.
        skipped_files: note about files in folders that are no images, or None.
    """

    path: Path
    errors_path: Path
    images: int
    errors: int
    shards: int
    computed_images: int
    computed_shards: int
    seconds: float
    emulated: bool
    skipped_files: str | None

    def summary(self) -> Summary:
        """Return the facts that people see."""
        facts = {
            "path": name_from_path(self.path),
            "images": f"{self.images:,}" + (f" ({self.errors:,} could not be read)" if self.errors else ""),
            "shards": f"{self.shards:,}",
            "computed now": f"{self.computed_images:,} images, {self.computed_shards:,} shards, {self.seconds:.1f} s",
            **({} if self.skipped_files is None else {"skipped files": self.skipped_files}),
        }
        return Summary(facts, self.emulated)


class JobStart(NamedTuple):
    """The size of a job before its work begins.

    Attributes:
        images: number of images; None if it is not known, such as of archives.
        images_done: images of the shards that are done.
        shards: number of shards.
        shards_done: number of those that are done.
    """

    images: int | None
    images_done: int
    shards: int
    shards_done: int


def run_job(
    bundle: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]] | JobInput,
    output: str | os.PathLike[str],
    options: JobOptions | None = None,
    *,
    engine: EngineOptions = THIS_PROCESS,
    on_start: Callable[[JobStart], object] = lambda _job: None,
    on_shard: Callable[[ShardRecord], object] = lambda _record: None,
    on_load: Callable[[PipelineLoad], object] = lambda _load: None,
    on_note: Callable[[str], object] = lambda _note: None,
) -> JobReport:
    """Embed or classify images into the shards of a job; shards that are done already are not computed again.

    Args:
        bundle: directory of a compiled bundle.
        inputs: files, folders, glob patterns, URLs, or ``-`` for a list on stdin; or these and others.
        output: folder of the job.
        options: options; None for the defaults.
        engine: where the shards are computed.
        on_start: called with the size of the job before the work begins.
        on_shard: called with the record of each finished shard.
        on_load: called with what a worker's pipeline did since its last call: about twice a second, or with each shard of
            another process; ``LoadSum`` says what limits the speed.
        on_note: called with a line for people, such as that another process works on this job.

    Raises:
        MissingDependencyError: the format of the shards, or the engine, needs an optional package.
        OptionError: the inputs are no list, or the job was begun with other options or inputs.
        OutputExistsError: the output is something else than a job.
        InputError: there are no images, or none could be read.
        TooManyErrorsError: more than ``max_errors`` could not be read.
        OutputError: a file cannot be written; the finished shards stay.
    """
    options = check_argument(options, JobOptions | None, "options") or JobOptions()
    FORMATS[options.shard_format].check()
    engine.check_installed()
    job, path = JobFolder(as_path(output, "the output")), as_path(bundle, "the bundle")
    skipped_files = SkippedFiles()
    if isinstance(inputs, str | bytes | os.PathLike):
        raise OptionError(f"inputs is {inputs!r}; expected a list of paths, such as [{inputs!r}]")
    if not isinstance(inputs, JobInput):
        inputs = JobInput(paths=[os.fspath(each) for each in inputs])
    pieces = cut_inputs(inputs, options.shard_size, skipped_files, options.urls)
    job.check_output()
    definition = define_job(path, options, on_note)
    with job.lock(on_note):
        job.check_output()  # another process may have written there meanwhile
        manifest = _begin(job, path, definition, options, pieces)
        tally = _Tally(job, manifest, retry_errors=options.retry_errors)
        on_start(JobStart(manifest.inputs.images, tally.images, manifest.shards, tally.shards))
        _note_idle_workers(manifest.shards, options, engine, on_note)
        reported = on_load if engine.is_this_process else None
        work = ShardWork(
            bundle=path, folder=job.path, manifest=manifest, options=options, mark=job.mark(), on_load=reported
        )
        started = now()
        with _errors_written(job, manifest):
            cards = _cards(path, options, engine)
            tally.check(options.error_limit)
            left = manifest.shards - tally.shards
            for done in run_tasks(work, tally.waiting(), engine, cards=cards, count=left, describe=_name_of):
                tally.add(done.record)
                on_load(done.load)
                on_shard(done.record)
                tally.check(options.error_limit)
        if tally.errors == tally.images:
            raise InputError(f"Not one of {tally.images} image(s) could be read; see '{job.errors_path}'.")
        return JobReport(
            path=job.path,
            errors_path=job.errors_path,
            images=tally.images,
            errors=tally.errors,
            shards=manifest.shards,
            computed_images=tally.computed_images,
            computed_shards=tally.computed_shards,
            seconds=now() - started,
            emulated=manifest.provenance.emulated,
            skipped_files=skipped_files.note(),
        )


def _begin(
    job: JobFolder, bundle: Path, definition: JobDefinition, options: JobOptions, pieces: Iterator[Piece]
) -> JobManifest:
    """List the input and return the manifest of the stored job, or of a new one after writing it.

    Raises:
        OptionError: the folder holds another job, which must not be replaced.
    """
    with job.stage(classifier=definition.has_classifier_file) as staged:
        inputs, *classifier, manifest_path = staged.paths
        plan = write_plan(pieces, inputs, job.inputs_path)
        wanted = make_manifest(definition.settings, definition.schema, plan, definition.provenance, definition.origin)
        stored = _stored_manifest(job, wanted, inputs, overwrite=options.overwrite)
        content: bytes | None = None
        if stored is None or not job.has_classifier(stored):
            content = definition.make_classifier(bundle, options)
            stored = _of_classifier(job, stored, content, overwrite=options.overwrite)
        if stored is None:
            wanted = msgspec.structs.replace(wanted, classifier_sha256=_digest(content))
            job.clear()
            with output_errors(job.path):
                manifest_path.write_bytes(encode_json(wanted))
                for path in classifier:
                    path.write_bytes(content or b"")
            staged.publish()
            return wanted
        with output_errors(job.path):
            if not job.has_inputs(stored):
                os.replace(inputs, job.inputs_path)
            for path in classifier if content is not None else ():
                path.write_bytes(content or b"")
                os.replace(path, job.classifier_path)
        return stored


def _of_classifier(
    job: JobFolder, stored: JobManifest | None, content: bytes | None, *, overwrite: bool
) -> JobManifest | None:
    """Return the manifest if the class embeddings are those of its job, or None if it is replaced because they are others.

    Raises:
        InputError: they are others, and the job must not be replaced.
    """
    if stored is None or _digest(content) == stored.classifier_sha256:
        return stored
    if overwrite:
        return None
    raise InputError(
        f"'{job.classifier_path}' is missing or damaged, and this machine computes other class embeddings. Replace the job with "
        "--overwrite."
    )


def _note_idle_workers(
    shards: int, options: JobOptions, engine: EngineOptions, on_note: Callable[[str], object]
) -> None:
    workers = engine.processes or 1
    if shards < workers:
        on_note(
            f"{shards} of {workers} workers have something to do: one worker computes a shard, and the job has {shards} of at "
            f"most {options.shard_size:,} images; a new job with a smaller --shard-size uses all"
        )


def _name_of(shard: Shard) -> str:
    return shard.name


def _digest(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def _cards(bundle: Path, options: JobOptions, engine: EngineOptions) -> Cards | None:
    """Return the cards that several workers share, or None."""
    if engine.is_this_process:
        return None
    with load_for_images(bundle, options, image_only=True) as model:
        return choose_cards(model, engine)


def _stored_manifest(job: JobFolder, wanted: JobManifest, inputs: Path, *, overwrite: bool) -> JobManifest | None:
    """Return the manifest in the folder if it is of the same job, or None if a new job can begin there.

    Raises:
        OptionError: it is of another job, which must not be replaced.
    """
    try:
        stored = job.read_manifest()
    except InputError:
        if overwrite:
            return None
        raise
    if stored is None or stored.is_same_job(wanted):
        return stored
    if overwrite:
        return None
    if stored.key == wanted.key:
        raise InputError(f"'{job.path / JOB_FILE}' was changed since the job began. Replace the job with --overwrite.")
    differences = describe_differences(stored, wanted)
    if stored.inputs.digest != wanted.inputs.digest:
        other = describe_other_input(job.inputs_path, inputs, (stored.inputs, wanted.inputs))
        differences += [] if other is None else [other]
    raise OptionError(
        f"job '{job.name}' was begun with {'; '.join(differences)}. Give the same again, choose another output, or replace "
        "the job with --overwrite"
    )


class _Tally:
    """Counts of a job's images, first those of the shards that are done.

    A shard is done when it has a record of its piece of the input; with ``retry_errors`` one with an error is not.
    """

    def __init__(self, job: JobFolder, manifest: JobManifest, *, retry_errors: bool) -> None:
        self._job = job
        self._shards = manifest.shards
        self._done: set[int] = set()
        self.images = self.errors = 0
        for shard in job.shards():
            record = job.read_record(shard.number, manifest)
            if record is not None and record.piece_digest == shard.digest and not (retry_errors and record.errors):
                self._count(record)
        self.computed_images = self.computed_shards = 0

    @property
    def shards(self) -> int:
        """Number of shards that were done before."""
        return len(self._done)

    def waiting(self) -> Iterator[Shard]:
        """Yield the shards that are not done."""
        return (shard for shard in self._job.shards() if shard.number not in self._done)

    def add(self, record: ShardRecord) -> None:
        """Count a shard that was finished now."""
        self._count(record)
        self.computed_images += record.rows
        self.computed_shards += 1

    def check(self, limit: ErrorLimit | None) -> None:
        """Check that not too many images could not be read.

        Raises:
            TooManyErrorsError: the limit is exceeded.
        """
        at_end = len(self._done) == self._shards
        if limit is not None and limit.is_exceeded(self.errors, self.images, at_end=at_end):
            raise TooManyErrorsError(
                f"{self.errors} of {self.images} image(s) could not be read, more than {limit.text} (--max-errors); "
                f"see '{self._job.errors_path}'. The finished shards are kept: go on with a higher limit, or correct the images "
                "and begin again with --overwrite."
            )

    def _count(self, record: ShardRecord) -> None:
        self._done.add(record.number)
        self.images += record.rows
        self.errors += len(record.errors)


@contextlib.contextmanager
def _errors_written(job: JobFolder, manifest: JobManifest) -> Iterator[None]:
    """Write the list of errors at the end of the block; after a failure of the block that one is raised."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OutputError):
            job.write_errors(manifest)
        raise
    job.write_errors(manifest)
