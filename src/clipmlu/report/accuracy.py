"""Accuracy reports on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipmlu.bundle.manifest import emulated_mark
from clipmlu.display import counted
from clipmlu.measure.statistics import fraction_text, wilson_interval, with_interval
from clipmlu.report.tables import describe_provenance, figures, print_facts, print_table, words

if TYPE_CHECKING:
    from clipmlu.measure.accuracy.report import AccuracyReport, ClassAccuracy
    from clipmlu.measure.accuracy.tally import Tally


_CLASSES_SHOWN = 10


CLASS_COLUMNS = (*words("class"), *figures("images", "top-1"))


def accuracy_facts(report: AccuracyReport) -> dict[str, str]:
    """Return the facts of an accuracy report, by name, for people."""
    mark = emulated_mark(report.provenance.emulated)
    top5 = "none (fewer than six classes)"
    if report.top5 is not None and report.top5_interval is not None:
        top5 = with_interval(report.top5, report.top5_interval)
    rows = {
        "model": describe_provenance(report.provenance),
        "dataset": f"{report.dataset}, {report.split}, {counted(report.classes, 'class')}",
        "images": f"{report.images}" + (f" ({len(report.skipped)} skipped)" if report.skipped else ""),
        "top-1": with_interval(report.top1, report.top1_interval),
        "top-5": top5,
        "mean per class": fraction_text(report.mean_per_class),
        "calibration error": f"{report.expected_calibration_error:.4f}",
        "preprocessing": "fast: not the pixels of open_clip" if report.fast_preprocess else "exact",
        "speed": f"{report.images_per_second:.1f} images/s{mark}",
    }
    if report.rejection is not None:
        rows |= report.rejection.facts()
    if report.calibration_overlap:
        rows["overlap"] = (
            f"{report.calibration_overlap} of these images also served for calibration: the figures are too high"
        )
    if report.calibration_prompts:
        rows["prompts"] = (
            f"{report.calibration_prompts} of them also served as prompts for the calibration of the text tower"
        )
    if report.baseline is not None:
        found = report.baseline
        rows["baseline"] = f"top-1 {fraction_text(found.top1)}, drop {found.drop:+.4f}, allowed {found.max_drop:g}"
    return rows


def hardest_classes(report: AccuracyReport) -> list[ClassAccuracy]:
    """Return the classes with images, the smallest accuracy first."""
    counted = [row for row in report.per_class if row.top1 is not None]
    return sorted(counted, key=lambda row: (row.top1 or 0.0, row.class_name))


def class_cells(row: ClassAccuracy) -> tuple[str, ...]:
    """Return the texts of a class, one for each of ``CLASS_COLUMNS``."""
    return row.class_name, str(row.images), "" if row.top1 is None else fraction_text(row.top1)


def show_accuracy(report: AccuracyReport, *, per_class: bool) -> None:
    """Print an accuracy report on stdout."""
    print_facts(accuracy_facts(report).items())
    counted = [row for row in report.per_class if row.top1 is not None]
    hardest = hardest_classes(report)
    shown = counted if per_class else [row for row in hardest[:_CLASSES_SHOWN] if row.top1 != 1]
    print_table(
        CLASS_COLUMNS,
        map(class_cells, shown),
        title="classes" if per_class else "hardest classes",
    )
    confusions = report.confusions[:_CLASSES_SHOWN]
    print_table(
        (*words("class", "taken for"), *figures("images")),
        [(each.class_name, each.predicted, str(each.images)) for each in confusions],
        title="confusions",
        keys=2,
    )


def describe_interrupted(tally: Tally, wanted: int, *, emulated: bool) -> str:
    """Return one line about an evaluation that ends early.

    Args:
        tally: counts so far, of at least one image.
        wanted: number of requested images.
        emulated: the emulated vendor SDK was used.
    """
    found = with_interval(tally.correct / tally.images, wilson_interval(tally.correct, tally.images))
    return f"Stopped after {tally.images} of {wanted} images: top-1 so far {found}{emulated_mark(emulated)}."
