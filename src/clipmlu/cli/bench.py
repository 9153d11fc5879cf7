"""``clipmlu bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._shared import (
    PATH,
    batch_size_option,
    bundle_argument,
    console,
    echo_json,
    json_option,
    print_facts,
)
from clipmlu.errors import OptionError

if TYPE_CHECKING:
    from clipmlu.measure.mm_run import MmRunReport


@click.command("bench")
@bundle_argument
@click.option(
    "--tool", type=click.Choice(["mm_run"]), required=True, help="What measures: the vendor's mm_run, on cards."
)
@click.option(
    "--tower", type=click.Choice(["image", "text", "joint"]), help="Which graph. [default: image, or joint if fused]"
)
@batch_size_option
@click.option(
    "--warmup", type=click.IntRange(min=0), default=200, show_default=True, help="Milliseconds before measuring."
)
@click.option(
    "--duration", type=click.IntRange(min=0), default=3000, show_default=True, help="At least so many milliseconds."
)
@click.option(
    "--iterations", type=click.IntRange(min=1), default=100, show_default=True, help="At least so many batches."
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads for each card.")
@click.option("--devices", default="0", show_default=True, metavar="N[,N...]", help="Indices of the cards.")
@click.option("--output", type=PATH, help="Also write the report as JSON to this file.")
@json_option
def bench_command(
    bundle: Path,
    tool: str,
    tower: str | None,
    batch_size: int | None,
    warmup: int,
    duration: int,
    iterations: int,
    threads: int,
    devices: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure the speed of a compiled BUNDLE on MLU cards with the vendor's tool.

    Throughput is batches per second times images per batch: with several inputs the tool's own figure may count texts.
    """
    from clipmlu.bundle import open_compiled, write_file
    from clipmlu.measure.mm_run import MmRunOptions, encode_mm_run, run_mm_run

    options = MmRunOptions(
        tower=tower,  # type: ignore[arg-type]
        batch_size=batch_size,
        warmup_ms=warmup,
        duration_ms=duration,
        iterations=iterations,
        threads=threads,
        devices=_devices(devices),
    )
    report = run_mm_run(open_compiled(bundle), options)
    if output is not None:
        write_file(output, encode_mm_run(report))
    if as_json:
        echo_json(encode_mm_run(report))
    else:
        _show(report)


def _devices(text: str) -> tuple[int, ...]:
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(piece.isdecimal() for piece in pieces):
        raise OptionError(f"devices are '{text}'; expected indices such as 0 or 0,1")
    return tuple(int(piece) for piece in pieces)


def _show(report: MmRunReport) -> None:
    from rich.table import Table

    rate = report.images_per_second if report.images_per_second is not None else report.texts_per_second
    unit = "images/s" if report.images_per_second is not None else "texts/s"
    facts = {
        "model": f"{report.model}, {report.tower} graph, {report.precision.value}, batch {report.batch_size}",
        "throughput": f"{rate:.1f} {unit} ({report.iterations_per_second:.2f} batches/s)",
        "tool": f"{report.tool}, {report.summaries[0].format} format",
        "tool's own qps": ", ".join(f"{summary.tool_qps:g}" for summary in report.summaries)
        + " (as printed: rows of its largest input)",
    }
    print_facts(facts.items())
    for summary in report.summaries:
        table = Table("stage, ms", "mean", "median", "p90", "p95", "p99", "min", "max")
        for stage, each in summary.latencies.items():
            numbers = (each.mean_ms, each.median_ms, each.p90_ms, each.p95_ms, each.p99_ms, each.min_ms, each.max_ms)
            table.add_row(stage, *(f"{number:g}" for number in numbers))
        console().print(table)
