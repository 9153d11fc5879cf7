"""``clipmlu doctor --probe-sdk`` and ``--write-probe``; its findings are in ``tests/test_diagnostics.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import Run
from clipmlu.magicmind.probe.questions.report import JSON_NAME, MARKDOWN_NAME


@pytest.fixture(autouse=True)
def _no_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIPMLU_MLU_PYTHON", "CLIPMLU_MLU_WORKER", "CLIPMLU_EMULATOR_MODE"):
        monkeypatch.delenv(name, raising=False)


def test_emulated_sdk_is_probed_and_the_table_says_so(run: Run, tmp_path: Path) -> None:
    code, out, err = run("doctor", "--probe-sdk", "--emulated", "--only", "enums", "--output", tmp_path)
    assert code == 0
    assert out.startswith("Emulated MagicMind SDK")
    assert "7.18" in out
    assert "nothing here is a card" in err
    assert "Please send" not in err
    assert {path.name for path in tmp_path.iterdir()} == {JSON_NAME, MARKDOWN_NAME}
    assert "**Emulated.**" in (tmp_path / MARKDOWN_NAME).read_text()


@pytest.mark.slow
def test_report_is_printed_as_json(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("doctor", "--probe-sdk", "--emulated", "--only", "enums", "--output", tmp_path, "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / JSON_NAME).read_bytes())
    assert json.loads(out)["emulated"] is True


@pytest.mark.slow
def test_interpreter_that_the_environment_names_is_probed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Path(__file__).parents[1] / "mlu" / "stub_sdk"
    monkeypatch.setenv("CLIPMLU_MLU_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(stub))
    code, out, err = run("doctor", "--probe-sdk", "--only", "surface", "--output", tmp_path)
    assert code == 0
    assert out.startswith("MagicMind SDK")
    assert "Please send both to the project" in err


def test_absent_sdk_is_one_line_and_exit_1(run: Run, tmp_path: Path) -> None:
    code, out, err = run("doctor", "--probe-sdk", "--output", tmp_path / "out")
    assert (code, out) == (1, "")
    assert "There is no MagicMind SDK to probe here" in err
    assert "--write-probe" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_written_probe_has_its_graphs_beside_it(run: Run, tmp_path: Path) -> None:
    code, out, err = run("doctor", "--write-probe", tmp_path / "probe")
    assert code == 0
    assert out.strip() == str(tmp_path / "probe" / "clipmlu_probe.pyz")
    assert "python3.7 clipmlu_probe.pyz" in err
    listed = subprocess.run([sys.executable, out.strip(), "--list"], capture_output=True, text=True, check=True).stdout
    assert "7.1 " in listed
    assert (tmp_path / "probe" / "graphs" / "base.onnx").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--emulated"], "--emulated needs --probe-sdk"),
        (["--output", "x"], "--output needs --probe-sdk"),
        (["--probe-sdk", "--write-probe", "x"], "exclude each other"),
        (["--write-probe", "x", "--only", "dims"], "--only needs --probe-sdk"),
        (["--probe-sdk", "--timeout", "0"], "--timeout"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run: Run, arguments: list[str], message: str) -> None:
    code, _, err = run("doctor", *arguments)
    assert code == 2
    assert message in err


def test_unknown_probe_is_refused_with_its_neighbours(run: Run, tmp_path: Path) -> None:
    code, _, err = run("doctor", "--probe-sdk", "--emulated", "--only", "cast", "--output", tmp_path)
    assert code == 2
    assert "Did you mean 'casts'" in err
