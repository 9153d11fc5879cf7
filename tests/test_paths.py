"""Every public function takes a path as a string or as a path object, and says in one line that anything else is none."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import clipmlu
import support
from clipmlu.arguments import as_path
from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.chain import RunOptions, run_chain
from clipmlu.compile.plan import CompileOptions
from clipmlu.compile.recipe import read_recipe
from clipmlu.data.calibration import CalibrationOptions, obtain_calibration, open_train_split
from clipmlu.data.calibration_set import load_calibration
from clipmlu.data.class_names import resolve_class_names
from clipmlu.data.datasets import open_dataset
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.data.images import load_image
from clipmlu.data.prompts import resolve_templates
from clipmlu.errors import BundleNotFoundError, ExportError, InputError, OptionError
from clipmlu.export.source import tokenizer_file
from clipmlu.files.publish import encode_json, write_file
from clipmlu.host import cache_dir, cifar100_dir
from clipmlu.measure.accuracy.evaluate import EvalOptions
from clipmlu.measure.accuracy.report import read_report
from clipmlu.measure.speed.loads import SpeedOptions
from clipmlu.measure.speed.speed import measure_speed
from clipmlu.specs import Precision
from clipmlu.tune.sweep import run_sweep
from clipmlu.tune.sweep_options import SweepOptions


class Own(os.PathLike[str]):
    """A path object that is no ``pathlib.Path``."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return self._path


FORMS: list[Callable[[str], Any]] = [str, Path, Own]
_COMPILE = CompileOptions(target="cpu")
_SWEEP = SweepOptions(compile=_COMPILE, precisions=(Precision.FORCE_FLOAT32,), batch_sizes=(1,))
_SEARCH = clipmlu.SearchOptions(max_drop=0.5)


def run(output: Any, data_dir: Any = None) -> object:
    options = RunOptions(
        export=clipmlu.ExportOptions(),
        compile=_COMPILE,
        evaluate=EvalOptions(),
        dataset=DatasetChoice(name="cifar100", data_dir=data_dir),
    )
    return run_chain("demo", output, options)


TAKERS: dict[str, Callable[[Any], object]] = {
    "load": clipmlu.load,
    "open_bundle": clipmlu.open_bundle,
    "compile_bundle source": lambda path: clipmlu.compile_bundle(path, "out"),
    "compile_bundle output": lambda path: clipmlu.compile_bundle(_exported(), path),
    "search_bundle source": lambda path: clipmlu.search_bundle(path, "out", _COMPILE, _SEARCH),
    "search_bundle output": lambda path: clipmlu.search_bundle("b", path, _COMPILE, _SEARCH),
    "export_model output": lambda path: clipmlu.export_model("demo", path),
    "export_model tokenizer": lambda path: clipmlu.ExportOptions(tokenizer=path),
    "export_model cache_dir": lambda path: clipmlu.ExportOptions(cache_dir=path),
    "open_dataset data_dir": lambda path: open_dataset("cifar100", data_dir=path),
    "run_chain output": run,
    "run_chain data_dir": lambda path: run("out", path),
    "run_sweep source": lambda path: run_sweep(path, "out", _SWEEP),
    "run_sweep output": lambda path: run_sweep("b", path, _SWEEP),
    "measure_speed": measure_speed,
    "read_report": read_report,
    "read_recipe": read_recipe,
    "load_calibration": load_calibration,
    "write_file": lambda path: write_file(path, b"", overwrite=False),
}


def _exported() -> ExportedBundle:
    return clipmlu.open_bundle(Path("tiny"))  # type: ignore[return-value]


@pytest.mark.parametrize("name", list(TAKERS))
@pytest.mark.usefixtures("exported")
def test_what_is_no_path_is_refused_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for wrong in (3, b"x", "", "a\0b"):
        with pytest.raises(
            OptionError,
            match=r"^[^\n]* is (3|b'x'|''|'a\\x00b')(; expected a (text or a )?path|, which is no path)[^\n]*$",
        ):
            TAKERS[name](wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_a_path_are_taken(
    form: Callable[[str], Any], exported: ExportedBundle, compiled: CompiledBundle, tmp_path: Path
) -> None:
    again = clipmlu.compile_bundle(form(str(exported.path)), form(str(tmp_path / "again")), _COMPILE)
    assert clipmlu.open_bundle(form(str(again.path))).digest == again.digest
    with clipmlu.load(form(str(compiled.path))) as model:
        classifier = model.classifier(["a", "b"])
        classifier.save(form(str(tmp_path / "ab.clf")))
        assert model.load_classifier(form(str(tmp_path / "ab.clf"))).class_names == ("a", "b")
    calibration = obtain_calibration(exported, CalibrationOptions(dataset="demo", samples=2))
    calibration.save(form(str(tmp_path / "calibration")))
    assert load_calibration(form(str(tmp_path / "calibration"))).record == calibration.record
    with pytest.raises(InputError, match=r"No CIFAR-100 in '.*nowhere'|No cifar100 in '.*nowhere'"):
        open_dataset("cifar100", data_dir=form(str(tmp_path / "nowhere")))
    with pytest.raises(BundleNotFoundError, match="nowhere"):
        run_sweep(form(str(tmp_path / "nowhere")), form(str(tmp_path / "sweep")), _SWEEP)
    with pytest.raises(BundleNotFoundError, match="nowhere"):
        clipmlu.search_bundle(form(str(tmp_path / "nowhere")), form(str(tmp_path / "found")), _COMPILE, _SEARCH)
    assert as_path(form("x"), "it") == Path("x")


@pytest.mark.parametrize("wrong", [3, Path("demo")])
def test_names_are_strings(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="expected a name"):
        clipmlu.export_model(wrong, tmp_path / "out")
    with pytest.raises(OptionError, match="expected a name"):
        open_dataset(wrong)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, which is not the working directory."""
    folder = tmp_path / "home"
    folder.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(work)
    return folder


def test_the_home_folder_is_meant_by_a_tilde_in_every_argument(home: Path, exported: ExportedBundle) -> None:
    shutil.copytree(exported.path, home / "tiny")
    Image.new("RGB", (support.SIDE, support.SIDE), (9, 200, 3)).save(home / "a.png")
    (home / "labels.txt").write_text("cat\ndog\n")
    (home / "templates.txt").write_text("a {}\n")
    for name in ("x", "y"):
        (home / "images" / name).mkdir(parents=True)
        shutil.copy(home / "a.png", home / "images" / name)
    compiled = clipmlu.compile_bundle("~/tiny", "~/made/cpu", _COMPILE)
    assert compiled.path == home / "made" / "cpu"
    with clipmlu.load(Path("~/made/cpu")) as model:
        assert model.embed_images("~/a.png").shape == (support.DIM,)
        for names in ("~/labels.txt", Path("~/labels.txt")):
            for templates in ("~/templates.txt", Path("~/templates.txt")):
                classifier = model.classifier(names, templates)
                assert (classifier.class_names, classifier.templates) == (("cat", "dog"), ("a {}",))
        classifier.save("~/ab.clf")
        assert model.load_classifier("~/ab.clf").class_names == ("cat", "dog")
        answers = classifier.predict(["~/a.png", Path("~/a.png")])
        assert isinstance(answers, clipmlu.Predictions)
        assert answers[0].scores == answers[1].scores
        assert answers[0].source == "~/a.png"
        for class_names in ("~/labels.txt", Path("~/labels.txt")):
            dataset = open_dataset("imagefolder:~/images", class_names=class_names)
            assert dataset.class_names == ("cat", "dog")
        report = clipmlu.evaluate(model, dataset, EvalOptions(templates=Path("~/templates.txt")))
    assert report.images == 2
    write_file("~/report.json", encode_json(report), overwrite=False)
    assert read_report("~/report.json") == report
    assert load_image("~/a.png").size == (support.SIDE, support.SIDE)
    speed = measure_speed("~/made/cpu", SpeedOptions(images=("~/a.png",), duration_ms=0, warmup_ms=0, iterations=1))
    assert speed.pipeline is not None
    clipmlu.compare_bundles("~/made/cpu", "~/tiny", dataset, clipmlu.CompareOptions(source="~/tiny"))
    calibration = obtain_calibration(exported, CalibrationOptions(dataset="~/images", samples=2))
    calibration.save("~/calibration")
    assert load_calibration("~/calibration").record == calibration.record
    assert not any(Path.cwd().iterdir())


@pytest.mark.usefixtures("home")
def test_the_home_folder_is_meant_by_a_tilde_in_options_and_variables(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert clipmlu.ExportOptions(cache_dir="~/hub").cache_dir == home / "hub"
    worker = WorkerOptions(address="unix:~/socket", secret_file="~/secret")
    assert (worker.address, worker.secret_file) == (f"unix:{home}/socket", f"{home}/secret")
    assert WorkerOptions(python="~/bin/python3.7").python == f"{home}/bin/python3.7"
    assert WorkerOptions(python="./python").python == "./python"
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", "~/cache")
    assert cache_dir() == home / "cache"
    monkeypatch.delenv("CLIPMLU_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/xdg")
    assert cache_dir() == home / "xdg" / "clipmlu"
    monkeypatch.setenv("CIFAR100_DATASETS_PATH", "~nobody-of-this-name/data")
    assert cifar100_dir() == Path("~nobody-of-this-name/data")
    with pytest.raises(ExportError, match="~nobody-of-this-name/model"):
        clipmlu.export_model("local-dir:~nobody-of-this-name/model", "out")


def test_a_name_that_begins_with_a_tilde_and_exists_is_itself(home: Path, exported: ExportedBundle) -> None:
    shutil.copytree(exported.path, "~tiny")
    shutil.copytree(exported.path, home / "own")
    assert clipmlu.open_bundle("~tiny").path == Path("~tiny")
    (Path.cwd() / "~").mkdir()
    shutil.copytree(exported.path, "~/own")
    assert clipmlu.open_bundle("~/own").path == Path("~/own")
    assert clipmlu.path_from_name("~/own") == Path("~/own")


CLOSED: dict[str, Callable[[str], object]] = {
    "labels": resolve_class_names,
    "labels, path object": lambda path: resolve_class_names(Path(path)),
    "templates": resolve_templates,
    "imagefolder": lambda path: open_dataset(f"imagefolder:{path}"),
    "calibration": lambda path: open_train_split(CalibrationOptions(dataset=path)),
    "calibration folder": lambda path: open_train_split(CalibrationOptions(dataset=f"imagefolder:{path}")),
    "local model": lambda path: clipmlu.export_model(f"local-dir:{path}", "out"),
    "checkpoint": lambda path: clipmlu.export_model("ViT-B-32", "out", clipmlu.ExportOptions(pretrained=path)),
    "tokenizer": tokenizer_file,
}


@pytest.mark.parametrize("name", list(CLOSED))
def test_a_path_below_a_closed_folder_is_not_said_to_be_absent(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system is made to answer as it does below a folder of mode 000, which the superuser does not see."""
    monkeypatch.chdir(tmp_path)
    closed, real = f"{tmp_path}/closed", os.stat

    def stat(path: Any, *given: Any, **named: Any) -> os.stat_result:
        if str(path).startswith(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *given, **named)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(InputError, match=rf"^Cannot access '{closed}/x.*': Permission denied\. "):
        CLOSED[name](f"{closed}/x")
