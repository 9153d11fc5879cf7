"""``clipmlu run``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipmlu.cli._compiling import commands_for_bundle, compile_options
from clipmlu.cli._completion import complete_model, complete_tag
from clipmlu.cli._datasets import dataset_options
from clipmlu.cli._help import command
from clipmlu.cli._notes import note, note_next, note_skipped, warn
from clipmlu.cli._options import (
    PATH,
    Integer,
    json_option,
    layout_option,
    templates_option,
    threads_option,
    workers_option,
)
from clipmlu.cli._progress import STEPS, ProgressView
from clipmlu.cli._record import given_command
from clipmlu.cli._vendor_spelling import CompilingCommand
from clipmlu.report.tables import echo_json, figures, print_table, words
from clipmlu.report.wrapping import Whole

if TYPE_CHECKING:
    from clipmlu.compile.plan import CompileOptions
    from clipmlu.data.datasets.choice import DatasetChoice
    from clipmlu.specs import Layout


def _usual_dataset(given: Mapping[str, Any]) -> str:
    return "demo" if given["model"] == "demo" else "cifar100"


@command(
    "run",
    short_help="Export, compile and evaluate a model in one go.",
    examples=(
        "clipmlu run demo",
        "clipmlu run ViT-B-32::openai --dataset cifar100 -o b32-run",
        "clipmlu run ViT-B-32::openai --precision qint8_mixed_float32 --calib cifar100",
    ),
    kind=CompilingCommand,
)
@click.argument("model", shell_complete=complete_model)
@dataset_options(_usual_dataset, help="As for 'clipmlu eval'. [default: demo for the demo model, else cifar100]")
@click.option(
    "-o", "--output", type=PATH, default=Path("clipmlu-run"), show_default=True, help="Folder of bundles and reports."
)
@click.option("--pretrained", shell_complete=complete_tag, metavar="TAG|FILE", help="As for 'clipmlu export'.")
@click.option("--random-weights", is_flag=True, help="As for 'clipmlu export'.")
@layout_option
@click.option(
    "--seed",
    type=Integer(min=0),
    default=0,
    show_default=True,
    help="Seed of random weights, --shuffle and demo images.",
)
@compile_options
@click.option("--samples", type=Integer(min=1), default=None, help="Images to evaluate. [default: all]")
@click.option("--shuffle", is_flag=True, help="Select --samples at random.")
@templates_option
@threads_option
@workers_option
@click.option(
    "--html/--no-html",
    default=True,
    show_default=True,
    help="Also write the report as an HTML page, if the extra 'report' is installed.",
)
@json_option
def run_command(
    model: str,
    images: DatasetChoice,
    output: Path,
    pretrained: str | None,
    random_weights: bool,
    layout: Layout,
    seed: int,
    options: CompileOptions,
    samples: int | None,
    shuffle: bool,
    templates: str,
    threads: int,
    workers: int | None,
    html: bool,
    as_json: bool,
) -> int:
    """Export, compile and evaluate MODEL; bundles in the output folder are reused if they are still valid."""
    from clipmlu.chain import RunOptions, run_chain
    from clipmlu.export.exporter import ExportOptions
    from clipmlu.measure.accuracy.evaluate import EvalOptions

    chain = RunOptions(
        export=ExportOptions(
            pretrained=pretrained,
            random_weights=random_weights,
            seed=seed,
            layout=layout,
            offline=not images.download,
            overwrite=True,
        ),
        compile=dataclasses.replace(options, overwrite=True),
        evaluate=EvalOptions(samples=samples, shuffle=shuffle, seed=seed, templates=templates, workers=workers),
        dataset=images,
        threads=threads,
        html=html,
    )
    with ProgressView("evaluating", samples) as progress:
        report = run_chain(
            model,
            output,
            chain,
            on_note=note,
            on_warning=warn,
            on_progress=lambda images: progress.add(images=images),
            on_step=STEPS,
            command=given_command(),
        )
    if as_json:
        echo_json(report)
    else:
        from clipmlu.report.accuracy import show_accuracy

        show_accuracy(report.accuracy, per_class=False)
        rows = [(step.name, step.result, f"{step.elapsed_s:.1f}", Whole(step.path)) for step in report.steps]
        columns = (*words("step", "result"), *figures("seconds"), *words("where"))
        print_table(columns, rows, title="steps")
    code = note_skipped(image.reason for image in report.accuracy.skipped)
    if layout == "towers":
        compiled = next(step.path for step in report.steps if step.name == "compile")
        note_next(*commands_for_bundle(Path(compiled), demo=model == "demo")[1:])
    return code
