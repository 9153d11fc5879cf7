"""Sweeps of the tiny model: what is compiled, measured and kept, what is done again, and which rows are worth having."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import faulty_backends
import support
from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import ExportedBundle, open_compiled
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.compile.quantisation import VENDOR
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.data.datasets import Dataset, open_dataset
from clipmlu.errors import BundleExistsError, MissingDependencyError, OptionError
from clipmlu.measure.accuracy.evaluate import EvalOptions, evaluate
from clipmlu.report.sweep import render_markdown
from clipmlu.specs import Precision, QuantisationOptions
from clipmlu.tune.resume import ResultStore
from clipmlu.tune.sweep import run_sweep
from clipmlu.tune.sweep_options import SweepOptions
from clipmlu.tune.sweep_report import SweepReport, SweepRow, mark_front, pareto_front

FLOAT32, FLOAT16, INT8 = Precision.FORCE_FLOAT32, Precision.FORCE_FLOAT16, Precision.QINT8_MIXED_FLOAT32


def options(*precisions: Precision, batch_sizes: tuple[int, ...] = (1, 4), **changes: Any) -> SweepOptions:
    compile_ = changes.pop("compile", CompileOptions(target="cpu"))
    quick: dict[str, Any] = {"duration_ms": 1, "repetitions": 2, "evaluate": EvalOptions(samples=12)}
    return SweepOptions(compile=compile_, precisions=precisions, batch_sizes=batch_sizes, **{**quick, **changes})


def stored_repetitions(output: Path, precision: Precision, batch_size: int) -> list[dict[str, float]]:
    content = (output / "results" / f"cpu-{precision.value}-b{batch_size}.json").read_bytes()
    repetitions: list[dict[str, float]] = msgspec.json.decode(content)["result"]
    return repetitions


class _StopError(Exception):
    pass


def stop_after(count: int) -> Callable[[str], None]:
    """A callback that interrupts when so many results are stored."""
    stored: list[str] = []

    def stop(name: str) -> None:
        stored.append(name)
        if len(stored) == count:
            raise _StopError

    return stop


@pytest.fixture
def notes() -> list[str]:
    return []


def test_a_sweep_ends_at_once_where_a_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = support.write_exported(tmp_path / "words", needs_tokenizers=True)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r"needs 'tokenizers'.*'clipmlu\[tokenizers\]'$"):
        run_sweep(exported.path, tmp_path / "swept", options(FLOAT32), None)


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


def test_rows_are_medians_of_repetitions_taken_in_turns(exported: ExportedBundle, tmp_path: Path) -> None:
    stored: list[str] = []
    wanted = options(FLOAT32, FLOAT16, repetitions=3)
    report = run_sweep(exported.path, tmp_path / "out", wanted, on_result=stored.append)
    names = [f"cpu-{precision.value}-b{size}" for precision in (FLOAT32, FLOAT16) for size in (1, 4)]
    assert stored == ["cpu-force_float32", "cpu-force_float16", *names * 3]
    assert [(row.precision, row.batch_size) for row in report.rows] == [
        (FLOAT32, 1),
        (FLOAT32, 4),
        (FLOAT16, 1),
        (FLOAT16, 4),
    ]
    for row in report.rows:
        repetitions = stored_repetitions(tmp_path / "out", row.precision, row.batch_size or 0)
        slowest, median, fastest = sorted(each["images_per_second"] for each in repetitions)
        assert 0 < slowest < fastest
        assert (row.slowest_images_per_second, row.images_per_second, row.fastest_images_per_second) == (
            slowest,
            median,
            fastest,
        )
        assert row.latency_ms == sorted(each["latency_ms"] for each in repetitions)[1] > 0
        bundle = open_compiled(tmp_path / "out" / f"cpu-{row.precision.value}")
        assert bundle.compilation.dynamic_shape
        assert row.image_tower_bytes == (bundle.path / "image.onnx").stat().st_size
        files = [path.stat().st_size for path in bundle.path.iterdir() if path.name != "manifest.json"]
        assert row.bundle_bytes == sum(files)
        assert (row.top1, row.emulated, row.failure) == (None, False, None)
    assert report.exit_code == 0
    written = (tmp_path / "out" / "sweep.json").read_bytes()
    assert msgspec.json.decode(written, type=SweepReport) == report


def test_accuracy_is_that_of_eval(exported: ExportedBundle, tmp_path: Path) -> None:
    dataset = open_dataset("demo", size=12)
    report = run_sweep(exported.path, tmp_path / "out", options(FLOAT32), dataset)
    from clipmlu.model import load

    with load(tmp_path / "out" / "cpu-force_float32") as encoder:
        expected = evaluate(encoder, dataset, EvalOptions(samples=12))
    assert {row.top1 for row in report.rows} == {expected.top1}
    assert (report.dataset, report.split, report.images) == ("demo", "test", 12)


def test_second_run_does_only_what_is_new(exported: ExportedBundle, tmp_path: Path, notes: list[str]) -> None:
    dataset = open_dataset("demo", size=12)
    output = tmp_path / "out"
    stored: list[str] = []
    first = run_sweep(exported.path, output, options(FLOAT32), dataset)
    stamps = {path: path.stat().st_mtime_ns for path in (output / "cpu-force_float32").iterdir()}
    again = run_sweep(exported.path, output, options(FLOAT32), dataset, on_note=notes.append, on_result=stored.append)
    assert stored == []
    assert again.rows == first.rows
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert [note.partition(" ")[0] for note in notes] == ["reusing"] * 3
    wider = options(FLOAT32, batch_sizes=(4, 2), repetitions=3)
    more = run_sweep(exported.path, output, wider, dataset, on_result=stored.append)
    two, four = "cpu-force_float32-b2", "cpu-force_float32-b4"
    assert stored == [two, two, four, two], "two more of the new size, then the third of both"
    assert [row.batch_size for row in more.rows] == [4, 2]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, SweepOptions]]:
    """A complete sweep of the bundle ``tiny`` into ``out``: the folder of both, and the options. Not to be changed."""
    base = tmp_path_factory.mktemp("swept")
    support.write_exported(base / "tiny")
    (base / "templates.txt").write_text("a {}\n")
    evaluate_ = EvalOptions(samples=12, templates=base / "templates.txt")
    with pytest.MonkeyPatch.context() as patch:
        faulty_backends.register(patch)
        compile_ = CompileOptions(target="refusing", overwrite=True)
        wanted = options(FLOAT32, batch_sizes=(2,), repetitions=1, compile=compile_, evaluate=evaluate_)
        run_sweep(base / "tiny", base / "out", wanted, open_dataset("demo", size=12))
        yield base, wanted


def test_the_keys_name_every_option(swept: tuple[Path, SweepOptions]) -> None:
    """Except those that another part stands for, and those that change no result."""

    def parts(name: str) -> set[str]:
        path = swept[0] / "out" / "results" / f"refusing-force_float32{name}.json"
        return set(msgspec.json.decode(path.read_bytes())["key"])

    def fields(kind: type, prefix: str, *without: str) -> set[str]:
        return {f"{prefix}{field.name}" for field in dataclasses.fields(kind) if field.name not in without}

    session = fields(SessionOptions, "session.", "in_flight", "busy_wait", "one_of_several")
    facts = {"tool_versions"}
    compiled = fields(CompileOptions, "compile.", "target", "calibration", "session", "overwrite")
    assert parts("") == {
        *facts,
        *compiled,
        *session,
        *("exported_bundle", "target", "placement", "build", "calibration"),
    }
    evaluated = fields(EvalOptions, "evaluate.", "templates", "cache", "workers")
    data = {"bundle", "dataset", "images", "class_names", "templates", "max_pixels"}
    assert parts(".accuracy") == facts | evaluated | session | data
    apart = ("compile", "precisions", "batch_sizes", "evaluate", "threads", "repetitions")
    timed = fields(SweepOptions, "", *apart) | fields(SessionOptions, "session.")
    assert parts("-b2") == facts | timed | {"bundle", "batch_size", "machine"}


@contextlib.contextmanager
def changed_file(path: Path, content: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def changed_dataset(change: str) -> Dataset:
    dataset = open_dataset("demo", size=12, seed=1 if change == "images" else 0)
    if change == "labels":
        # The same picture in all places, and another label for it.
        dataset.image = [dataset.image(index) for index in range(12)].__getitem__  # type: ignore[method-assign]
        dataset.label = lambda _index: 0  # type: ignore[method-assign]
    if change == "class names":
        dataset.class_names = tuple(f"{name}s" for name in dataset.class_names)
    return dataset


@pytest.mark.parametrize(
    ("change", "result", "part"),
    [
        ({"compile": {"min_cosine": 0.5}}, "", "compile.min cosine"),
        ({"compile": {"min_agreement": 0.0}}, "", "compile.min agreement"),
        ({"compile": {"check": False}}, "", "compile.check"),
        ({"compile": {"uint8_input": True}}, "", "compile.uint8 input"),
        ({"compile": {"text_target": "cpu"}}, "", "placement, compile.text target"),
        ({"compile": {"seen_images": ("0" * 64,)}}, "", "compile.seen images"),
        ({"compile": {"session": SessionOptions(threads=1)}}, "", "session.threads"),
        ({"batch_sizes": (2, 128)}, "", "compile.max batch"),
        ("versions", "", "tool versions"),
        ("exported bundle", "", "exported bundle"),
        ({"evaluate": {"batch_size": 3}}, ".accuracy", "evaluate.batch size"),
        ({"evaluate": {"allow_overlap": True}}, ".accuracy", "evaluate.allow overlap"),
        ({"evaluate": {"samples": 11}}, ".accuracy", "images, evaluate.samples"),
        ({"evaluate": {"shuffle": True}}, ".accuracy", "images, evaluate.shuffle"),
        ({"threads": 1}, ".accuracy", "session.threads"),
        ("images", ".accuracy", "images"),
        ("labels", ".accuracy", "images"),
        ("class names", ".accuracy", "class names"),
        ("template file", ".accuracy", "templates"),
        ({"duration_ms": 2}, "-b2", "duration ms"),
    ],
    ids=str,
)
def test_a_result_made_otherwise_is_not_used(
    swept: tuple[Path, SweepOptions], monkeypatch: pytest.MonkeyPatch, change: Any, result: str, part: str
) -> None:
    base, wanted = swept
    files = contextlib.ExitStack()
    if isinstance(change, dict):
        nested = {
            name: dataclasses.replace(getattr(wanted, name), **value)
            for name, value in change.items()
            if name in ("compile", "evaluate")
        }
        wanted = dataclasses.replace(wanted, **{**change, **nested})
    elif change == "versions":
        monkeypatch.setattr(faulty_backends.RefusingBackend, "version", "2")
    elif change == "template file":
        files.enter_context(changed_file(base / "templates.txt", b"the {}\n"))
    elif change == "exported bundle":
        manifest = base / "tiny" / "manifest.json"
        other = {**msgspec.json.decode(manifest.read_bytes()), "logit_scale": 19.0}
        files.enter_context(changed_file(manifest, msgspec.json.encode(other)))

    def stop(note: str) -> None:
        if note.startswith("not reusing"):
            raise _StopError(note)

    with files, pytest.raises(_StopError) as caught:
        run_sweep(base / "tiny", base / "out", wanted, changed_dataset(str(change)), on_note=stop)
    reason, _, parts = str(caught.value).partition(" it was made with other ")
    assert reason == f"not reusing {base / 'out' / 'results' / f'refusing-force_float32{result}.json'}:"
    assert set(part.split(", ")) == set(parts.split(", "))


def test_an_accuracy_on_a_folder_is_measured_anew_for_its_images_may_have_changed(
    exported: ExportedBundle, tmp_path: Path, notes: list[str]
) -> None:
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "folder" / name).mkdir(parents=True)
        support.picture(number).save(tmp_path / "folder" / name / "a.png")
    for _ in range(2):
        dataset = open_dataset(f"imagefolder:{tmp_path / 'folder'}")
        wanted = options(FLOAT32, batch_sizes=(1,), repetitions=1, evaluate=EvalOptions())
        run_sweep(exported.path, tmp_path / "out", wanted, dataset, on_note=notes.append)
    assert sum(note.startswith("evaluating") for note in notes) == 2


def test_a_sweep_waits_for_another_one_in_its_folder(exported: ExportedBundle, tmp_path: Path) -> None:
    notes, take_note = support.hold_until_waited_for(tmp_path / "out" / "results")
    run_sweep(exported.path, tmp_path / "out", options(FLOAT32), on_note=take_note)
    assert "waiting for another process" in notes[0]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_interrupted_sweep_goes_on(exported: ExportedBundle, tmp_path: Path, count: int) -> None:
    """After the bundle, the accuracy, and the first repetition of the second round: nothing is made twice."""
    dataset = open_dataset("demo", size=12)
    with pytest.raises(_StopError):
        run_sweep(exported.path, tmp_path / "out", options(FLOAT32), dataset, on_result=stop_after(count))
    assert not (tmp_path / "out" / "sweep.json").exists()
    stored: list[str] = []
    report = run_sweep(exported.path, tmp_path / "out", options(FLOAT32), dataset, on_result=stored.append)
    name = "cpu-force_float32"
    assert stored == [name, f"{name}.accuracy", *[f"{name}-b1", f"{name}-b4"] * 2][count:]
    whole = run_sweep(exported.path, tmp_path / "whole", options(FLOAT32), dataset)
    assert without_times(report) == without_times(whole)


def without_times(report: SweepReport) -> dict[str, Any]:
    content: dict[str, Any] = msgspec.to_builtins(report)
    for row in content["rows"]:
        for name in ("images_per_second", "slowest_images_per_second", "fastest_images_per_second", "latency_ms"):
            assert row.pop(name) > 0
        row.pop("on_front")
    return content


def test_a_bundle_without_its_record_is_replaced_only_if_it_was_being_made(
    exported: ExportedBundle, tmp_path: Path
) -> None:
    """A kill between the publication of a bundle and its record leaves the record of the attempt."""
    output = tmp_path / "out"
    run_sweep(exported.path, output, options(FLOAT32))
    record = output / "results" / "cpu-force_float32.json"
    key = msgspec.json.decode(record.read_bytes())["key"]
    record.unlink()
    with pytest.raises(BundleExistsError, match="--overwrite"):
        run_sweep(exported.path, output, options(FLOAT32))
    ResultStore(output / "results", lambda _note: None).begin("cpu-force_float32", key)
    stored: list[str] = []
    run_sweep(exported.path, output, options(FLOAT32), on_result=stored.append)
    assert stored == ["cpu-force_float32"], "its repetitions are those of an equal bundle"


def test_other_source_is_not_taken_for_this_one(exported: ExportedBundle, tmp_path: Path, notes: list[str]) -> None:
    output = tmp_path / "out"
    run_sweep(exported.path, output, options(FLOAT32))
    other = support.write_exported(tmp_path / "other", seed=1)
    with pytest.raises(BundleExistsError, match="--overwrite"):
        run_sweep(other.path, output, options(FLOAT32))
    overwriting = CompileOptions(target="cpu", overwrite=True)
    stored: list[str] = []
    report = run_sweep(
        other.path, output, options(FLOAT32, compile=overwriting), on_note=notes.append, on_result=stored.append
    )
    assert any(note.endswith("it was made with other exported bundle") for note in notes)
    assert report.provenance.bundle_digest == other.digest
    assert len(stored) == 5, "everything anew"


def test_damaged_result_is_measured_again(exported: ExportedBundle, tmp_path: Path) -> None:
    run_sweep(exported.path, tmp_path / "out", options(FLOAT32))
    (tmp_path / "out" / "results" / "cpu-force_float32-b4.json").write_text("{")
    stored: list[str] = []
    run_sweep(exported.path, tmp_path / "out", options(FLOAT32), on_result=stored.append)
    assert stored == ["cpu-force_float32-b4"] * 2


def test_failed_gate_is_a_row_and_the_others_go_on(exported: ExportedBundle, tmp_path: Path) -> None:
    """Eight bits cannot reach what float32 does."""
    calibration = CalibrationOptions(dataset="demo", samples=20)
    strict = CompileOptions(target="cpu", min_cosine=0.999999, calibration=calibration, quantisation=VENDOR)
    report = run_sweep(exported.path, tmp_path / "out", options(INT8, FLOAT32, compile=strict, batch_sizes=(2,)))
    failed, good = report.rows
    assert (failed.precision, failed.batch_size, failed.gate_failed, failed.on_front) == (INT8, None, True, False)
    assert failed.failure is not None
    assert "cosine" in failed.failure
    assert (good.failure, good.on_front) == (None, True)
    assert report.exit_code == 3
    assert not (tmp_path / "out" / "cpu-qint8_mixed_float32").exists()
    assert "| qint8_mixed_float32 |  |  |  |  |  |  |  | gate failed |" in render_markdown(report)


def test_table_of_an_earlier_sweep_does_not_stay_beside_the_new_report(
    exported: ExportedBundle, tmp_path: Path
) -> None:
    """The command writes sweep.md after this; a caller in Python may not."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sweep.md").write_text("of an earlier sweep")
    run_sweep(exported.path, tmp_path / "out", options(FLOAT32, batch_sizes=(1,), repetitions=1))
    assert [path.name for path in (tmp_path / "out").glob("sweep.*")] == ["sweep.json"]


def test_a_failed_build_takes_nothing_from_the_bundle_at_its_path(exported: ExportedBundle, tmp_path: Path) -> None:
    """Neither one that the user made after the failure, nor an earlier one that was to be replaced."""
    calibration = CalibrationOptions(dataset="demo", samples=20)
    fine = CompileOptions(target="cpu", calibration=calibration, check=False)
    strict = CompileOptions(target="cpu", calibration=calibration, min_cosine=0.999999, quantisation=VENDOR)
    output = tmp_path / "out"
    few: dict[str, Any] = {"batch_sizes": (1,), "repetitions": 1}
    run_sweep(exported.path, output, options(INT8, compile=strict, **few))
    own = compile_bundle(exported, output / "cpu-qint8_mixed_float32", dataclasses.replace(fine, precision=INT8))
    with pytest.raises(BundleExistsError):
        run_sweep(exported.path, output, options(INT8, compile=strict, **few))
    assert open_compiled(own.path).digest == own.digest
    again = dataclasses.replace(fine, overwrite=True)
    run_sweep(exported.path, output, options(INT8, compile=again, **few))
    run_sweep(exported.path, output, options(INT8, compile=dataclasses.replace(strict, overwrite=True), **few))
    notes: list[str] = []
    run_sweep(exported.path, output, options(INT8, compile=fine, **few), on_note=notes.append)
    assert any(note.endswith("its content matches") for note in notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precisions": ()}, "precisions are"),
        ({"precisions": (FLOAT32, INT8)}, "precision qint8_mixed_float32 needs calibration data"),
        ({"batch_sizes": (4, 4)}, "batch sizes are"),
        ({"batch_sizes": (0,)}, r"batch sizes\[0\] is 0; expected 1 or more"),
        ({"repetitions": 0}, "repetitions is 0"),
        ({"duration_ms": -1}, "duration ms is -1; expected 0 or more"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        dataclasses.replace(options(FLOAT32), **changes)
