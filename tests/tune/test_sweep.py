"""Sweeps of the tiny model: what is compiled, measured and kept, what is done again, and which rows are worth having."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import support
from clipmlu.bundle.directory import ExportedBundle, open_compiled
from clipmlu.compile.compiler import CompileOptions
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.data.datasets import open_dataset
from clipmlu.errors import BundleExistsError, OptionError
from clipmlu.measure.accuracy.evaluate import EvalOptions, evaluate
from clipmlu.specs import Precision, QuantisationOptions
from clipmlu.tune import sweep
from clipmlu.tune.resume import Repetition
from clipmlu.tune.sweep import SweepOptions, run_sweep
from clipmlu.tune.sweep_report import SweepReport, SweepRow, mark_front, pareto_front, render_markdown

FLOAT32, FLOAT16, INT8 = Precision.FORCE_FLOAT32, Precision.FORCE_FLOAT16, Precision.QINT8_MIXED_FLOAT32


def options(*precisions: Precision, batch_sizes: tuple[int, ...] = (1, 4), **changes: Any) -> SweepOptions:
    compile_ = changes.pop("compile", CompileOptions(target="cpu"))
    quick: dict[str, Any] = {"duration_ms": 1, "repetitions": 2, "evaluate": EvalOptions(samples=12)}
    return SweepOptions(compile=compile_, precisions=precisions, batch_sizes=batch_sizes, **{**quick, **changes})


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Replaces the clock: each measurement is one image a second faster than the one before; lists their batch sizes."""
    calls: list[tuple[int, float]] = []

    def measure(graph: Any, batch_size: int, seconds: float) -> Repetition:
        calls.append((batch_size, seconds))
        return Repetition(images_per_second=float(len(calls)), latency_ms=10.0 * len(calls))

    monkeypatch.setattr(sweep, "_time", measure)
    return calls


@pytest.fixture
def notes() -> list[str]:
    return []


def test_a_text_is_no_list_of_precisions() -> None:
    with pytest.raises(OptionError, match="precisions is 'force_float32'; expected a tuple"):
        SweepOptions(compile=CompileOptions(), precisions="force_float32", batch_sizes=(1,))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="keep float is 'mlp_out'; expected a tuple"):
        QuantisationOptions(keep_float="mlp_out")  # type: ignore[arg-type]


def test_front_by_brute_force() -> None:
    """On every point of a small grid of numbers: a point is off the front when another one beats it."""
    assert pareto_front([(1.0, 5.0), (2.0, 4.0), (2.0, 3.0), (0.0, 6.0), (0.0, 5.0)]) == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert pareto_front([(1.0, 1.0), (1.0, 1.0), (0.0, 1.0)]) == [True, True, False]
    assert pareto_front([]) == []
    generator = np.random.default_rng(0)
    points = generator.integers(0, 5, (40, 3)).astype(float)
    weakly = (points[None] >= points[:, None]).all(axis=2)
    strictly = (points[None] > points[:, None]).any(axis=2)
    assert pareto_front(points.tolist()) == (~(weakly & strictly).any(axis=1)).tolist()


def test_front_is_of_accuracy_speed_and_size() -> None:
    def row(top1: float | None, rate: float, size: int) -> SweepRow:
        return SweepRow(precision=FLOAT32, batch_size=1, images_per_second=rate, top1=top1, image_tower_bytes=size)

    rows = [row(0.60, 40, 400), row(0.59, 90, 100), row(0.59, 80, 100), row(0.50, 80, 100), row(0.50, 80, 99)]
    broken = SweepRow(precision=INT8, failure="no")
    marked = mark_front([*rows[:2], broken, *rows[2:]])
    assert [each.on_front for each in marked] == [True, True, False, False, False, True]
    unmeasured = mark_front([row(None, 40, 400), row(None, 30, 400)])
    assert [each.on_front for each in unmeasured] == [True, False], "speed and size alone"


def test_rows_are_medians_of_repetitions_taken_in_turns(
    exported: ExportedBundle, tmp_path: Path, timed: list[tuple[int, float]], notes: list[str]
) -> None:
    report = run_sweep(
        exported.path, tmp_path / "out", options(FLOAT32, FLOAT16, repetitions=3, duration_ms=7), on_note=notes.append
    )
    assert timed == [(1, 0.007), (4, 0.007)] * 6
    # Measurement n gives n images a second: the first cell has 1, 5 and 9, the second 2, 6 and 10, and so on.
    shown = [(row.precision, row.batch_size, row.images_per_second, row.latency_ms) for row in report.rows]
    assert shown == [(FLOAT32, 1, 5.0, 50.0), (FLOAT32, 4, 6.0, 60.0), (FLOAT16, 1, 7.0, 70.0), (FLOAT16, 4, 8.0, 80.0)]
    assert [(row.slowest_images_per_second, row.fastest_images_per_second) for row in report.rows[:2]] == [
        (1, 9),
        (2, 10),
    ]
    for row in report.rows:
        bundle = open_compiled(tmp_path / "out" / f"cpu-{row.precision.value}")
        assert bundle.compilation.dynamic_shape
        assert row.image_tower_bytes == (bundle.path / "image.onnx").stat().st_size
        files = [path.stat().st_size for path in bundle.path.iterdir() if path.name != "manifest.json"]
        assert row.bundle_bytes == sum(files)
        assert (row.top1, row.emulated, row.failure) == (None, False, None)
    assert report.exit_code == 0
    written = (tmp_path / "out" / "sweep.json").read_bytes()
    assert msgspec.json.decode(written, type=SweepReport) == report
    assert (tmp_path / "out" / "sweep.md").read_text() == render_markdown(report)


def test_accuracy_is_that_of_eval(exported: ExportedBundle, tmp_path: Path, timed: list[tuple[int, float]]) -> None:
    dataset = open_dataset("demo", size=12)
    report = run_sweep(exported.path, tmp_path / "out", options(FLOAT32), dataset)
    from clipmlu.model import load

    with load(tmp_path / "out" / "cpu-force_float32") as encoder:
        expected = evaluate(encoder, dataset, EvalOptions(samples=12))
    assert {row.top1 for row in report.rows} == {expected.top1}
    assert (report.dataset, report.split, report.images) == ("demo", "test", 12)


def test_second_run_does_only_what_is_new(
    exported: ExportedBundle, tmp_path: Path, timed: list[tuple[int, float]], notes: list[str]
) -> None:
    dataset = open_dataset("demo", size=12)
    output = tmp_path / "out"
    first = run_sweep(exported.path, output, options(FLOAT32), dataset)
    stamps = {path: path.stat().st_mtime_ns for path in (output / "cpu-force_float32").iterdir()}
    assert len(timed) == 4
    again = run_sweep(exported.path, output, options(FLOAT32), dataset, on_note=notes.append)
    assert len(timed) == 4
    assert again.rows == first.rows
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert [note.partition(" ")[0] for note in notes] == ["reusing"] * 3
    more = run_sweep(exported.path, output, options(FLOAT32, batch_sizes=(4, 2), repetitions=3), dataset)
    assert [size for size, _ in timed[4:]] == [2, 2, 4, 2], "two more of the new size, then the third of both"
    assert [row.batch_size for row in more.rows] == [4, 2]
    run_sweep(exported.path, output, options(FLOAT32, duration_ms=2), dataset)
    assert len(timed) == 12, "another duration is another measurement"
    run_sweep(exported.path, output, options(FLOAT32, duration_ms=2, threads=1), dataset)
    assert len(timed) == 16, "so is another number of threads"


@pytest.mark.parametrize(
    "changed", ["template file", "class names", "batch size", "overlap", "threads", "images", "labels", "SDK", "none"]
)
def test_an_accuracy_is_kept_for_all_that_decides_it(
    exported: ExportedBundle,
    tmp_path: Path,
    timed: list[tuple[int, float]],
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    templates = tmp_path / "templates.txt"
    templates.write_text("a {}\n")
    evaluate_ = EvalOptions(samples=12, templates=templates)
    first = open_dataset("demo", size=12)
    compile_ = CompileOptions(target="emulated-mlu" if changed == "SDK" else "cpu", min_agreement=0.0)
    run_sweep(exported.path, tmp_path / "out", options(FLOAT32, evaluate=evaluate_, compile=compile_), first)
    dataset = open_dataset("demo", size=12, seed=1 if changed == "images" else 0)
    changes: dict[str, Any] = {"threads": 1} if changed == "threads" else {}
    if changed == "labels":
        dataset.image = [dataset.image(index) for index in range(12)].__getitem__  # type: ignore[method-assign]
        dataset.label = lambda _index: 0  # type: ignore[method-assign]
    if changed == "template file":
        templates.write_text("the {}\n")
    if changed == "class names":
        dataset.class_names = tuple(f"{name}s" for name in dataset.class_names)
    if changed in ("batch size", "overlap"):
        field, value = ("batch_size", 3) if changed == "batch size" else ("allow_overlap", True)
        evaluate_ = dataclasses.replace(evaluate_, **{field: value})
    if changed == "SDK":
        monkeypatch.setenv("CLIPMLU_EMULATOR_MODE", "lenient")
        compile_ = dataclasses.replace(compile_, overwrite=True)
    wanted = options(FLOAT32, evaluate=evaluate_, compile=compile_, **changes)
    run_sweep(exported.path, tmp_path / "out", wanted, dataset, on_note=notes.append)
    assert any(note.startswith("evaluating") for note in notes) is (changed != "none")


def test_an_accuracy_on_a_folder_is_measured_anew_for_its_images_may_have_changed(
    exported: ExportedBundle, tmp_path: Path, timed: list[tuple[int, float]], notes: list[str]
) -> None:
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "folder" / name).mkdir(parents=True)
        support.picture(number).save(tmp_path / "folder" / name / "a.png")
    for _ in range(2):
        dataset = open_dataset(f"imagefolder:{tmp_path / 'folder'}")
        wanted = options(FLOAT32, batch_sizes=(1,), repetitions=1, evaluate=EvalOptions())
        run_sweep(exported.path, tmp_path / "out", wanted, dataset, on_note=notes.append)
    assert sum(note.startswith("evaluating") for note in notes) == 2


def test_interrupted_sweep_goes_on(exported: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: Iterator[int] = itertools.count(1)

    def interrupted(graph: Any, batch_size: int, seconds: float) -> Repetition:
        number = next(numbers)
        if number == 4:
            raise KeyboardInterrupt
        return Repetition(images_per_second=float(number), latency_ms=1.0)

    monkeypatch.setattr(sweep, "_time", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(exported.path, tmp_path / "out", options(FLOAT32))
    kept = sorted(path.name for path in (tmp_path / "out" / "results").iterdir())
    assert kept == ["cpu-force_float32-b1.json", "cpu-force_float32-b4.json"]
    report = run_sweep(exported.path, tmp_path / "out", options(FLOAT32))
    # Cell one had 1 and 3, cell two had 2; the fifth call brings its second.
    assert [row.images_per_second for row in report.rows] == [2.0, 3.5]


def test_other_source_is_not_taken_for_this_one(
    exported: ExportedBundle, tmp_path: Path, timed: list[tuple[int, float]], notes: list[str]
) -> None:
    output = tmp_path / "out"
    run_sweep(exported.path, output, options(FLOAT32))
    other = support.write_exported(tmp_path / "other", seed=1)
    with pytest.raises(BundleExistsError, match="--overwrite"):
        run_sweep(other.path, output, options(FLOAT32))
    overwriting = CompileOptions(target="cpu", overwrite=True)
    report = run_sweep(other.path, output, options(FLOAT32, compile=overwriting), on_note=notes.append)
    assert any(note.startswith("not reusing") and "another export" in note for note in notes)
    assert report.provenance.bundle_digest == other.digest
    assert len(timed) == 8, "everything anew"


def test_damaged_result_is_measured_again(
    exported: ExportedBundle, tmp_path: Path, timed: list[tuple[int, float]]
) -> None:
    run_sweep(exported.path, tmp_path / "out", options(FLOAT32))
    (tmp_path / "out" / "results" / "cpu-force_float32-b4.json").write_text("{")
    run_sweep(exported.path, tmp_path / "out", options(FLOAT32))
    assert [size for size, _ in timed[4:]] == [4, 4]


def test_failed_gate_is_a_row_and_the_others_go_on(
    exported: ExportedBundle, tmp_path: Path, timed: list[tuple[int, float]]
) -> None:
    """Eight bits cannot reach what float32 does."""
    calibration = CalibrationOptions(dataset="demo", samples=20)
    strict = CompileOptions(target="cpu", min_cosine=0.999999, calibration=calibration)
    report = run_sweep(exported.path, tmp_path / "out", options(INT8, FLOAT32, compile=strict, batch_sizes=(2,)))
    failed, good = report.rows
    assert (failed.precision, failed.batch_size, failed.gate_failed, failed.on_front) == (INT8, None, True, False)
    assert failed.failure is not None
    assert "cosine" in failed.failure
    assert (good.failure, good.on_front) == (None, True)
    assert report.exit_code == 3
    assert not (tmp_path / "out" / "cpu-qint8_mixed_float32").exists()
    assert "| qint8_mixed_float32 |  |  |  |  |  |  |  | gate failed |" in render_markdown(report)


def test_quantising_without_data_is_a_row_and_no_gate(
    exported: ExportedBundle, tmp_path: Path, timed: list[tuple[int, float]]
) -> None:
    report = run_sweep(exported.path, tmp_path / "out", options(INT8, FLOAT32))
    assert report.rows[0].failure is not None
    assert "needs calibration data" in report.rows[0].failure
    assert (report.rows[0].gate_failed, report.exit_code, len(report.rows)) == (False, 1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precisions": ()}, "precisions are"),
        ({"batch_sizes": (4, 4)}, "batch sizes are"),
        ({"batch_sizes": (0,)}, r"batch sizes is \(0,\); expected"),
        ({"repetitions": 0}, "repetitions is 0"),
        ({"duration_ms": -1}, "duration ms is -1; expected 0 or more"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        dataclasses.replace(options(FLOAT32), **changes)
