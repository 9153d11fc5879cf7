"""``clipmlu compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipmlu.cli._datasets import dataset_options, sampling_options
from clipmlu.cli._help import command
from clipmlu.cli._notes import note, note_skipped
from clipmlu.cli._options import (
    PATH,
    Choice,
    Number,
    batch_size_option,
    device_option,
    json_option,
    max_pixels_option,
    overwrite_option,
    templates_option,
    threads_option,
    workers_option,
)
from clipmlu.cli._progress import STEPS
from clipmlu.cli._record import recorded, shown_after
from clipmlu.report.tables import echo_json

if TYPE_CHECKING:
    from clipmlu.data.datasets.choice import DatasetChoice

_SAMPLES = 256  # equals measure.compare.DEFAULT_SAMPLES; importing that would load the runtimes


@command(
    "compare",
    short_help="Compare two bundles node by node and by predictions.",
    examples=(
        "clipmlu compare demo-cpu demo",
        "clipmlu compare int8 demo-cpu --dataset imagefolder:shapes",
    ),
)
@click.argument("measured", metavar="A", type=PATH)
@click.argument("reference", metavar="B", type=PATH)
@dataset_options(default_size=_SAMPLES, default="demo", show_default=True)
@sampling_options(f"Compare on the first N images. [default: {_SAMPLES}, or all of fewer]")
@templates_option
@batch_size_option
@threads_option
@workers_option
@max_pixels_option
@device_option
@click.option(
    "--tower",
    type=Choice(["image", "text", "both"]),
    default="both",
    show_default=True,
    help="Towers whose nodes are compared.",
)
@click.option(
    "--threshold",
    type=Number(-1, 1),
    default=0.99,
    show_default=True,
    help="A node diverges if its cosine similarity is smaller.",
)
@click.option(
    "--ablate", is_flag=True, help="Rank the roles by their quantisation error: keep one role at a time in float."
)
@click.option(
    "--source", type=PATH, metavar="EXPORTED", help="Exported bundle that A was compiled from, if B is another bundle."
)
@click.option("--all", "show_all", is_flag=True, help="Show every node in the graph's order, not only the worst ones.")
@click.option("--heatmap", type=PATH, metavar="FILE", help="Draw blocks and roles to this .png or .svg file.")
@click.option("--output", type=PATH, help="Also write the report as JSON to this file.")
@overwrite_option
@click.option("--allow-overlap", is_flag=True, help="Also compare images that a bundle was calibrated with.")
@json_option
def compare_command(
    measured: Path,
    reference: Path,
    images: DatasetChoice,
    samples: int | None,
    shuffle: bool,
    seed: int,
    templates: str,
    batch_size: int | None,
    threads: int,
    workers: int | None,
    device: int,
    tower: Any,
    threshold: float,
    ablate: bool,
    source: Path | None,
    show_all: bool,
    heatmap: Path | None,
    output: Path | None,
    overwrite: bool,
    allow_overlap: bool,
    as_json: bool,
) -> int:
    """Compare bundle A with bundle B of the same model, node by node and by predictions.

    B is the reference: another compiled bundle, or the exported bundle that A was compiled from (float graphs). Nodes
    run on the CPU in float32 kernels that simulate the mode, embeddings and predictions on the bundles' own targets.
    The intermediate tensors of a bundle for a real MLU card cannot be read.
    """
    from clipmlu.files.publish import check_files_free, encode_json, write_files
    from clipmlu.measure.compare import compare
    from clipmlu.report.comparison import draw_comparison, show_comparison
    from clipmlu.report.heatmap import check_drawable

    if heatmap is not None:
        check_drawable(heatmap)
    check_files_free([output, heatmap], overwrite=overwrite)
    options = compare.CompareOptions(
        samples=samples,
        shuffle=shuffle,
        seed=seed,
        batch_size=batch_size,
        templates=templates,
        tower=tower,
        threshold=threshold,
        ablate=ablate,
        source=source,
        allow_overlap=allow_overlap,
        threads=threads,
        workers=workers,
        device=device,
    )
    report = compare.compare_bundles(measured, reference, images.open(), options, on_note=note, on_step=STEPS)
    report = recorded(report)
    with shown_after(lambda: echo_json(report) if as_json else show_comparison(report, show_all=show_all)):
        files = {} if output is None else {output: encode_json(report)}
        if heatmap is not None:
            files[heatmap] = draw_comparison(report, heatmap)
        write_files(files, overwrite=overwrite)
    return note_skipped(image.reason for image in report.skipped)
