"""``evaluate`` and the other measuring functions with keywords, on everything that a bundle may be given as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clipmlu
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.errors import GateError, OptionError
from clipmlu.files.publish import encode_json
from clipmlu.measure.accuracy import evaluate as measured
from clipmlu.measure.accuracy.report import AccuracyReport


def counts(report: AccuracyReport) -> tuple[Any, ...]:
    return report.images, report.top1, report.top5, report.per_class, report.templates


@pytest.fixture
def expected(compiled: CompiledBundle) -> tuple[Any, ...]:
    """What the evaluation itself counts, given a model, a dataset and options."""
    options = clipmlu.EvalOptions(samples=12, templates="a {}", batch_size=4)
    with clipmlu.load(compiled.path) as model:
        return counts(measured.evaluate(model, clipmlu.open_dataset("demo", size=12, seed=3), options))


def test_a_bundle_is_a_path_a_bundle_or_a_model(compiled: CompiledBundle, expected: tuple[Any, ...]) -> None:
    keywords: dict[str, Any] = {"samples": 12, "seed": 3, "templates": "a {}", "batch_size": 4}
    for given in (str(compiled.path), compiled.path, compiled):
        assert counts(clipmlu.evaluate(given, "demo", threads=1, **keywords)) == expected
    with clipmlu.load(compiled.path) as model:
        assert counts(clipmlu.evaluate(model, "demo", **keywords)) == expected
        assert model.embed_texts(["still open"]).shape[0] == 1
        with pytest.raises(OptionError, match=r"^threads is 1, but the model is loaded already; give it to load$"):
            clipmlu.evaluate(model, "demo", threads=1)


def test_a_dataset_is_a_name_a_choice_or_open(compiled: CompiledBundle, expected: tuple[Any, ...]) -> None:
    options = clipmlu.EvalOptions(samples=12, templates="a {}", batch_size=4)
    choice = DatasetChoice(name="demo", size=12, seed=3)
    assert counts(clipmlu.evaluate(compiled, choice, options)) == expected
    assert counts(clipmlu.evaluate(compiled, choice.open(), options)) == expected
    with pytest.raises(OptionError, match=r"^split is 'train', but the dataset is open; leave it out$"):
        clipmlu.evaluate(compiled, choice.open(), split="train")


def test_a_baseline_is_a_gate(compiled: CompiledBundle, tmp_path: Path) -> None:
    report = clipmlu.evaluate(compiled, "demo", samples=10)
    (tmp_path / "report.json").write_bytes(encode_json(report))
    for baseline in (report, tmp_path / "report.json"):
        again = clipmlu.evaluate(compiled, "demo", samples=10, baseline=baseline, max_drop=0)
        assert again.baseline is not None
        assert again.baseline.drop == 0
    better = clipmlu.AccuracyReport(
        **{**{name: getattr(report, name) for name in report.__struct_fields__}, "top1": 1.0}
    )
    with pytest.raises(GateError, match=r"below the baseline's 1\.0000"):
        clipmlu.evaluate(compiled, "demo", samples=10, baseline=better)


def test_options_objects_are_accepted_alone(compiled: CompiledBundle, tmp_path: Path) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: clipmlu.evaluate(compiled, "demo", clipmlu.EvalOptions(), samples=3),
        lambda: clipmlu.compare_bundles(compiled, compiled, "demo", clipmlu.CompareOptions(), samples=3),
        lambda: clipmlu.measure_speed(compiled, clipmlu.SpeedOptions(), warmup=3),
    )
    for call in calls:
        with pytest.raises(OptionError, match="has an options object and the keyword"):
            call()


def test_speed_and_comparison_and_sweep_take_keywords(
    compiled: CompiledBundle, exported: ExportedBundle, tmp_path: Path
) -> None:
    speed = clipmlu.measure_speed(compiled, scenario="offline", warmup=0, duration=0, iterations=1, stages=False)
    assert [each.scenario for each in speed.towers[0].scenarios] == ["offline"]
    comparison = clipmlu.compare_bundles(compiled, str(exported.path), samples=4, templates="a {}")
    assert (comparison.images, comparison.templates, comparison.dataset) == (4, ("a {}",), "demo")
    sweep = clipmlu.run_sweep(
        exported, tmp_path / "sweep", dataset="demo", precision="force_float32", batch_size=[1, 2],
        target="cpu", samples=4, repetitions=1, duration=1,
    )  # fmt: skip
    assert [(row.precision.value, row.batch_size) for row in sweep.rows] == [("force_float32", 1), ("force_float32", 2)]
