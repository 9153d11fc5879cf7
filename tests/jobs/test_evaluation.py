"""An evaluation in parts gives the report of one process, whatever the parts and their order."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.cli import main
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import InputError, OptionError, OverlapError
from clipmlu.jobs.engines.options import EngineOptions
from clipmlu.jobs.evaluation import EvalWork, cut_tasks, evaluate_in_parts
from clipmlu.jobs.work import MachineShare
from clipmlu.measure.accuracy.counting import ImageRange, RangeCounter, cut_ranges
from clipmlu.measure.accuracy.evaluate import EvalOptions, evaluate, prepare_evaluation
from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.measure.accuracy.tally import ImageResult, Tally
from clipmlu.model import load
from clipmlu.specs import Precision
from support import NAMES, Pictures, picture, write_exported

HERE, TWO = EngineOptions(processes=1), EngineOptions(processes=2)


@pytest.fixture
def encoder(compiled: CompiledBundle) -> Iterator[Encoder]:
    with load(compiled.path) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder of three classes; one image is damaged."""
    for number in range(45):
        path = tmp_path / "folder" / NAMES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    (tmp_path / "folder" / NAMES[1] / "22.png").write_bytes(b"damaged")
    return tmp_path / "folder"


def _untimed(report: AccuracyReport) -> AccuracyReport:
    return msgspec.structs.replace(report, elapsed_s=1.0, images_per_second=1.0, command=None)


DRAWN = EvalOptions(samples=131, shuffle=True, seed=3, batch_size=5)


@pytest.mark.parametrize(
    ("options", "engine"),
    [(EvalOptions(), HERE), (DRAWN, HERE), (DRAWN, TWO)],
    ids=["all-here", "drawn-here", "drawn-processes"],
)
def test_the_report_is_that_of_one_process(encoder: Encoder, options: EvalOptions, engine: EngineOptions) -> None:
    dataset = Pictures(300, broken=frozenset({0, 7, 8, 150, 299}))
    results: list[ImageResult] = []
    expected: list[ImageResult] = []
    progress: list[int] = []
    serial = evaluate(encoder, dataset, options, on_result=expected.append)
    report = evaluate_in_parts(encoder, dataset, options, engine, on_result=results.append, on_progress=progress.append)
    assert _untimed(report) == _untimed(serial)
    assert results == expected
    assert len(progress) > 10
    assert sum(progress) == (options.samples or 300)


def test_workers_open_a_dataset_by_its_name(encoder: Encoder, folder: Path) -> None:
    choice = DatasetChoice(name=f"imagefolder:{folder}")
    serial = evaluate(encoder, choice.open())
    report = evaluate_in_parts(encoder, choice.open(), engine=TWO, choice=choice)
    assert _untimed(report) == _untimed(serial)
    assert [image.id for image in report.skipped] == ["bee/22.png"]


def test_parts_in_any_order_give_the_same_report_and_the_results_in_order(encoder: Encoder) -> None:
    dataset = Pictures(60, broken=frozenset({3, 41}))
    expected: list[ImageResult] = []
    serial = evaluate(encoder, dataset, on_result=expected.append)
    evaluation = prepare_evaluation(encoder, dataset, None, lambda _note: None)
    counter = RangeCounter(evaluation.classifier, dataset, evaluation.count_options(keep_results=True))
    for seed, batches in itertools.product(range(3), (1, 2, 7)):
        parts = list(counter(evaluation.ranges(batches)))
        random.Random(seed).shuffle(parts)
        results: list[ImageResult] = []
        report = evaluation.collect(iter(parts), on_result=results.append)
        assert _untimed(report) == _untimed(serial)
        assert results == expected


def test_ranges_hold_each_image_once_and_whole_batches() -> None:
    ranges = list(cut_ranges(range(100, 123), 8))
    assert ranges == [
        ImageRange(0, tuple(range(100, 108))),
        ImageRange(8, tuple(range(108, 116))),
        ImageRange(16, tuple(range(116, 123))),
    ]


@pytest.fixture
def calibrated(exported: ExportedBundle, tmp_path: Path) -> CompiledBundle:
    """A bundle that was calibrated with three of the pictures."""
    (tmp_path / "seen").mkdir()
    for index in (2, 30, 31):
        picture(index).save(tmp_path / "seen" / f"{index}.png")
    options = CompileOptions(
        target="cpu",
        precision=Precision.QINT8_MIXED_FLOAT32,
        batch_size=4,
        calibration=CalibrationOptions(dataset=str(tmp_path / "seen"), samples=3),
        check=False,
    )
    return compile_bundle(exported, tmp_path / "q8", options)


def test_images_of_the_calibration_are_refused_or_counted(calibrated: CompiledBundle) -> None:
    with load(calibrated.path) as encoder:
        with pytest.raises(OverlapError, match="was calibrated with"):
            evaluate_in_parts(encoder, Pictures(50), engine=TWO)
        report = evaluate_in_parts(encoder, Pictures(50), EvalOptions(allow_overlap=True), HERE)
        assert report.calibration_overlap == 3
        assert _untimed(report) == _untimed(evaluate(encoder, Pictures(50), EvalOptions(allow_overlap=True)))


def test_the_joint_layout_is_counted_alike(tmp_path: Path) -> None:
    exported = write_exported(tmp_path / "joint", layout="joint")
    compile_bundle(exported, tmp_path / "joint-cpu", CompileOptions(target="cpu", batch_size=4))
    with load(tmp_path / "joint-cpu") as encoder:
        serial = evaluate(encoder, Pictures(21))
        assert _untimed(evaluate_in_parts(encoder, Pictures(21), engine=HERE)) == _untimed(serial)


def test_an_interrupted_evaluation_gives_the_counts_so_far(encoder: Encoder) -> None:
    seen: list[tuple[int, int]] = []
    done: list[int] = []

    def stop(count: int) -> None:
        done.append(count)
        if len(done) == 3:
            raise KeyboardInterrupt

    def note_counts(tally: Tally, wanted: int) -> None:
        seen.append((tally.images, wanted))

    with pytest.raises(KeyboardInterrupt):
        evaluate_in_parts(encoder, Pictures(300), engine=HERE, on_progress=stop, on_interrupt=note_counts)
    assert seen == [(sum(done), 300)]


class _Locked(Pictures):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.lock = threading.Lock()


def test_a_dataset_that_cannot_be_pickled_is_refused_at_once(encoder: Encoder) -> None:
    with pytest.raises(OptionError, match=r"dataset 'pictures' cannot be sent to other processes \(cannot pickle"):
        evaluate_in_parts(encoder, _Locked(9), engine=TWO)


def test_a_dataset_that_differs_for_a_worker_is_an_error(encoder: Encoder, folder: Path) -> None:
    choice = DatasetChoice(name=f"imagefolder:{folder}")
    evaluation = prepare_evaluation(encoder, choice.open(), None, lambda _note: None)
    work = EvalWork(
        recipe=encoder.recipe(),
        classifier=evaluation.classifier.detach(),
        dataset=choice,
        options=evaluation.count_options(keep_results=False),
    )
    tasks = list(cut_tasks(evaluation))
    (folder / NAMES[0] / "0.png").unlink()
    with (
        work.open(MachineShare()) as worker,
        pytest.raises(InputError, match=r"A worker finds other images in .* \(images 0 to 3\)"),
    ):
        list(worker(tasks))


def test_the_command_writes_the_same_files_with_processes(
    compiled: CompiledBundle, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, *more: object) -> tuple[int, AccuracyReport, str]:
        where = ("--output", tmp_path / f"{name}.json", "--sample-files", tmp_path / name)
        data = ("--dataset", f"imagefolder:{folder}", "--samples", 40, "--shuffle", "--seed", 2)
        code = main([str(argument) for argument in ("eval", compiled.path, *data, *where, "--json", *more)])
        shown = capsys.readouterr()
        return code, msgspec.json.decode(shown.out, type=AccuracyReport), shown.err

    code, serial, err = run("serial")
    assert (code, "22.png" in err) == (1, True)
    baseline = ("--baseline", tmp_path / "serial.json", "--max-drop", 0)
    code, report, err = run("parts", "--processes", 2, *baseline)
    assert (code, "22.png" in err) == (1, True)
    assert report.baseline is not None
    assert report.baseline.drop == 0
    assert _untimed(msgspec.structs.replace(report, baseline=None)) == _untimed(serial)
    files = sorted(path.name for path in (tmp_path / "serial").iterdir())
    assert len(files) == 5
    for name in files:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "serial" / name).read_bytes()
