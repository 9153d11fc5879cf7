"""Settings, paths and ``clipmlu emulate``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import support
from clipmlu.cli.emulate import emulate_command
from clipmlu.magicmind import MM_RUN_PATH
from clipmlu.magicmind.emulator import NOTICE, emulated_environment, site_path
from clipmlu.magicmind.emulator.program import program_environment
from clipmlu.magicmind.emulator.settings import LENIENT, STRICT, current
from conftest import REPOSITORY


def test_defaults_are_strict_with_one_card() -> None:
    settings = current()
    assert (settings.mode, settings.switches, settings.devices, settings.arch) == ("strict", STRICT, 1, "mtp_372")


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MODE": "lenient",
        "DEVICES": "3",
        "ARCH": "tp_322",
        "LATENCY_MS": "1.5",
        "THREADS": "2",
    }.items():
        monkeypatch.setenv(f"CLIPMLU_EMULATOR_{name}", value)
    settings = current()
    assert (settings.switches, settings.device_count, settings.arch) == (LENIENT, 3, "tp_322")
    assert (settings.latency_ms, settings.threads) == ((1.5,), 2)
    monkeypatch.setenv("MLU_VISIBLE_DEVICES", "2,0,7,1")
    assert current().visible == (2, 0)
    assert current().device_count == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("MODE", "harsh"), ("DEVICES", "-1"), ("DEVICES", "two"), ("ARCH", "mtp_1"), ("LATENCY_MS", "x"), ("LATENCY_MS", "1,,2,x"), ("SWITCHES", "fly=1"), ("SWITCHES", "check_rank")],
)  # fmt: skip
def test_bad_variables_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CLIPMLU_EMULATOR_{name}", value)
    with pytest.raises(ValueError, match=f"CLIPMLU_EMULATOR_{name}"):
        current()


def test_an_environment_puts_the_site_first_and_leaves_its_base_alone() -> None:
    base = {"PYTHONPATH": "/elsewhere", "HOME": "/root"}
    environment = emulated_environment(base, devices=2, latency_ms=1.5)
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(site_path()), "/elsewhere"]
    assert (environment["CLIPMLU_EMULATOR_DEVICES"], environment["CLIPMLU_EMULATOR_LATENCY_MS"]) == ("2", "1.5")
    assert base == {"PYTHONPATH": "/elsewhere", "HOME": "/root"}
    with pytest.raises(ValueError, match="unknown emulator settings \\['speed'\\]"):
        emulated_environment(base, speed=3)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, magicmind.python.runtime; print([m for m in ('onnx', 'onnxruntime', 'torch') if m in sys.modules])"
    )
    environment = emulated_environment({"PYTHONPATH": str(REPOSITORY / "src")})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_site_finds_its_own_clipmlu() -> None:
    """Where clipmlu is not installed, the package lies beside the site."""
    code = "import sys, importlib.util; import magicmind; print(importlib.util.find_spec('clipmlu').origin)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=emulated_environment({}), capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == REPOSITORY / "src" / "clipmlu" / "__init__.py"


def _emulate(*arguments: str) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    code = "import sys; from clipmlu.cli.emulate import emulate_command as run; sys.exit(run(standalone_mode=False))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + "|" + done.stderr


def test_emulate_runs_a_program_on_the_emulator(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys, magicmind.python.runtime as mm; print(mm.System().device_count(), *sys.argv[1:])")
    code, text = _emulate("--", sys.executable, str(script), "--precision", "force_float16", "-x")
    assert (code, text) == (0, f"1 --precision force_float16 -x\n|{NOTICE}\n")


def test_emulate_returns_the_programs_own_exit_code() -> None:
    assert _emulate("--", sys.executable, "-c", "raise SystemExit(7)")[0] == 7
    assert _emulate(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")[0] == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_emulate_passes_signals_on_and_waits(number: int) -> None:
    program = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: (print('told', flush=True), sys.exit(5)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "clipmlu", "emulate", "--", sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - no threads are running yet
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    out, _ = support.end_by_signal(process, number)
    assert (out, process.returncode) == ("told\n", 5)


def test_emulate_says_when_there_is_no_such_program() -> None:
    code, text = _emulate("--", "no-such-program")
    assert code == 127
    assert "Cannot run 'no-such-program'" in text
    assert CliRunner().invoke(emulate_command, []).exit_code == 2


def test_tools_of_a_killed_emulate_are_removed_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    program = "from clipmlu.magicmind.emulator.program import program_environment as e; import os, signal\n"
    program += "with e(): os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    (left,) = (tmp_path / "tmp").iterdir()
    with program_environment() as environment:
        (living,) = (tmp_path / "tmp").iterdir()
        assert living != left
        assert (Path(environment[MM_RUN_PATH]) / "mm_run").is_file()
        with program_environment():
            assert living.is_dir(), "that of a living process stays"
    assert list((tmp_path / "tmp").iterdir()) == []
