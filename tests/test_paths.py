"""Every public function takes a path as a string or as a path object, and says in one line that anything else is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clipmlu
from clipmlu.bundle import CompiledBundle, ExportedBundle
from clipmlu.compile.calibration import CalibrationOptions, load_calibration, obtain_calibration
from clipmlu.compile.compiler import CompileOptions
from clipmlu.compile.recipe import read_recipe
from clipmlu.data.datasets import open_dataset
from clipmlu.errors import BundleNotFoundError, InputError, OptionError
from clipmlu.files import as_path, write_file
from clipmlu.measure.accuracy import EvalOptions, read_report
from clipmlu.measure.speed import measure_speed
from clipmlu.measure.sweep import SweepOptions, run_sweep
from clipmlu.pipeline import RunOptions, run_chain
from clipmlu.specs import Precision


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
        export=clipmlu.ExportOptions(), compile=_COMPILE, evaluate=EvalOptions(), dataset="cifar100", data_dir=data_dir
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
    for wrong, kind in ((3, TypeError), (b"x", TypeError), ("", OptionError), ("a\0b", OptionError)):
        with pytest.raises(
            kind, match=r"^[^\n]* is (3|b'x'|''|'a\\x00b')(; expected a path|, which is no path)[^\n]*$"
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
    with pytest.raises(TypeError, match="expected a name"):
        clipmlu.export_model(wrong, tmp_path / "out")
    with pytest.raises(TypeError, match="expected a name"):
        open_dataset(wrong)


@pytest.mark.torch
@pytest.mark.usefixtures("libraries")
def test_export_takes_a_string(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = clipmlu.export_model(f"local-dir:{tiny_model('vit')}", str(tmp_path / "out"))
    assert bundle.path == tmp_path / "out"
