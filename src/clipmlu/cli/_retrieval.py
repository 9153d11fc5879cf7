"""Options and work of ``clipmlu eval --task retrieval``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from clipmlu.cli._groups import Option, OptionGroup, is_on_command_line
from clipmlu.cli._notes import note_skipped
from clipmlu.cli._options import PATH, Choice, Number, RunningOptions
from clipmlu.cli._progress import STEPS
from clipmlu.cli._record import recorded, shown_after
from clipmlu.errors import OptionError
from clipmlu.keywords import pick_keywords
from clipmlu.report.tables import echo_json

RETRIEVAL = "retrieval"
_TASKS = ("classification", RETRIEVAL)
_HEADING = "Retrieval"
_OF_CLASSIFICATION = (
    "dataset",
    "data_dir",
    "class_names",
    "folder_names",
    "templates",
    "max_drop",
    "reject_below",
    "sample_files",
    "per_class",
    "processes",
    "engine_name",
    "ray_address",
)
_OF_RETRIEVAL = ("image_column", "text_column", "image_root", "reference", "max_recall_drop")


@dataclasses.dataclass(frozen=True)
class RetrievalRequest:
    """What a command line says about retrieval.

    Attributes:
        pairs: the files of pairs.
        keywords: keywords of ``evaluate_retrieval`` for reading them and choosing images.
        reference: the bundle to compare rankings with, or None.
        max_recall_drop: allowed loss against the baseline, or None.
    """

    pairs: tuple[Path, ...]
    keywords: Mapping[str, Any]
    reference: Path | None
    max_recall_drop: float | None


def is_classification(given: Mapping[str, Any]) -> bool:
    """Return whether a command measures the accuracy of classification."""
    return bool(given["task"] != RETRIEVAL)


def _request(given: Mapping[str, Any]) -> RetrievalRequest | None:
    """Return the request; None for classification.

    Raises:
        OptionError: an option is of the other task.
    """
    if is_classification(given):
        if given["pairs"]:
            raise OptionError(
                f"the files of pairs ('{given['pairs'][0]}') are for --task retrieval; add it, or leave them out"
            )
        _refuse(_OF_RETRIEVAL, RETRIEVAL)
        return None
    _refuse(_OF_CLASSIFICATION, "classification")
    if not given["pairs"]:
        raise click.MissingParameter(param_type="argument", param_hint="'PAIRS'")
    from clipmlu.api import measure_keywords

    keywords = pick_keywords(given, measure_keywords.RetrievalKeywords)
    return RetrievalRequest(given["pairs"], keywords, given["reference"], given["max_recall_drop"])


def _refuse(names: Iterable[str], task: str) -> None:
    """Check that none of some options was given on the command line."""
    for name in filter(is_on_command_line, names):
        option = name.removesuffix("_name").replace("_", "-")
        raise OptionError(f"--{option} is for --task {task}; leave one of them out")


retrieval_options = OptionGroup(
    "retrieval",
    (
        Option(
            "--task",
            type=Choice(_TASKS),
            default=_TASKS[0],
            show_default=True,
            help="What to measure: the accuracy of classification on a --dataset, or retrieval between the images and texts of PAIRS.",
        ),
        Option(
            "--image-column",
            metavar="NAME",
            help="Column or field of the image's path in PAIRS. [default: image, filepath, ...]",
        ),
        Option(
            "--text-column", metavar="NAME", help="Column or field of the texts in PAIRS. [default: caption, text, ...]"
        ),
        Option(
            "--image-root",
            type=PATH,
            metavar="DIR",
            help="Folder of relative paths in PAIRS. [default: that of the file]",
        ),
        Option(
            "--reference",
            type=PATH,
            metavar="BUNDLE",
            help="Also report how far the rankings agree with those of this bundle, such as the float one.",
        ),
        Option(
            "--max-recall-drop",
            type=Number(0, 1),
            help="Allowed loss of recall@1 against --baseline in each direction, a fraction. [default: 0.01]",
        ),
    ),
    _request,
    reads=("pairs", "split", "samples", "shuffle", "seed", "max_pixels", "allow_overlap", "batch_size", "workers"),
    heading=_HEADING,
)
"""Adds ``--task`` and the options of retrieval; the command gets ``retrieval``, a ``RetrievalRequest``, or None."""


def evaluate_pairs(
    bundle: Path,
    request: RetrievalRequest,
    running: RunningOptions,
    *,
    baseline: Path | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Evaluate a bundle on pairs, show and write the report, and return the exit code."""
    import contextlib

    from clipmlu.api.measure_keywords import pair_choice
    from clipmlu.files.publish import check_files_free, encode_json, write_file
    from clipmlu.measure.retrieval.evaluate import RetrievalOptions, evaluate_retrieval
    from clipmlu.measure.retrieval.report import (
        DEFAULT_MAX_RECALL_DROP,
        check_recall,
        compare_with_recall,
        read_retrieval_report,
    )
    from clipmlu.model import load
    from clipmlu.report.retrieval import show_retrieval

    if request.max_recall_drop is not None and baseline is None:
        raise OptionError("--max-recall-drop needs a --baseline to compare with")
    check_files_free([output], overwrite=overwrite)
    earlier = None if baseline is None else read_retrieval_report(baseline)
    names = {field.name for field in dataclasses.fields(RetrievalOptions)}
    options = RetrievalOptions(**{name: value for name, value in request.keywords.items() if name in names})
    with STEPS("reading the pairs"):
        pairs = pair_choice(request.pairs, {**request.keywords, "max_pixels": running.max_pixels}).open()
    with contextlib.ExitStack() as stack:
        encoder = stack.enter_context(running.load(bundle))
        reference = None
        if request.reference is not None:
            other = load(
                request.reference,
                threads=running.threads,
                fast_preprocess=running.fast_preprocess,
                max_pixels=running.max_pixels,
                busy_wait=False,
            )
            reference = stack.enter_context(other)
        report = evaluate_retrieval(encoder, pairs, options, reference=reference, on_step=STEPS)
    if earlier is not None:
        allowed = DEFAULT_MAX_RECALL_DROP if request.max_recall_drop is None else request.max_recall_drop
        report = compare_with_recall(report, earlier, allowed)
    report = recorded(report)
    with shown_after(lambda: echo_json(report) if as_json else show_retrieval(report)):
        if output is not None:
            write_file(output, encode_json(report), overwrite=overwrite)
    exit_code = note_skipped(image.reason for image in report.skipped)
    check_recall(report)
    return exit_code
