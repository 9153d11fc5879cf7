"""The result files and accuracy lines of the vendor's sample."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from clipmlu.arguments import as_path
from clipmlu.files.publish import write_files
from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.measure.accuracy.tally import ImageResult

_SAMPLE_FILES = ("infer_result.txt", "eval_labels.txt", "eval_result_1.txt", "eval_result_5.txt", "eval_result.txt")


def sample_paths(directory: str | os.PathLike[str]) -> list[Path]:
    """Return the paths of the files that ``write_sample_files`` writes."""
    folder = as_path(directory, "the output")
    return [folder / name for name in _SAMPLE_FILES]


def write_sample_files(
    directory: str | os.PathLike[str],
    results: Sequence[ImageResult],
    class_names: Sequence[str],
    report: AccuracyReport,
    *,
    overwrite: bool = False,
) -> None:
    """Write results in the format of the vendor's CLIP sample: four text files, and the two accuracy lines in a fifth.

    Format (Cambricon magicmind_cloud, clip_pytorch/infer_python/infer.py and cv/utils/compute_top1_and_top5.py):
    ``[i]: class`` lines for labels, best class and best five classes; ``top5 result:`` and five ``rank [name]`` lines.

    Args:
        directory: output folder; created if missing.
        results: one per image, in order.
        class_names: names in the dataset's own spelling.
        report: source of the accuracies.
        overwrite: replace existing files.

    Raises:
        OutputExistsError: a file exists, and ``overwrite`` is False.
        OutputError: a file cannot be written.
    """
    labels = [f"[{number}]: {result.label}" for number, result in enumerate(results)]
    best = [f"[{number}]: {result.ranked[0]}" for number, result in enumerate(results)]
    five = [f"[{number}]: {index}" for number, result in enumerate(results) for index in result.ranked]
    named = [
        line
        for result in results
        for line in ("top5 result:", *(f"{rank} [{class_names[index]}]" for rank, index in enumerate(result.ranked)))
    ]
    contents = (named, labels, best, five, accuracy_lines(report))
    files = {
        path: ("\n".join(lines) + "\n").encode() for path, lines in zip(sample_paths(directory), contents, strict=True)
    }
    write_files(files, overwrite=overwrite)


def accuracy_lines(report: AccuracyReport) -> list[str]:
    """Return the lines in which the vendor's sample prints its accuracies."""
    lines = [f"top1 accuracy: {report.top1:f}"]
    return lines if report.top5 is None else [*lines, f"top5 accuracy: {report.top5:f}"]
