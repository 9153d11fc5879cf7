"""The search: what it accepts and rejects, how it resumes, and that its recipe compiles the same."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import faulty_backends
import support
from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled, open_exported
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.compile.quantisation import CPU_RECOMMENDED
from clipmlu.compile.recipe import apply_recipe, read_recipe
from clipmlu.data.calibration import CalibrationOptions, obtain_calibration
from clipmlu.data.images import content_digest, load_image
from clipmlu.errors import BundleExistsError, CalibrationError, GateError, InputError, OptionError
from clipmlu.export.exporter import ExportOptions, export_model
from clipmlu.magicmind.emulator import faults
from clipmlu.measure.statistics import drop_interval
from clipmlu.model import Model
from clipmlu.specs import Precision, QuantisationOptions
from clipmlu.tune.quantise import search_bundle
from clipmlu.tune.trial import SearchOptions, SearchReport, Trial, describe_trial
from conftest import REPOSITORY

DEMO = REPOSITORY / "src" / "clipmlu" / "assets" / "demo"
NAMES = ("cat", "dog", "red circle", "blue star")


def write_folder(compiled: CompiledBundle, folder: Path) -> None:
    """Pictures in the folder of the class that the float model takes them for, so that float32 is always right."""
    for name in NAMES:
        (folder / "train" / name).mkdir(parents=True)
    with Model(compiled) as model:
        classifier = model.classifier(NAMES, cache=False)
        for number in range(70):
            picture = support.picture(number)
            name = classifier.predict(picture).class_name  # type: ignore[union-attr]
            picture.save(folder / "train" / name / f"{number}.png")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("pictures")
    exported = support.write_exported(base / "tiny")
    write_folder(compile_bundle(exported, base / "tiny-cpu", CompileOptions(target="cpu")), base / "folder")
    return base / "folder"


@pytest.fixture
def folder(pictures: Path, tmp_path: Path) -> Path:
    """A copy of ``pictures``."""
    return shutil.copytree(pictures, tmp_path / "folder")


def options_for(folder: Path, **changes: Any) -> CompileOptions:
    calibration = CalibrationOptions(dataset=f"imagefolder:{folder}", samples=8)
    given: dict[str, Any] = {"target": "cpu", "batch_size": 8, "calibration": calibration, **changes}
    return CompileOptions(**given)


def search(
    exported: ExportedBundle, folder: Path, output: Path, max_drop: float = 0.2, **changes: Any
) -> tuple[CompiledBundle, SearchReport, list[str]]:
    notes: list[str] = []
    wanted = SearchOptions(max_drop=max_drop, samples=changes.pop("samples", 60), **changes.pop("search", {}))
    callbacks = {"on_note": notes.append, "on_result": lambda _name: None}
    callbacks |= {name: changes.pop(name) for name in callbacks if name in changes}
    options = options_for(folder, **changes)
    bundle, report = search_bundle(exported, output, options, wanted, **callbacks)
    return bundle, report, notes


def stop_after(count: int) -> Callable[[str], None]:
    """A callback that interrupts when so many results are stored."""
    stored: list[str] = []

    def stop(name: str) -> None:
        stored.append(name)
        if len(stored) == count:
            raise KeyboardInterrupt

    return stop


def interrupted_search(
    exported: ExportedBundle, folder: Path, output: Path, count: int, *given: Any, **changes: Any
) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(exported, folder, output, *given, on_result=stop_after(count), **changes)
    assert not output.exists()


def stored_trials(output: Path) -> list[dict[str, Any]]:
    """Contents of the files of the trials, in the order of their making."""
    paths = sorted(Path(f"{output}.search").glob("trials/*-*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [msgspec.json.decode(path.read_bytes())["result"] for path in paths]


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


def test_files_of_the_user_in_the_folder_of_a_search_stay(
    exported: ExportedBundle, folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "out.search" / "notes" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    interrupted_search(exported, folder, tmp_path / "out", 1)
    search(exported, folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out.search").iterdir()] == ["notes"]
    assert mine.read_text() == "precious"


def test_a_search_waits_for_another_one_with_the_same_output(
    exported: ExportedBundle, folder: Path, tmp_path: Path
) -> None:
    """They would replace one another's candidate between its compilation and its evaluation."""
    notes, take_note = support.hold_until_waited_for(tmp_path / "out.search" / "trials")
    search(exported, folder, tmp_path / "out", on_note=take_note)
    assert "waiting for another process" in notes[0]
    notes, take_note = support.hold_until_waited_for(tmp_path / "other.search" / "trials")

    def publish(note: str) -> None:
        shutil.copytree(tmp_path / "out", tmp_path / "other")
        take_note(note)

    with pytest.raises(BundleExistsError):
        search(exported, folder, tmp_path / "other", on_note=publish)
    assert len(notes) == 1, "no trial was made for nothing"


def test_the_key_of_a_trial_names_every_option(exported: ExportedBundle, folder: Path, tmp_path: Path) -> None:
    """Except those that another part stands for, and those that change no result."""
    interrupted_search(exported, folder, tmp_path / "out", 1)
    (path,) = (tmp_path / "out.search" / "trials").glob("*-*.json")
    key = msgspec.json.decode(path.read_bytes())["key"].keys()
    apart = {
        CompileOptions: {"target", "precision", "quantisation", "calibration", "session", "overwrite"},
        SessionOptions: {"in_flight", "busy_wait", "one_of_several"},
        SearchOptions: {
            "samples",
            "templates",
            "pairs",
            "precision",
        },  # tests/tune/test_search_by_pairs.py has the key of pairs
    }
    prefixes = {CompileOptions: "compile.", SessionOptions: "session.", SearchOptions: "search."}
    for kind, without in apart.items():
        names = {field.name for field in dataclasses.fields(kind)} - without
        assert {f"{prefixes[kind]}{name}" for name in names} <= key
    facts = {"exported_bundle", "target", "placement", "build", "calibration", "tool_versions", "images", "labels"}
    assert facts | {"class_names", "templates", "precision", "quantisation", "exploratory"} <= key


class _StopError(Exception):
    pass


def first_note(exported: ExportedBundle, folder: Path, output: Path, **changes: Any) -> str:
    """The first note of a search, which says whether it uses what is stored; the search is stopped there."""

    def stop(note: str) -> None:
        raise _StopError(note)

    with pytest.raises(_StopError) as caught:
        search(exported, folder, output, **changes, on_note=stop)
    return str(caught.value)


def check_not_taken_over(note: str, output: Path, part: str) -> None:
    reason, _, parts = note.partition(" it was made with other ")
    assert reason == f"not reusing {output}.search/trials/search.json:"
    assert set(part.split(", ")) <= set(parts.split(", "))


def interrupted_options(base: Path) -> dict[str, Any]:
    """Options of a search whose first trial fails and is not stored."""
    (base / "templates.txt").write_text("a {}\n")
    templates = {"templates": base / "templates.txt"}
    return {"target": "refusing", "samples": 20, "max_drop": 0.9, "search": templates, "min_agreement": 0.0}


@pytest.fixture(scope="module")
def interrupted(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ExportedBundle, dict[str, Any]]]:
    """A search with one stored trial, in ``out`` beside its exported bundle; and its options. Not to be changed."""
    base = tmp_path_factory.mktemp("interrupted")
    exported = support.write_exported(base / "tiny")
    options = interrupted_options(base)
    with pytest.MonkeyPatch.context() as patch:
        faulty_backends.register(patch)
        interrupted_search(exported, pictures, base / "out", 1, **options)
        yield exported, options


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"uint8_input": True}, "compile.uint8 input"),
        ({"batch_size": 4}, "compile.batch size"),
        ({"dynamic_shape": False}, "compile.dynamic shape"),
        ({"max_batch": 16}, "compile.max batch"),
        ({"min_cosine": 0.5}, "compile.min cosine"),
        ({"min_agreement": 0.01}, "compile.min agreement"),
        ({"text_target": "cpu"}, "placement, compile.text target"),
        ({"session": SessionOptions(threads=1, busy_wait=False)}, "session.threads"),
        ({"target": "cpu"}, "target, placement, tool versions"),
        ({"max_drop": 0.8}, "search.max drop"),
        ({"samples": 19}, "images, labels, compile.seen images"),
        ("class names", "class names"),
        ("versions", "tool versions"),
    ],
    ids=str,
)
def test_a_search_takes_nothing_over_from_one_with_other_options(
    interrupted: tuple[ExportedBundle, dict[str, Any]],
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    part: str,
) -> None:
    exported, options = interrupted
    output = exported.path.with_name("out")
    assert first_note(exported, pictures, output, **options).startswith("resuming the search in")
    changes = change if isinstance(change, dict) else {}
    if change == "class names":
        names = {name: f"{name}s" for name in NAMES}
        data = CalibrationOptions(dataset=f"imagefolder:{pictures}", samples=8, class_names=names)
        changes = {"calibration": data}
    if change == "versions":
        monkeypatch.setattr(faulty_backends.RefusingBackend, "version", "2")
    check_not_taken_over(first_note(exported, pictures, output, **{**options, **changes}), output, part)


def change_data(name: str, exported: ExportedBundle, folder: Path) -> None:
    if name == "exported bundle":
        support.edit_manifest(exported.path, logit_scale=19.0)
    if name == "calibration":
        for number, path in enumerate(sorted((folder / "train").rglob("*.png"))):
            support.picture(1000 + number).save(path)
    if name == "labels":
        path = next((folder / "train").rglob("*.png"))
        other = next(name for name in NAMES if name != path.parent.name)
        path.rename(folder / "train" / other / "moved.png")
    if name == "templates":
        (folder.parent / "templates.txt").write_text("the {}\n")


@pytest.mark.parametrize("name", ["exported bundle", "calibration", "labels", "templates"])
def test_a_search_takes_nothing_over_from_one_on_other_data(
    exported: ExportedBundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    faulty_backends.register(monkeypatch)
    options = interrupted_options(tmp_path)
    interrupted_search(exported, folder, tmp_path / "out", 1, **options)
    note = first_note(exported, folder, tmp_path / "out", **options)
    assert note == f"resuming the search in {tmp_path}/out.search/trials: 1 trials are stored"
    change_data(name, exported, folder)
    note = first_note(open_exported(exported.path), folder, tmp_path / "out", **options)
    check_not_taken_over(note, tmp_path / "out", name)


def test_a_search_on_another_sdk_starts_anew(
    exported: ExportedBundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common: dict[str, Any] = {"target": "emulated-mlu", "samples": 20, "max_drop": 0.9}
    interrupted_search(exported, folder, tmp_path / "out", 1, **common)
    monkeypatch.setenv("CLIPMLU_EMULATOR_MODE", "lenient")
    bundle, _report, notes = search(exported, folder, tmp_path / "out", **common)
    assert any(note.endswith("it was made with other tool versions") for note in notes)
    assert not any("resuming" in note for note in notes)
    assert bundle.compilation.emulated


@pytest.mark.parametrize("damage", ["replaced", "damaged"])
def test_an_accepted_bundle_that_is_not_there_any_more_is_made_again(
    exported: ExportedBundle, folder: Path, tmp_path: Path, damage: str
) -> None:
    interrupted_search(exported, folder, tmp_path / "out", 1)
    candidate = tmp_path / "out.search" / "candidate"
    if damage == "replaced":
        other = support.write_exported(tmp_path / "other", seed=3)
        compile_bundle(other, candidate, CompileOptions(target="cpu", overwrite=True))
    else:
        (candidate / "image.onnx").write_bytes(b"")
    bundle, _report, notes = search(exported, folder, tmp_path / "out")
    assert any("resuming" in note for note in notes)
    assert any(note.startswith(f"not reusing {candidate}") for note in notes)
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


def test_held_out_images_are_not_those_that_calibrate(exported: ExportedBundle, folder: Path, tmp_path: Path) -> None:
    bundle, _report, _notes = search(exported, folder, tmp_path / "out")
    calibration = obtain_calibration(exported, CalibrationOptions(dataset=f"imagefolder:{folder}", samples=8))
    assert bundle.compilation.calibration == calibration.record
    assert len(set(bundle.calibration_data().images) - set(calibration.images)) == 60


WRONG: dict[str, Any] = {
    "target": "wrong",
    "min_cosine": -1.0,
    "min_agreement": 0.0,
    "search": {"precision": Precision.QINT8_MIXED_FLOAT32},
}
"""A search in which no trial is within the drop."""


def test_nothing_within_the_drop_is_a_failed_gate_that_keeps_its_trials(
    exported: ExportedBundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a search that was interrupted in between ends with the same trials, none of which is made twice."""
    faulty_backends.register(monkeypatch)
    with pytest.raises(
        GateError, match=r"No quantisation options stay within a drop of 0\.1.*the best was qint8"
    ) as caught:
        search(exported, folder, tmp_path / "whole", 0.1, **WRONG)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "whole").exists()
    whole = msgspec.json.decode((tmp_path / "whole.search" / "search.json").read_bytes(), type=SearchReport)
    verdicts = [trial.verdict for trial in whole.trials]
    assert set(verdicts) == {"stopped_early", "exploratory"}, "at a quarter of the images, or to see what a role costs"
    interrupted_search(exported, folder, tmp_path / "out", 5, 0.1, **WRONG)
    made: list[str] = []
    with pytest.raises(GateError):
        search(exported, folder, tmp_path / "out", 0.1, on_result=made.append, **WRONG)
    assert len(made) == len(set(made)) == len(verdicts) - 5
    report = msgspec.json.decode((tmp_path / "out.search" / "search.json").read_bytes(), type=SearchReport)
    assert without_times(report) == without_times(whole)


def without_times(report: SearchReport) -> SearchReport:
    trials = tuple(msgspec.structs.replace(trial, elapsed_s=0.0) for trial in report.trials)
    return msgspec.structs.replace(report, trials=trials)


def test_a_failed_compilation_is_a_trial(
    exported: ExportedBundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty_backends.register(monkeypatch)
    bundle, report, _ = search(exported, folder, tmp_path / "out", target="refusing")
    assert [trial.verdict for trial in report.trials] == ["failed", "accepted"]
    assert report.trials[0].reason == "MagicMind cannot build the image tower: no"
    assert bundle.compilation.quantisation == CPU_RECOMMENDED[8], "the second way"


@pytest.mark.parametrize("fault", ["build_model:1:oom", "serialize_to_file:2:status"])
def test_a_build_that_failed_in_passing_is_tried_again_by_the_next_search(
    exported: ExportedBundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A card that ran out of memory once says nothing about the way to quantise."""
    common: dict[str, Any] = {"target": "emulated-mlu", "samples": 20, "max_drop": 0.9}
    faults.reset()
    with monkeypatch.context() as patch:
        patch.setenv("CLIPMLU_EMULATOR_FAULTS", fault)
        interrupted_search(exported, folder, tmp_path / "out", 1, **common)
    (stored,) = stored_trials(tmp_path / "out")
    assert stored["trial"]["verdict"] == "accepted", "the second way; the first one is not known"
    _bundle, report, notes = search(exported, folder, tmp_path / "out", **common)
    assert any("resuming" in note for note in notes)
    assert [trial.verdict for trial in report.trials] == ["accepted"]
    assert report.trials[0].quantisation == QuantisationOptions()


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
    with pytest.raises(CalibrationError, match="differ from those of the recipe"):
        compile_bundle(exported, tmp_path / "again", options)


def test_contradictions_are_refused(exported: ExportedBundle, folder: Path, tmp_path: Path) -> None:
    for drop in (0.0, 1.0, -0.1):
        with pytest.raises(OptionError, match="expected a fraction above 0"):
            SearchOptions(max_drop=drop)
    with pytest.raises(OptionError, match="quantises nothing"):
        SearchOptions(max_drop=0.1, precision=Precision.FORCE_FLOAT16)
    with pytest.raises(OptionError, match="the search chooses the quantisation options"):
        search(exported, folder, tmp_path / "out", quantisation=QuantisationOptions(granularity="per_axis"))
    with pytest.raises(OptionError, match=r"60 images cannot show that a drop is within 0\.01.* at least 163 can"):
        search(exported, folder, tmp_path / "out", 0.01)
    with pytest.raises(OptionError, match="a search runs the compiled graphs"):
        search(exported, folder, tmp_path / "out", check=False)
    with pytest.raises(OptionError, match="needs calibration data"):
        search(exported, folder, tmp_path / "out", calibration=None)
    plain = tmp_path / "plain"
    plain.mkdir()
    support.picture(1).save(plain / "1.png")
    with pytest.raises(InputError, match="images without classes"):
        search(exported, folder, tmp_path / "out", calibration=CalibrationOptions(dataset=str(plain)))
    with pytest.raises(InputError, match="is not a recipe"):
        read_recipe(plain / "1.png")
    recipe = read_recipe(search(exported, folder, tmp_path / "out")[0].path)
    with pytest.raises(OptionError, match="leave out those options"):
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


@pytest.mark.torch
def test_planted_outliers_change_nothing_in_float(libraries: None, tmp_path: Path) -> None:
    """By open_clip itself; that a search recovers from them in 8 bits is a slow test."""
    import open_clip
    import torch

    from clipmlu.export.quiet import quiet_libraries

    assert support.plant_outliers(DEMO, tmp_path / "planted") == 12
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
    assert support.plant_outliers(DEMO, tmp_path / "planted") == 12
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
        "qint8_mixed_float16 per_axis linear smoothing qkv 0.5 float mlp_out: top-1 0.5000, drop 1.23 points "
        "(95 %: at most 2.00) on 1000 images: rejected"
    )
