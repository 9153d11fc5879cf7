"""``clipmlu sweep``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.arguments import check_argument
from clipmlu.cli._compiling import sweep_options
from clipmlu.cli._datasets import dataset_options
from clipmlu.cli._groups import Option
from clipmlu.cli._help import command
from clipmlu.cli._notes import note, note_kept, note_skipped
from clipmlu.cli._options import (
    PATH,
    Integer,
    bundle_argument,
    comma_separated,
    json_option,
    overwrite_option,
    templates_option,
    threads_option,
    workers_option,
)
from clipmlu.cli._progress import STEPS
from clipmlu.cli._record import given_command
from clipmlu.cli._vendor_spelling import CompilingCommand
from clipmlu.errors import OptionError
from clipmlu.report.tables import echo_json
from clipmlu.specs import Precision

if TYPE_CHECKING:
    from clipmlu.compile.plan import CompileOptions
    from clipmlu.data.datasets.choice import DatasetChoice


@command(
    "sweep",
    short_help="Compare accuracy, speed and size of several precisions.",
    examples=("clipmlu sweep demo --precision force_float32 --batch-size 1,8 -o sweep",),
    kind=CompilingCommand,
)
@bundle_argument
@click.option(
    "-o", "--output", type=PATH, required=True, metavar="DIR", help="Directory of the bundles, results and report."
)
@Option(
    "--precision",
    "precisions",
    envvar="CLIPMLU_PRECISION",
    multiple=True,
    required=True,
    metavar="P[,P...]",
    help="Arithmetic; may be repeated. See 'clipmlu compile'.",
)
@Option(
    "--batch-size",
    "batch_sizes",
    envvar="CLIPMLU_BATCH_SIZE",
    multiple=True,
    default=("1,8,32",),
    show_default=True,
    metavar="N[,N...]",
    help="Images of a batch; may be repeated.",
)
@dataset_options(help="Measure accuracy on it: cifar100, cifar10, imagefolder:PATH or demo.")
@click.option("--samples", type=Integer(min=1), help="Evaluate the first N images. [default: all]")
@click.option("--seed", type=Integer(min=0), default=0, show_default=True, help="Seed of the demo dataset.")
@templates_option
@threads_option
@workers_option
@click.option(
    "--repetitions",
    type=Integer(min=1),
    default=3,
    show_default=True,
    help="Repetitions for each precision and batch size, alternating with the others; medians are shown.",
)
@click.option(
    "--duration",
    type=Integer(min=0),
    default=1000,
    show_default=True,
    help="Milliseconds of a throughput repetition; latency is measured for half as long.",
)
@sweep_options
@overwrite_option
@json_option
def sweep_command(
    bundle: Path,
    output: Path,
    precisions: tuple[str, ...],
    batch_sizes: tuple[str, ...],
    images: DatasetChoice | None,
    samples: int | None,
    seed: int,
    templates: str,
    threads: int,
    workers: int | None,
    repetitions: int,
    duration: int,
    options: CompileOptions,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Compile an exported BUNDLE in several precisions; measure their accuracy, speed and size at several batch sizes.

    The image tower is timed: images per second with two batches in flight, and the latency of one batch alone. A row is
    marked as on the front if no other row is better in accuracy, images per second and size together. The table is
    also written to DIR as sweep.json and sweep.md.

    To resume an interrupted sweep, run the same command again: only missing or invalid results are measured.

    If a precision is not offered by the target or fails a gate, its row has the reason. The exit code is then 3 for a
    gate, 1 otherwise.
    """
    from clipmlu.measure.accuracy.evaluate import EvalOptions
    from clipmlu.report.sweep import show_sweep, write_markdown
    from clipmlu.tune.sweep import TABLE_NAME, run_sweep
    from clipmlu.tune.sweep_options import SweepOptions

    sweep = SweepOptions(
        compile=dataclasses.replace(options, overwrite=overwrite),
        precisions=tuple(check_argument(text, Precision, "precision") for text in comma_separated(*precisions)),
        batch_sizes=tuple(_batch_size(text) for text in comma_separated(*batch_sizes)),
        evaluate=EvalOptions(samples=samples, seed=seed, templates=templates, workers=workers),
        threads=threads,
        repetitions=repetitions,
        duration_ms=duration,
    )
    source = None if images is None else images.open()
    with note_kept(output, "What was compiled and measured"):
        report = run_sweep(bundle, output, sweep, source, on_note=note, on_step=STEPS, command=given_command())
        write_markdown(report, output / TABLE_NAME)
    if as_json:
        echo_json(report)
    else:
        show_sweep(report)
    note_skipped(image.reason for image in report.skipped)
    return report.exit_code


def _batch_size(text: str) -> int:
    if not text.isdecimal():
        raise OptionError(f"batch size is '{text}'; expected numbers such as 8 or 1,8,32")
    return int(text)
