"""``clipmlu bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipmlu.cli._groups import Option, is_on_command_line
from clipmlu.cli._help import command
from clipmlu.cli._notes import note, note_skipped, warn
from clipmlu.cli._options import (
    PATH,
    Choice,
    Integer,
    Number,
    batch_size_option,
    bundle_argument,
    json_option,
    max_pixels_option,
    overwrite_option,
    workers_option,
)
from clipmlu.cli._progress import STEPS
from clipmlu.cli._record import recorded, shown_after
from clipmlu.errors import InputError, OptionError
from clipmlu.file_names import name_from_path
from clipmlu.report.tables import echo_json

if TYPE_CHECKING:
    from clipmlu.magicmind.mm_run import MmRunReport
    from clipmlu.measure.speed.speed import SpeedReport

_START = ""
"""Value of --http without a URL."""
_SCENARIOS = ("single-stream", "multi-stream", "server", "offline")
_OURS_ONLY = {
    "scenarios": "--scenario",
    "latency_bound_ms": "--latency-bound-ms",
    "queries_per_stream": "--queries-per-stream",
    "stages": "--stages/--no-stages",
    "images": "--images",
    "workers": "--workers",
    "http": "--http",
}
"""Parameters, and their options, that do not apply to the vendor's tool."""
_DEFAULTS = {
    None: {"warmup": 500, "duration": 10_000, "iterations": 10, "threads": 0},
    "mm_run": {"warmup": 200, "duration": 3000, "iterations": 100, "threads": 1},
}
"""Map each tool to its defaults; None is clipmlu's own measurement."""


def _defaults(name: str) -> str:
    return f"[default: {_DEFAULTS[None][name]}; mm_run: {_DEFAULTS['mm_run'][name]}]"


@command(
    "bench",
    short_help="Measure the speed of a compiled bundle.",
    examples=(
        "clipmlu bench demo-cpu",
        "clipmlu bench demo-cpu --images photos/ --output speed.json",
        "clipmlu bench demo-cpu --images photos/ --http",
    ),
)
@bundle_argument
@click.option(
    "--tool",
    type=Choice(["mm_run"]),
    help="Measure with the vendor's mm_run, on cards. [default: clipmlu's own measurement]",
)
@click.option(
    "--tower",
    type=Choice(["image", "text", "both", "joint"]),
    help="Graph to measure. [default: image, or joint if fused]",
)
@click.option(
    "--scenario",
    "scenarios",
    type=Choice(_SCENARIOS),
    multiple=True,
    help="Load of MLPerf Inference; may be repeated. [default: single-stream and offline]",
)
@batch_size_option
@click.option(
    "--warmup",
    type=Integer(min=0),
    help=f"Milliseconds of warm-up before the measurement. {_defaults('warmup')}",
)
@click.option(
    "--duration",
    type=Integer(min=0),
    help=f"Minimum milliseconds of each scenario and each rate. {_defaults('duration')}",
)
@click.option(
    "--iterations",
    type=Integer(min=1),
    help=f"Minimum number of queries; of batches offline and in mm_run. {_defaults('iterations')}",
)
@Option(
    "--threads",
    envvar="CLIPMLU_THREADS",
    type=Integer(min=0),
    help=f"CPU threads per batch, 0: the runtime decides; mm_run: threads for each card. {_defaults('threads')}",
)
@Option(
    "--devices",
    "--device",
    envvar="CLIPMLU_DEVICES",
    default="0",
    show_default=True,
    metavar="N[,N...]|all",
    help="Indices of the MLU cards, or (not with --tool) all of them.",
)
@click.option(
    "--latency-bound-ms",
    type=Number(min=0, min_open=True),
    help="Server: largest allowed 99th percentile of the latency.",
)
@click.option("--queries-per-stream", type=Integer(min=1), help="Multi-stream: images of one query. [default: 8]")
@click.option(
    "--images", type=PATH, metavar="FOLDER", help="Photos for the stage breakdown. [default: 64 generated images]"
)
@workers_option
@max_pixels_option
@click.option(
    "--stages/--no-stages",
    default=None,
    help="Image tower: also measure the pipeline from files to embeddings, stage by stage. [default: stages]",
)
@click.option(
    "--http",
    is_flag=False,
    flag_value=_START,
    metavar="[URL]",
    help="Measure requests with image files to a server: the one at the URL, which serves BUNDLE, or without URL one that is started "
    "and stopped.",
)
@click.option("--output", type=PATH, help="Also write the report as JSON to this file.")
@overwrite_option
@json_option
def bench_command(
    bundle: Path, tool: str | None, devices: str, output: Path | None, overwrite: bool, as_json: bool, **given: Any
) -> int:
    """Measure the speed of a compiled BUNDLE.

    Without --tool: start-up, memory, the load scenarios of MLPerf Inference (as LoadGen defines them; not an MLPerf
    result), and the pipeline from image files to embeddings with the stage that limits it. A static shape pads smaller
    batches.

    \b
    single-stream  one query of one image at a time; 90th percentile of latency
    multi-stream   one query of several images at a time; 99th percentile
    server         queries at random times; highest rate whose 99th percentile
                   is within --latency-bound-ms
    offline        all images at once, two batches in flight; images/s

    With --http each query is a request with image files (--images) to a server, and its latency ends with the whole answer. The
    server batches; offline and in the server scenario up to three batches of requests run at a time.

    With --tool mm_run the vendor's tool measures one graph. Throughput is then batches per second times images per
    batch, because the tool's own figure may count texts if the graph has several inputs.
    """
    from clipmlu.backends.several_devices import check_devices
    from clipmlu.files.publish import check_files_free, encode_json, write_file
    from clipmlu.report.speed import show_speed, show_tool

    check_files_free([output], overwrite=overwrite)
    chosen: dict[str, Any] = {
        name: default if given[name] is None else given[name] for name, default in _DEFAULTS[tool].items()
    }
    times = {
        "warmup_ms": chosen["warmup"],
        "duration_ms": chosen["duration"],
        "iterations": chosen["iterations"],
        "threads": chosen["threads"],
        "devices": check_devices(devices),
    }
    unreadable: list[str] = []
    report: Any
    report = _measure(bundle, given, times, unreadable) if tool is None else _run_tool(bundle, given, times)
    show = echo_json if as_json else show_speed if tool is None else show_tool
    with shown_after(lambda: show(report)):
        if output is not None:
            write_file(output, encode_json(report), overwrite=overwrite)
    return note_skipped(unreadable)


def _measure(bundle: Path, given: dict[str, Any], times: dict[str, Any], unreadable: list[str]) -> SpeedReport:
    from clipmlu.api.measuring import measure_http
    from clipmlu.data.finding import list_images
    from clipmlu.measure.speed.loads import DEFAULT_SCENARIOS, SpeedOptions
    from clipmlu.measure.speed.scenarios import QUERIES_PER_STREAM
    from clipmlu.measure.speed.speed import measure_speed

    if given["images"] is not None and given["stages"] is False:
        raise OptionError("--images is for the stage breakdown; leave out one of --images and --no-stages")
    images = None
    if given["images"] is not None:
        images, reasons = list_images(given["images"], warn)
        unreadable += reasons
        if not images:
            raise InputError(
                f"'{name_from_path(given['images'])}' is no folder that holds images; expected some to measure the stages with. "
                + " ".join(reasons)
            )
    options = SpeedOptions(
        tower=given["tower"],
        scenarios=given["scenarios"] or DEFAULT_SCENARIOS,
        batch_size=given["batch_size"],
        latency_bound_ms=given["latency_bound_ms"],
        queries_per_stream=given["queries_per_stream"] or QUERIES_PER_STREAM,
        stages=given["stages"] is not False,
        images=images,
        workers=given["workers"],
        max_pixels=given["max_pixels"],
        **times,
    )
    if given["http"] is not None:
        return recorded(measure_http(bundle, given["http"] or True, options, on_note=note, on_step=STEPS))
    report = recorded(measure_speed(bundle, options, on_note=note, on_step=STEPS))
    if report.pipeline is not None:
        unreadable += report.pipeline.unreadable
    return report


def _run_tool(bundle: Path, given: dict[str, Any], times: dict[str, Any]) -> MmRunReport:
    from clipmlu.bundle.directory import open_compiled
    from clipmlu.magicmind.mm_run import MmRunOptions, run_mm_run

    foreign = [name for name in _OURS_ONLY if given[name] not in (None, ()) and is_on_command_line(name)]
    if foreign or given["tower"] == "both":
        what = _OURS_ONLY[foreign[0]] if foreign else "--tower both"
        raise OptionError(f"{what} is not for --tool mm_run; leave one of them out")
    options = MmRunOptions(tower=given["tower"], batch_size=given["batch_size"], **times)
    return run_mm_run(open_compiled(bundle), options)
