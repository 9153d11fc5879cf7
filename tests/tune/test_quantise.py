"""The search: what it accepts and rejects, how it resumes, and that its recipe compiles the same."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import support
from clipmlu.backends import SessionOptions
from clipmlu.backends.onnxruntime import OnnxRuntimeBackend
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled
from clipmlu.compile.compiler import CompileOptions, compile_bundle
from clipmlu.compile.recipe import apply_recipe, read_recipe
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.data.images import content_digest, load_image
from clipmlu.errors import CalibrationError, CompileError, GateError, InputError, OptionError
from clipmlu.export.exporter import ExportOptions, export_model
from clipmlu.magicmind.emulator import faults
from clipmlu.measure.statistics import drop_interval
from clipmlu.model import Model
from clipmlu.specs import Precision, QuantisationOptions
from clipmlu.tune import quantise as search_module
from clipmlu.tune.quantise import search_bundle
from clipmlu.tune.trial import SearchOptions, SearchReport, Trial, describe_trial
from conftest import REPOSITORY

DEMO = REPOSITORY / "src" / "clipmlu" / "assets" / "demo"
NAMES = ("cat", "dog", "red circle", "blue star")


@pytest.fixture
def folder(exported: ExportedBundle, compiled: CompiledBundle, tmp_path: Path) -> Path:
    """Pictures in the folder of the class that the float model takes them for, so that float32 is always right."""
    with Model(compiled) as encoder:
        classifier = encoder.classifier(NAMES, cache=False)
        for number in range(70):
            picture = support.picture(number)
            name = classifier.predict(picture).class_name  # type: ignore[union-attr]
            place = tmp_path / "folder" / "train" / name
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{number}.png")
    for name in NAMES:
        (tmp_path / "folder" / "train" / name).mkdir(exist_ok=True)
    return tmp_path / "folder"


def options_for(folder: Path, **changes: Any) -> CompileOptions:
    calibration = CalibrationOptions(dataset=f"imagefolder:{folder}", samples=8)
    given: dict[str, Any] = {"target": "cpu", "batch_size": 8, "calibration": calibration, **changes}
    return CompileOptions(**given)


def search(
    exported: ExportedBundle, folder: Path, output: Path, max_drop: float = 0.2, **changes: Any
) -> tuple[CompiledBundle, SearchReport, list[str]]:
    notes: list[str] = []
    wanted = SearchOptions(max_drop=max_drop, samples=changes.pop("samples", 60), **changes.pop("search", {}))
    bundle, report = search_bundle(exported, output, options_for(folder, **changes), wanted, on_note=notes.append)
    return bundle, report, notes


def test_the_first_trial_within_the_drop_is_published_with_the_report(
    exported: ExportedBundle, folder: Path, tmp_path: Path
) -> None:
    bundle, report, notes = search(exported, folder, tmp_path / "out")
    assert bundle.path == tmp_path / "out"
    assert report.reference_top1 == 1.0
    (trial,) = report.trials
    assert (trial.verdict, trial.precision) == ("accepted", Precision.QINT8_MIXED_FLOAT32)
    assert trial.quantisation == QuantisationOptions()
    assert trial.images == 60
    assert trial.drop == pytest.approx(1.0 - (trial.top1 or 0.0))
    assert trial.agreement == trial.top1
    assert msgspec.json.decode((bundle.path / "search.json").read_bytes(), type=SearchReport) == report
    assert not (tmp_path / "out.search").exists()
    assert open_compiled(bundle.path).digest == bundle.digest
    assert any("accepted" in note for note in notes)


@pytest.mark.parametrize(
    "changed",
    [
        {"uint8_input": True},
        {"batch_size": 4},
        {"dynamic_shape": False},
        {"max_batch": 16},
        {"min_cosine": 0.5},
        {"min_agreement": 0.01},
        {"session": SessionOptions(threads=1, busy_wait=False)},
        {"search": {"templates": ("the {}",)}},
        "class names",
        "versions",
        "emulated SDK",
    ],
    ids=str,
)
def test_a_search_takes_nothing_over_from_one_with_other_options(
    exported: ExportedBundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: Any
) -> None:
    """What an interrupted search left, a verdict and a bundle, is taken by the same search only."""

    def interrupt(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    common = {"target": "emulated-mlu"} if changed == "emulated SDK" else {}

    def again(output: str, **changes: Any) -> tuple[CompiledBundle, list[str]]:
        changes |= common
        bundle, _report, notes = search(exported, folder, tmp_path / output, 0.9, samples=20, **changes)
        return bundle, notes

    with monkeypatch.context() as patch:
        patch.setattr(search_module, "publish_copy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            again("out")
    shutil.copytree(tmp_path / "out.search", tmp_path / "same.search")
    assert any("going on" in note for note in again("same")[1])
    changes = changed if isinstance(changed, dict) else {}
    if changed == "class names":
        names = {name: f"{name}s" for name in NAMES}
        dataset = f"imagefolder:{folder}"
        changes = {"calibration": CalibrationOptions(dataset=dataset, samples=8, class_names=names)}
    if changed == "versions":
        monkeypatch.setattr(OnnxRuntimeBackend, "packages", ("onnxruntime", "msgspec"))
    if changed == "emulated SDK":
        monkeypatch.setenv("CLIPMLU_EMULATOR_MODE", "lenient")
    bundle, notes = again("out", **changes)
    assert not any("going on" in note for note in notes)
    assert bundle.compilation.uint8_input is ("uint8_input" in changes)
    assert bundle.compilation.batch_size == changes.get("batch_size", 8)


def test_an_accepted_bundle_that_was_replaced_is_made_again(
    exported: ExportedBundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(search_module, "publish_copy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            search(exported, folder, tmp_path / "out")
    other = support.write_exported(tmp_path / "other", seed=3)
    candidate = tmp_path / "out.search" / "candidate"
    calibration = CalibrationOptions(dataset=f"imagefolder:{folder}", samples=8)
    options = options_for(folder, precision=Precision.QINT8_MIXED_FLOAT32, calibration=calibration, overwrite=True)
    compile_bundle(other, candidate, options)
    bundle, _report, notes = search(exported, folder, tmp_path / "out")
    assert any("going on" in note for note in notes)
    assert bundle.compilation.source_digest == exported.digest


def test_figures_are_those_of_the_published_bundle(exported: ExportedBundle, folder: Path, tmp_path: Path) -> None:
    bundle, report, _ = search(exported, folder, tmp_path / "out")
    seen = set(bundle.calibration_data().images)
    paths = sorted((folder / "train").rglob("*.png"))
    held_out = {path: content_digest(load_image(path)) in seen for path in paths}
    assert sum(held_out.values()) == 68, "eight calibrate, sixty evaluate"
    with Model(bundle) as encoder:
        classifier = encoder.classifier(sorted(NAMES), cache=False)
        right = [classifier.predict(path).class_name == path.parent.name for path in paths]  # type: ignore[union-attr]
    wrong = len(right) - sum(right)
    assert (report.trials[0].top1 or 0.0) >= (60 - wrong) / 60


def test_held_out_images_are_not_those_that_calibrate(
    exported: ExportedBundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[CompileOptions] = []
    original = search_module.compile_bundle

    def watch(source: Any, output: Any, options: CompileOptions) -> CompiledBundle:
        looked.append(options)
        return original(source, output, options)

    monkeypatch.setattr(search_module, "compile_bundle", watch)
    search(exported, folder, tmp_path / "out")
    options = looked[-1]
    assert options.calibration is not None
    assert len(options.seen_images) == 60
    assert not set(options.seen_images) & set(options.calibration.images)  # type: ignore[union-attr]


Compile = Callable[[Any, Any, CompileOptions], CompiledBundle]


@pytest.fixture
def ruined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compile:
    """A target that makes nonsense of every graph but float32's: the weights of another model."""
    other = support.write_exported(tmp_path / "other", seed=3)
    original = search_module.compile_bundle

    def ruin(source: Any, output: Any, options: CompileOptions) -> CompiledBundle:
        return original(source if Path(output).name == "reference" else other, output, options)

    monkeypatch.setattr(search_module, "compile_bundle", ruin)
    return ruin


def test_nothing_holds_is_a_failed_gate_that_keeps_what_it_measured(
    exported: ExportedBundle, folder: Path, tmp_path: Path, ruined: Compile
) -> None:
    within = {"precision": Precision.QINT8_MIXED_FLOAT32}
    with pytest.raises(
        GateError, match=r"No way to quantise stays within a drop of 0\.1.*the best was qint8"
    ) as caught:
        search(exported, folder, tmp_path / "out", 0.1, search=within)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.search" / "state.json").is_file()


def test_an_interrupted_search_goes_on_where_it_was(
    exported: ExportedBundle, folder: Path, tmp_path: Path, ruined: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ruined
    made: list[tuple[Precision, QuantisationOptions | None]] = []
    stop_at = 5

    def count(source: Any, output: Any, options: CompileOptions) -> CompiledBundle:
        if len(made) == stop_at:
            raise KeyboardInterrupt
        if Path(output).name != "reference":
            made.append((options.precision, options.quantisation))
        return original(source, output, options)

    monkeypatch.setattr(search_module, "compile_bundle", count)
    within = {"precision": Precision.QINT8_MIXED_FLOAT32}
    with pytest.raises(KeyboardInterrupt):
        search(exported, folder, tmp_path / "out", 0.1, search=within)
    assert not (tmp_path / "out").exists()
    first, stop_at = list(made), 1000
    made.clear()
    with pytest.raises(GateError):
        search(exported, folder, tmp_path / "out", 0.1, search=within)
    assert len(first) == 5
    assert made
    assert not [each for each in made if each in first], "nothing is done twice"
    monkeypatch.setattr(search_module, "compile_bundle", ruined)
    with pytest.raises(GateError):
        search(exported, folder, tmp_path / "whole", 0.1, search=within)
    states = [
        msgspec.json.decode((tmp_path / f"{name}.search" / "state.json").read_bytes()) for name in ("out", "whole")
    ]
    figures = [[{**trial, "elapsed_s": 0} for trial in state["trials"]] for state in states]
    assert figures[0] == figures[1]


def test_a_failed_compilation_is_a_trial(
    exported: ExportedBundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = search_module.compile_bundle

    def refuse(source: Any, output: Any, options: CompileOptions) -> CompiledBundle:
        if options.quantisation == QuantisationOptions():
            raise CompileError("MagicMind cannot build the image tower: no")
        return original(source, output, options)

    monkeypatch.setattr(search_module, "compile_bundle", refuse)
    bundle, report, _ = search(exported, folder, tmp_path / "out")
    assert [trial.verdict for trial in report.trials] == ["failed", "accepted"]
    assert report.trials[0].reason == "MagicMind cannot build the image tower: no"
    assert bundle.compilation.quantisation == QuantisationOptions(granularity="per_axis")


@pytest.mark.parametrize("fault", ["build_model:1:oom", "serialize_to_file:2:status"])
def test_a_build_that_failed_in_passing_is_tried_again_by_the_next_search(
    exported: ExportedBundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A card that ran out of memory once says nothing about the way to quantise."""

    def interrupt(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    faults.reset()
    with monkeypatch.context() as patch:
        patch.setenv("CLIPMLU_EMULATOR_FAULTS", fault)
        patch.setattr(search_module, "publish_copy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            search(exported, folder, tmp_path / "out", 0.9, samples=20, target="emulated-mlu")
    state = msgspec.json.decode((tmp_path / "out.search" / "state.json").read_bytes())
    assert [trial["verdict"] for trial in state["trials"]] == ["accepted"], "the second way; the first one is not known"
    _bundle, report, notes = search(exported, folder, tmp_path / "out", 0.9, samples=20, target="emulated-mlu")
    assert any("going on" in note for note in notes)
    assert [trial.verdict for trial in report.trials] == ["accepted"]
    assert report.trials[0].quantisation == QuantisationOptions()


def test_another_demand_starts_anew(
    exported: ExportedBundle, folder: Path, tmp_path: Path, ruined: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    within = {"precision": Precision.QINT8_MIXED_FLOAT32}
    with pytest.raises(GateError):
        search(exported, folder, tmp_path / "out", 0.1, search=within)
    monkeypatch.setattr(search_module, "compile_bundle", compile_bundle)
    _, _, notes = search(exported, folder, tmp_path / "out", 0.3, search=within)
    assert not any("going on" in note for note in notes)


def test_a_recipe_compiles_the_same_without_a_search(exported: ExportedBundle, folder: Path, tmp_path: Path) -> None:
    bundle, _, _ = search(exported, folder, tmp_path / "out")
    for source in (bundle.path / "recipe.json", bundle.path):
        recipe = read_recipe(source)
        options = apply_recipe(recipe, CompileOptions(target="cpu", batch_size=8, overwrite=True))
        again = compile_bundle(exported, tmp_path / "again", options)
        for tower in ("image", "text"):
            name = bundle.manifest.towers[tower].file  # type: ignore[index]
            assert again.manifest.files[name] == bundle.manifest.files[name]
        assert again.compilation.quantised == bundle.compilation.quantised


def test_the_fused_graph_is_searched_by_its_logits(folder: Path, tmp_path: Path) -> None:
    joint = support.write_exported(tmp_path / "joint", layout="joint")
    bundle, report, _notes = search(joint, folder, tmp_path / "out")
    assert bundle.manifest.layout == "joint"
    assert report.reference_top1 == 1.0, "the folder holds what two towers in float32 say"
    trial = report.trials[-1]
    assert trial.verdict == "accepted"
    assert trial.embedding_error is not None
    assert 0 < trial.embedding_error < 0.05
    with pytest.raises(OptionError, match="templates need the mean"):
        search(joint, folder, tmp_path / "two", search={"templates": "cifar"})


def test_a_recipe_is_refused_with_other_data(exported: ExportedBundle, folder: Path, tmp_path: Path) -> None:
    bundle, _, _ = search(exported, folder, tmp_path / "out")
    options = apply_recipe(read_recipe(bundle.path), CompileOptions(target="cpu", batch_size=8))
    next((folder / "train").rglob("*.png")).unlink()
    with pytest.raises(CalibrationError, match="are not those of the recipe"):
        compile_bundle(exported, tmp_path / "again", options)


def test_contradictions_are_refused(exported: ExportedBundle, folder: Path, tmp_path: Path) -> None:
    for drop in (0.0, 1.0, -0.1):
        with pytest.raises(OptionError, match="expected a fraction above 0"):
            SearchOptions(max_drop=drop)
    with pytest.raises(OptionError, match="quantises nothing"):
        SearchOptions(max_drop=0.1, precision=Precision.FORCE_FLOAT16)
    with pytest.raises(OptionError, match="the search chooses how to quantise"):
        search(exported, folder, tmp_path / "out", quantisation=QuantisationOptions(granularity="per_axis"))
    with pytest.raises(OptionError, match=r"60 images cannot show that a drop is within 0\.01.* at least 163 can"):
        search(exported, folder, tmp_path / "out", 0.01)
    with pytest.raises(OptionError, match="a search runs what it compiles"):
        search(exported, folder, tmp_path / "out", check=False)
    with pytest.raises(CalibrationError, match="needs calibration data"):
        search(exported, folder, tmp_path / "out", calibration=None)
    plain = tmp_path / "plain"
    plain.mkdir()
    support.picture(1).save(plain / "1.png")
    with pytest.raises(InputError, match="images without classes"):
        search(exported, folder, tmp_path / "out", calibration=CalibrationOptions(dataset=str(plain)))
    with pytest.raises(InputError, match="is not a recipe"):
        read_recipe(plain / "1.png")
    recipe = read_recipe(search(exported, folder, tmp_path / "out")[0].path)
    with pytest.raises(OptionError, match="leave the options for that out"):
        apply_recipe(recipe, CompileOptions(quantisation=QuantisationOptions()))


def binomial(successes: int, trials: int, chance: float) -> float:
    return math.comb(trials, successes) * chance**successes * (1 - chance) ** (trials - successes)


def test_limits_of_a_loss_cover_it_as_often_as_they_say() -> None:
    """Exactly, over all outcomes of 400 images of which 3 % are lost and 1 % won: the upper limit lies below the true loss of
    2 points in at most about 5 % of the cases."""
    images, lose, win = 400, 0.03, 0.01
    missed = 0.0
    for changed in range(60):
        probability = binomial(changed, images, lose + win)
        for lost in range(changed + 1):
            _, upper = drop_interval(lost, changed - lost, images)
            if upper < lose - win:
                missed += probability * binomial(lost, changed, lose / (lose + win))
    assert missed < 0.07
    low, high = drop_interval(12, 4, 400)
    assert low < 8 / 400 < high
    spread = math.sqrt(17 - 64 / 402) / 402
    assert (low, high) == (pytest.approx(8 / 402 - 1.6448536 * spread), pytest.approx(8 / 402 + 1.6448536 * spread))


def test_the_number_of_images_follows_the_demand() -> None:
    assert [SearchOptions(max_drop=drop).wanted_samples for drop in (0.1, 0.02, 0.001)] == [1000, 1353, 5000]


def plant_outliers(model: Path, output: Path) -> int:
    spec = importlib.util.spec_from_file_location("plant_outliers", REPOSITORY / "tools" / "plant_outliers.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    planted: int = tool.plant_outliers(model, output, channels=4, factor=64.0, seed=0)
    return planted


@pytest.mark.torch
def test_planted_outliers_change_nothing_in_float(libraries: None, tmp_path: Path) -> None:
    """By open_clip itself; that a search recovers from them in 8 bits is a slow test."""
    import open_clip
    import torch

    from clipmlu.export.quiet import quiet_libraries

    assert plant_outliers(DEMO, tmp_path / "planted") == 12
    found = []
    for folder in (DEMO, tmp_path / "planted"):
        with quiet_libraries(), torch.no_grad():
            model = open_clip.create_model(f"local-dir:{folder}").eval()
            found.append(
                model.encode_image(torch.linspace(-2, 2, 2 * 3 * 48 * 48).reshape(2, 3, 48, 48), normalize=True)
            )
    np.testing.assert_allclose(found[0].numpy(), found[1].numpy(), atol=1e-5)


@pytest.mark.torch
@pytest.mark.slow
def test_planted_outliers_break_the_vendor_recipe_and_the_search_recovers(libraries: None, tmp_path: Path) -> None:
    """The demo model with outlier channels in front of every linear layer: the same in float, poison for one scale per tensor."""
    assert plant_outliers(DEMO, tmp_path / "planted") == 12
    plain = export_model("demo", tmp_path / "plain-export", ExportOptions())
    planted = export_model(f"local-dir:{tmp_path / 'planted'}", tmp_path / "export", ExportOptions())
    pixels = np.random.default_rng(0).standard_normal((4, 3, 48, 48), dtype=np.float32)
    found = []
    for name, exported in (("a", plain), ("b", planted)):
        with Model(compile_bundle(exported, tmp_path / name, CompileOptions(target="cpu"))) as encoder:
            found.append(encoder.encode_images(pixels))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    options = CompileOptions(target="cpu", calibration=CalibrationOptions(dataset="demo", samples=96))
    bundle, report = search_bundle(planted, tmp_path / "out", options, SearchOptions(max_drop=0.02, samples=300))
    vendor, chosen = report.trials[0], report.trials[-1]
    assert vendor.quantisation == QuantisationOptions()
    assert vendor.verdict in ("failed", "stopped_early")
    assert chosen.verdict == "accepted"
    assert (chosen.drop_bound or 1.0) <= 0.02
    assert chosen.quantisation is not None
    assert chosen.quantisation.smooth_alpha
    assert (chosen.quantised_share or 0.0) >= 0.9
    assert all(record.smoothing for record in bundle.compilation.quantised.values())


def test_a_trial_is_described_in_one_line() -> None:
    trial = Trial(
        precision=Precision.QINT8_MIXED_FLOAT16,
        quantisation=QuantisationOptions(granularity="per_axis", smooth_alpha={"qkv": 0.5}, keep_float=("mlp_out",)),
        verdict="rejected",
        images=1000,
        top1=0.5,
        drop=0.0123,
        drop_bound=0.02,
        agreement=0.9,
        embedding_error=0.01,
        quantised_share=0.7,
        elapsed_s=1.0,
    )
    assert describe_trial(trial) == (
        "qint8_mixed_float16 per_axis linear smoothing 0.5 float mlp_out: top-1 0.5000, drop 1.23 points "
        "(95 %: at most 2.00) on 1000 images: rejected"
    )
