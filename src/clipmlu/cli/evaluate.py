"""``clipmlu eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._datasets import dataset_options, sampling_options
from clipmlu.cli._engines import engine_options
from clipmlu.cli._help import command
from clipmlu.cli._notes import note, note_skipped, warn
from clipmlu.cli._options import (
    PATH,
    Number,
    RunningOptions,
    bundle_argument,
    json_option,
    overwrite_option,
    running_options,
    templates_option,
)
from clipmlu.cli._progress import STEPS, ProgressView
from clipmlu.cli._record import recorded, shown_after
from clipmlu.cli._retrieval import RetrievalRequest, evaluate_pairs, is_classification, retrieval_options
from clipmlu.report.tables import echo_json

if TYPE_CHECKING:
    from clipmlu.data.datasets.choice import DatasetChoice
    from clipmlu.jobs.engines.options import EngineOptions

_MAX_DROP = 0.01


@command(
    "eval",
    short_help="Measure zero-shot accuracy on a labelled dataset, or retrieval.",
    examples=(
        "clipmlu eval demo-cpu --dataset demo",
        "clipmlu eval demo-cpu --dataset imagefolder:shapes --templates openai-imagenet",
        "clipmlu eval demo-cpu --dataset demo --output report.json",
        "clipmlu eval demo-cpu captions.csv --task retrieval",
    ),
)
@bundle_argument
@click.argument("pairs", type=PATH, nargs=-1)
@dataset_options(is_wanted=is_classification)
@sampling_options("Evaluate the first N images. [default: all]")
@templates_option
@running_options
@engine_options
@retrieval_options
@click.option("--allow-overlap", is_flag=True, help="Also evaluate images that the bundle was calibrated with.")
@click.option(
    "--baseline", type=PATH, metavar="REPORT", help="Gate: compare with this report of --output, on the same images."
)
@click.option(
    "--max-drop", type=Number(0, 1), help="Allowed loss of top-1 against --baseline, a fraction. [default: 0.01]"
)
@click.option(
    "--reject-below",
    type=Number(0, 1),
    metavar="P",
    help="Also report the accuracy without the images whose best class has a smaller probability.",
)
@click.option("--output", type=PATH, help="Also write the report as JSON to this file.")
@click.option("--sample-files", type=PATH, metavar="DIR", help="Also write the result files of the vendor's sample.")
@overwrite_option
@click.option("--per-class", is_flag=True, help="Show every class, not only the hardest ones.")
@json_option
def eval_command(
    bundle: Path,
    retrieval: RetrievalRequest | None,
    images: DatasetChoice | None,
    samples: int | None,
    shuffle: bool,
    seed: int,
    templates: str,
    running: RunningOptions,
    engine: EngineOptions,
    allow_overlap: bool,
    baseline: Path | None,
    max_drop: float | None,
    reject_below: float | None,
    output: Path | None,
    sample_files: Path | None,
    overwrite: bool,
    per_class: bool,
    as_json: bool,
) -> int:
    """Measure the zero-shot accuracy of a compiled BUNDLE on a labelled dataset.

    With --task retrieval: measure how well the images and texts of PAIRS find each other. PAIRS are .csv or .tsv files with columns for
    the image and the text, .jsonl or .json files (also COCO's captions and Karpathy's splits), or .tar archives of WebDataset. An image
    may have several texts.
    """
    if retrieval is not None:
        return evaluate_pairs(
            bundle, retrieval, running, baseline=baseline, output=output, overwrite=overwrite, as_json=as_json
        )
    if images is None:
        raise click.MissingParameter(param_type="option", param_hint="'--dataset'")
    from clipmlu.errors import OptionError
    from clipmlu.files.publish import check_files_free, encode_json, write_file
    from clipmlu.jobs.evaluation import evaluate_in_parts
    from clipmlu.measure.accuracy.evaluate import EvalOptions
    from clipmlu.measure.accuracy.report import check_baseline, compare_with_baseline, read_report
    from clipmlu.measure.accuracy.tally import ImageResult
    from clipmlu.report.accuracy import describe_interrupted, show_accuracy
    from clipmlu.report.vendor_files import accuracy_lines, sample_paths, write_sample_files

    if max_drop is not None and baseline is None:
        raise OptionError("--max-drop needs a --baseline to compare with")
    wanted = [output, *(sample_paths(sample_files) if sample_files is not None else ())]
    check_files_free(wanted, overwrite=overwrite)
    earlier = None if baseline is None else read_report(baseline)
    options = EvalOptions(
        samples=samples,
        shuffle=shuffle,
        seed=seed,
        batch_size=running.batch_size,
        templates=templates,
        allow_overlap=allow_overlap,
        workers=running.workers,
        reject_below=reject_below,
    )
    results: list[ImageResult] = []
    with running.load(bundle) as encoder:
        source = images.open()
        emulated = encoder.bundle.compilation.emulated
        with ProgressView("evaluating") as progress:
            progress.start(samples or len(source))
            report = evaluate_in_parts(
                encoder,
                source,
                options,
                engine,
                choice=images,
                on_result=results.append if sample_files else None,
                on_progress=lambda images: progress.add(images=images),
                on_load=lambda load: progress.add(load=load),
                on_interrupt=lambda tally, wanted: warn(describe_interrupted(tally, wanted, emulated=emulated)),
                on_note=note,
                on_step=STEPS,
            )
    if earlier is not None:
        report = compare_with_baseline(report, earlier, _MAX_DROP if max_drop is None else max_drop)
    report = recorded(report)

    def show() -> None:
        if as_json:
            echo_json(report)
            return
        show_accuracy(report, per_class=per_class)
        for line in accuracy_lines(report) if sample_files is not None else ():
            click.echo(line)

    with shown_after(show):
        if output is not None:
            write_file(output, encode_json(report), overwrite=overwrite)
        if sample_files is not None:
            write_sample_files(sample_files, results, source.original_names, report, overwrite=overwrite)
    exit_code = note_skipped(image.reason for image in report.skipped)
    check_baseline(report)
    return exit_code
