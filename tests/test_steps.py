"""Steps: the default does nothing, and long functions say what they do, in steps that advance to their totals."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.compile.quantisation import CPU_RECOMMENDED
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.data.datasets import open_dataset
from clipmlu.measure.accuracy.evaluate import EvalOptions, evaluate
from clipmlu.measure.compare.compare import compare_bundles
from clipmlu.measure.speed.loads import SpeedOptions
from clipmlu.measure.speed.speed import measure_speed
from clipmlu.model import load
from clipmlu.specs import Precision, QuantisationOptions
from clipmlu.steps import SECONDS, StartStep, counted, no_steps
from clipmlu.tune.candidates import Candidates, most_trials
from clipmlu.tune.quantise import search_bundle
from clipmlu.tune.sweep import SweepOptions, run_sweep
from clipmlu.tune.trial import SearchOptions, Trial
from support import StepRecorder


def test_without_a_display_a_step_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent: StartStep = no_steps
    with silent("calibrating", total=2, unit="batches") as outer, silent("waiting", total=1.5, unit=SECONDS) as inner:
        outer.advance()
        inner.advance(3)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_errors_of_a_step_are_those_of_the_caller() -> None:
    with pytest.raises(ZeroDivisionError), no_steps("dividing"):
        _ = 1 / 0


def test_an_item_counts_when_the_loop_is_done_with_it() -> None:
    recorder = StepRecorder()
    start: StartStep = recorder
    with start("reading", total=2, unit="images") as step:
        for item in counted("ab", step):
            recorder.events.append(item)
    assert recorder.events == ["reading (2 images)", "a", "+1", "b", "+1", "end of reading"]


def _quantised(target: str, samples: int = 12) -> CompileOptions:
    return CompileOptions(
        target=target,
        precision=Precision.QINT8_MIXED_FLOAT32,
        batch_size=4,
        calibration=CalibrationOptions(dataset="demo", samples=samples),
        min_cosine=-1.0,
        min_agreement=0.0,
    )


@pytest.mark.parametrize(
    ("target", "image", "text"),
    [
        ("cpu", ["calibrating (3 batches)", "writing the graph"], ["calibrating (64 batches)", "writing the graph"]),
        ("emulated-mlu", ["calibrating and building"], ["calibrating and building"]),
    ],
)
def test_compilation(target: str, image: list[str], text: list[str], exported: ExportedBundle, tmp_path: Path) -> None:
    recorder = StepRecorder()
    compile_bundle(exported.path, tmp_path / "out", _quantised(target), on_step=recorder)
    assert recorder.labels() == [
        "verifying the exported bundle",
        "opening demo",
        "selecting calibration images (12 images)",
        "compiling the image tower",
        "lowering",
        *image,
        "compiling the text tower",
        "lowering",
        *text,
        "computing digests",
        "preparing images for the check",
        "checking the image tower (6 batches)",
        "checking the text tower (32 batches)",
    ]


def test_search(exported: ExportedBundle, tmp_path: Path) -> None:
    recorder = StepRecorder()
    search = SearchOptions(max_drop=0.9, samples=60)
    search_bundle(exported, tmp_path / "out", _quantised("cpu", 8), search, on_step=recorder)
    labels = recorder.labels()
    assert labels[:4] == [
        "opening demo",
        "selecting calibration images (8 images)",
        "selecting held-out images (60 images)",
        "float32 reference",
    ]
    trial = next(position for position, label in enumerate(labels) if label.startswith("trial 1 of at most "))
    assert "evaluating (60 images)" in labels[:trial]
    assert labels[trial + 1] == "compiling the image tower"
    assert labels[-2:] == ["evaluating (15 images)", "evaluating (45 images)"]


@pytest.mark.parametrize("modes", [(Precision.QINT8_MIXED_FLOAT32, Precision.FORCE_FLOAT32), tuple(Precision)])
def test_no_search_has_more_trials_than_it_says(modes: tuple[Precision, ...]) -> None:
    def trial(precision: Precision, how: QuantisationOptions | None) -> Trial:
        made = Trial(
            precision=precision, quantisation=how, verdict="rejected", drop=0.5, embedding_error=0.1, elapsed_s=0
        )
        trials.append(made)
        return made

    def recommend(precision: Precision) -> QuantisationOptions:
        return CPU_RECOMMENDED[precision.bits or 8]

    trials: list[Trial] = []
    roles = {"qkv": 0.5, "mlp_in": 0.3, "mlp_out": 0.2}
    for precision, how in Candidates(modes, trials, lambda: roles, trial, recommend):
        trial(precision, how)
    assert len(modes) < len(trials) <= most_trials(modes, recommend) < 100


def test_sweep(exported: ExportedBundle, tmp_path: Path) -> None:
    recorder = StepRecorder()
    options = SweepOptions(
        precisions=(Precision.FORCE_FLOAT32, Precision.FORCE_FLOAT16),
        batch_sizes=(1, 4),
        repetitions=1,
        duration_ms=20,
        compile=CompileOptions(target="cpu", check=False),
    )
    run_sweep(exported.path, tmp_path / "out", options, on_step=recorder)
    outermost = [label for label in recorder.labels() if "of 2" in label or label.startswith("measuring")]
    assert outermost == [
        "1 of 2: force_float32",
        "2 of 2: force_float16",
        "measuring cpu-force_float32 (2 batch sizes)",
        "measuring cpu-force_float16 (2 batch sizes)",
    ]


def test_bench(compiled: CompiledBundle) -> None:
    recorder = StepRecorder()
    options = SpeedOptions(duration_ms=50, warmup_ms=20, iterations=3, scenarios=("offline",), stages=True)
    measure_speed(compiled.path, options, on_step=recorder)
    assert [event for event in recorder.events if not event.startswith("end of")] == [
        "verifying the bundle",
        "opening the image graph",
        "image graph, offline",
        "warming up (0.02 s)",
        "measuring (0.05 s)",
        "measuring the pipeline",
    ]


def test_comparison(compiled: CompiledBundle, exported: ExportedBundle) -> None:
    recorder = StepRecorder()
    compare_bundles(compiled, exported, open_dataset("demo", size=10), on_step=recorder)
    assert recorder.labels() == [
        "verifying the bundles",
        "embedding prompts (64 prompts)",
        "embedding images with A (10 images)",
        "embedding prompts (64 prompts)",
        "embedding images with B (10 images)",
        "comparing tensors (3 batches)",
        "comparing tensors (16 batches)",
    ]


def test_evaluation(compiled: CompiledBundle) -> None:
    recorder, counts = StepRecorder(), []
    dataset, options = open_dataset("demo", size=10), EvalOptions(cache=False)
    with load(compiled.path) as model:
        evaluate(model, dataset, options, on_step=recorder)
        assert recorder.labels() == ["embedding prompts (64 prompts)", "evaluating (10 images)"]
        recorder.events.clear()
        evaluate(model, dataset, options, on_step=recorder, on_progress=counts.append)
    assert recorder.labels() == ["embedding prompts (64 prompts)"], "who counts the images shows them"
    assert sum(counts) == 10


def test_classifier(compiled: CompiledBundle) -> None:
    recorder = StepRecorder()
    with load(compiled.path) as model:
        model.classifier(["cat", "dog"], ["a {}", "the {}", "one {}"], cache=False, on_step=recorder)
    assert recorder.events == ["embedding prompts (6 prompts)", "+4", "+2", "end of embedding prompts"]
