"""Options of bulk jobs, and running one from the command line."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmlu.cli._groups import Option, OptionGroup
from clipmlu.cli._notes import note, note_kept, note_next, warn
from clipmlu.cli._options import Choice, Integer, RunningOptions
from clipmlu.cli._progress import STEPS, ProgressView
from clipmlu.errors import BundleExistsError, OptionError
from clipmlu.file_names import name_from_path

if TYPE_CHECKING:
    from clipmlu.data.url.options import UrlOptions
    from clipmlu.jobs.engines.options import EngineOptions
    from clipmlu.jobs.inputs import JobInput
    from clipmlu.jobs.options import ClassificationOptions, JobOptions
    from clipmlu.jobs.run import JobReport, JobStart

_FILE_SUFFIXES = frozenset(
    {
        ".xlsx",
        ".md",
        ".html",
        ".pkl",
        ".npy",
        ".npz",
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".txt",
        ".parquet",
        ".arrow",
        ".h5",
    }
)

_SHARD_OPTIONS = (
    Option("--shard-size", type=Integer(min=1), help="Images per shard of a job. [default: 10000]"),
    Option(
        "--shard-format",
        type=Choice(["parquet", "npy", "csv", "jsonl"]),
        help="Files of a job's shards. [default: parquet]",
    ),
    Option(
        "--max-errors",
        metavar="N|P%",
        help="Stop a job when more images cannot be read than N, or P percent of those so far.",
    ),
    Option(
        "--retry-errors",
        is_flag=True,
        default=None,
        help="Read the images of a job that could not be read again; their shards are computed again.",
    ),
    Option("--dtype", type=Choice(["float32", "float16"]), help="Embeddings as a job stores them. [default: float32]"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobChoice:
    """Options of a job as given; None for the default of ``JobOptions``.

    Attributes:
        given: values by the names of ``JobOptions``, without those that were not given.
    """

    given: Mapping[str, Any]

    def refuse(self, output: str) -> None:
        """Raise ``OptionError`` if an option was given, for an output that is no job."""
        for name in self.given:
            raise OptionError(f"--{name.replace('_', '-')} is for a job: give -o DIR, not {output}")

    def options(
        self,
        running: RunningOptions,
        urls: UrlOptions | None,
        *,
        overwrite: bool,
        classification: ClassificationOptions | None = None,
    ) -> JobOptions:
        """Return the options of a job."""
        from clipmlu.jobs.options import JobOptions

        devices: Any = running.devices
        return JobOptions(
            batch_size=running.batch_size,
            threads=running.threads,
            workers=running.workers,
            fast_preprocess=running.fast_preprocess,
            max_pixels=running.max_pixels,
            device=running.device,
            devices=devices,
            urls=urls,
            overwrite=overwrite,
            classification=classification,
            **self.given,
        )


def _choice(given: Mapping[str, Any]) -> JobChoice:
    names = (option.name for option in _SHARD_OPTIONS)
    return JobChoice(given={name: given[name] for name in names if given[name] is not None})


job_options = OptionGroup("job", _SHARD_OPTIONS, _choice, heading="Jobs")
"""Adds the options of jobs; the command gets ``job``, a ``JobChoice``."""


def check_job_output(output: Path, instead: str = "") -> None:
    """Check that an output is not meant to be a file.

    Args:
        output: the path.
        instead: files that the command can write instead, as the end of a sentence.

    Raises:
        OptionError: it has the suffix of a file, and is no folder.
    """
    if output.suffix.lower() in _FILE_SUFFIXES and not output.is_dir():
        raise OptionError(f"output is '{output}'; expected a folder for a job{instead}")


def run_job_command(
    bundle: Path,
    images: JobInput,
    output: Path,
    options: JobOptions,
    engine: EngineOptions,
    label: str,
    following: Sequence[str] = (),
) -> int:
    """Run a job, print what it did and the commands that may follow, those given before ``job``, and return the exit code."""
    from clipmlu.jobs.error_limit import TooManyErrorsError
    from clipmlu.jobs.run import run_job

    progress, preparing = ProgressView(label), contextlib.ExitStack()
    named_by = (OptionError, BundleExistsError, TooManyErrorsError)
    with note_kept(output, "What was computed", named_by=named_by), preparing, progress:
        preparing.enter_context(STEPS("preparing the job"))
        report = run_job(
            bundle,
            images,
            output,
            options,
            engine=engine,
            on_start=lambda job: _start(preparing, progress, job),
            on_shard=lambda record: progress.add(shards=1, errors=len(record.errors)),
            on_load=lambda load: progress.add(images=load.images, load=load),
            on_note=note,
        )
    _note_report(report, following)
    return 1 if report.errors and options.max_errors is None else 0


def _start(preparing: contextlib.ExitStack, progress: ProgressView, job: JobStart) -> None:
    preparing.close()
    if job.images is None:
        progress.start(job.shards, job.shards_done, unit="shards")
    else:
        progress.start(job.images, job.images_done)


def _note_report(report: JobReport, following: Sequence[str]) -> None:
    from clipmlu.bundle.manifest import emulated_mark

    if report.skipped_files is not None:
        warn(report.skipped_files)
    if report.errors:
        warn(f"{report.errors} image(s) could not be read; see {name_from_path(report.errors_path)}")
    speed = ""
    if report.computed_images:
        rate = report.computed_images / max(report.seconds, 1e-9)
        speed = f"; {report.computed_images} images in {report.seconds:.1f} s, {rate:.1f} images/s"
    folder, mark = name_from_path(report.path), emulated_mark(report.emulated)
    note(f"Wrote {report.images} rows in {report.shards} shard(s) to {folder}{mark}{speed}")
    note_next(*((command, report.path) for command in (*following, "job")))
