"""The program of the probes as one file for Python 3.7, and what is said where it finds no SDK."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from clipmlu.errors import BackendUnavailableError, UnknownNameError
from clipmlu.magicmind.archive import package_files
from clipmlu.magicmind.probe.questions.report import JSON_NAME
from clipmlu.magicmind.probe.records import ProbeReport
from clipmlu.magicmind.probe.run import probe_names, probe_sdk, write_probe
from mlu.test_driver_file import ALLOWED, imports, newer_than_37

SOURCES = {
    path: content.decode() for path, content in package_files("clipmlu.magicmind.probe.questions", "questions").items()
}
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


@every_source
def test_probes_are_valid_for_python_37_and_import_nothing_of_ours(source: str) -> None:
    assert newer_than_37(source) == []
    modules = {name for name in imports(source) if not name.startswith(".")}
    assert modules <= ALLOWED | {"concurrent.futures", "gc", "resource", "zipfile"}


def test_modules_imported_by_name_are_those_of_the_sdk() -> None:
    modules = [
        node.args[0].value
        for source in SOURCES.values()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "import_module"
        and isinstance(node.args[0], ast.Constant)
    ]
    assert set(modules) == {"magicmind", "magicmind.python.runtime", "magicmind.python.runtime.parser"}


@pytest.mark.parametrize("first", ["limits", "command"])
def test_all_probes_are_known_in_one_order_whichever_module_is_imported_first(first: str) -> None:
    package = "clipmlu.magicmind.probe.questions"
    code = f"import {package}.{first}; from {package}.catalogue import PROBES; print(*PROBES)"
    listed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert tuple(listed) == probe_names()
    decorated = sum(
        getattr(getattr(decorator, "func", None), "id", "") == "probe"
        for source in SOURCES.values()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
    )
    assert len(listed) == decorated
    assert listed[0] == "foundation"


@pytest.mark.parametrize("interpreter", ["this", "python37"])
def test_written_probe_runs_by_itself(interpreter: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    python = sys.executable if interpreter == "this" else request.getfixturevalue("python37")
    program = write_probe(tmp_path / "probe")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    listed = subprocess.run(
        [python, str(program), "--list"], check=True, capture_output=True, text=True, env=environment
    )
    assert len(listed.stdout.splitlines()) == len(probe_names())
    stub = Path(__file__).with_name("stub_sdk")
    environment["PYTHONPATH"] = str(stub)
    command = [
        python,
        str(program),
        "--output",
        str(tmp_path / "out"),
        "--only",
        "surface",
        "queueing",
        "--timeout",
        "20",
    ]
    subprocess.run(command, check=True, env=environment, timeout=60, capture_output=True)
    report = msgspec.json.decode((tmp_path / "out" / JSON_NAME).read_bytes(), type=ProbeReport)
    assert not report.emulated
    assert "classes with" in report.records[0].answer


def test_absent_sdk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        BackendUnavailableError, match=r"There is no MagicMind SDK to probe here: set CLIPMLU_MLU_PYTHON"
    ):
        probe_sdk(tmp_path)
    with pytest.raises(BackendUnavailableError, match=r"There is no MagicMind SDK for .*No module named 'magicmind'"):
        probe_sdk(tmp_path, python=sys.executable)
    monkeypatch.setenv("CLIPMLU_MLU_PYTHON", str(tmp_path / "python3.7"))
    with pytest.raises(BackendUnavailableError, match=r"Cannot run '.*python3.7': No such file"):
        probe_sdk(tmp_path)
    with pytest.raises(BackendUnavailableError, match=r"gave no report \(exit code 1\)"):
        probe_sdk(tmp_path, python="/bin/false")
    assert list(tmp_path.iterdir()) == []


def test_sdk_that_crashes_on_import_is_reported(tmp_path: Path) -> None:
    package = tmp_path / "site" / "magicmind"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import os\nos.abort()\n")
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    with pytest.raises(BackendUnavailableError, match="import magicmind: killed by SIGABRT"):
        probe_sdk(tmp_path / "out", python=sys.executable, environment=environment)


def test_unknown_probe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown probe 'cast'\. Did you mean 'casts'"):
        probe_sdk(tmp_path, only=["cast"])
