"""The options that say which images: one meaning in every command that reads a labelled dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.model import Model
from conftest import REPOSITORY

from .conftest import Run

IDS = {"n01440764": "tench", "n01443537": "goldfish", "n01484850": "great white shark", "n03126707": "crane"}


@pytest.fixture
def images(compiled: CompiledBundle, tmp_path: Path) -> Path:
    """Pictures in folders that are named by the id of the class that the model takes them for; so words make it always right."""
    names = list(IDS.values())
    with Model(compiled) as encoder:
        classifier = encoder.classifier(names, cache=False)
        for number in range(40):
            picture = support.picture(number)
            best = classifier.predict(picture).indices[0]  # type: ignore[union-attr]
            place = tmp_path / "images" / list(IDS)[best]
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{number}.png")
    found = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert len(found) >= 3
    index = {str(at): [key, IDS[key]] for at, key in enumerate(found)}
    (tmp_path / "imagenet_class_index.json").write_text(json.dumps(index))
    return tmp_path / "images"


def test_eval_of_ids_needs_names_and_is_right_with_them(run: Run, compiled: CompiledBundle, images: Path) -> None:
    data = ("--dataset", f"imagefolder:{images}", "--json")
    code, out, err = run("eval", compiled.path, *data)
    assert (code, out) == (1, "")
    assert "are named by ids, such as 'n0" in err
    code, out, _ = run("eval", compiled.path, *data, "--class-names", images.parent / "imagenet_class_index.json")
    report = json.loads(out)
    assert (code, report["images"], report["top1"]) == (0, 40, 1.0)
    assert {row["class_name"] for row in report["per_class"]} <= set(IDS.values())
    code, out, _ = run("eval", compiled.path, *data, "--folder-names")
    assert code == 0
    assert json.loads(out)["top1"] < 1.0
    code, _, err = run("eval", compiled.path, *data, "--class-names", images.parent / "absent.txt")
    assert (code, "file of class names" in err, "does not exist" in err) == (1, True, True)


@pytest.mark.parametrize(
    "command",
    [
        ("eval", "{compiled}"),
        ("compare", "{compiled}", "{exported}"),
        ("sweep", "{exported}", "-o", "{out}", "--target", "cpu", "--precision", "force_float32"),
        ("run", "demo", "-o", "{out}", "--target", "cpu"),
    ],
)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "has no split 'test'; it has train, val"),
        (("--split", "vla"), "has no split 'vla'; it has train, val"),
        (("--split", "val"), "are named by ids"),
        (("--split", "val", "--class-names", "{names}"), "has no name for folder"),
    ],
)
def test_every_command_refuses_the_wrong_classes(
    run: Run,
    compiled: CompiledBundle,
    exported: ExportedBundle,
    images: Path,
    command: tuple[str, ...],
    options: tuple[str, ...],
    message: str,
) -> None:
    root = images.parent / "root"
    shutil.copytree(images, root / "train")
    images.rename(root / "val")
    names = images.parent / "names.json"
    names.write_text('{"n01440764": "tench"}')
    places = {"compiled": compiled.path, "exported": exported.path, "out": images.parent / "out", "names": names}
    arguments = [each.format(**places) for each in (*command, *options)]
    code, out, err = run(*arguments, "--dataset", f"imagefolder:{root}")
    assert code in (1, 2)
    assert out == ""
    assert message in err
    assert not (images.parent / "out").exists()


def test_calibration_and_search_judge_by_the_names_given(
    run: Run, exported: ExportedBundle, images: Path, tmp_path: Path
) -> None:
    names = ("--calib-class-names", images.parent / "imagenet_class_index.json")
    data = ("--calib", f"imagefolder:{images}", "--calib-samples", 8)
    code, _, err = run("calibrate", exported.path, *data, "-o", tmp_path / "set")
    assert code == 1
    assert "are named by ids" in err
    assert run("calibrate", exported.path, *data, *names, "-o", tmp_path / "set")[0] == 0
    prompts = json.loads((tmp_path / "set" / "calibration-set.json").read_text())["prompts"]
    assert not [prompt for prompt in prompts if "n0" in prompt]
    assert any("crane" in prompt or "tench" in prompt for prompt in prompts)
    search = ("--target", "cpu", "--max-drop", 0.5, "--search-samples", 30)
    code, _, err = run("compile", exported.path, "-o", tmp_path / "int8", *data, *names, *search, "--json")
    assert code == 0, err
    assert "float32: top-1 1.0000 on 30 held-out images" in err
    code, _, err = run("compile", exported.path, "-o", tmp_path / "again", *data, *search)
    assert code == 1
    assert "are named by ids" in err


def test_options_about_images_that_are_not_there_are_refused(
    run: Run, exported: ExportedBundle, tmp_path: Path
) -> None:
    sweep = ("sweep", exported.path, "-o", tmp_path / "out", "--precision", "force_float32")
    for command, message in (
        ((*sweep, "--class-names", "x.txt"), "give a --dataset too"),
        (("compile", exported.path, "-o", tmp_path / "out", "--calib-folder-names"), "about the images of --calib"),
    ):
        code, _, err = run(*command)
        assert (code, message in err) == (2, True)


def test_the_readme_runs_on_the_target_of_its_steps() -> None:
    readme, tutorial = (
        (REPOSITORY / name).read_text(encoding="utf-8").splitlines() for name in ("README.md", "docs/tutorial.md")
    )
    steps = next(line for line in readme if line.startswith("clipmlu compile demo "))
    whole = next(line for line in tutorial if line.startswith("clipmlu run demo"))
    assert "--target" not in steps + whole, "both take auto"
