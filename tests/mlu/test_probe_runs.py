"""The probes on SDKs that crash and hang, and on those that lack something."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clipmlu.errors import BackendUnavailableError
from clipmlu.magicmind.archive import make_archive, package_files
from clipmlu.magicmind.backend import emulated_worker
from clipmlu.magicmind.probe import run
from clipmlu.magicmind.probe.graphs import make_graphs
from clipmlu.magicmind.probe.questions.report import JSON_NAME, MARKDOWN_NAME
from clipmlu.magicmind.probe.run import probe_emulated_sdk, probe_sdk
from mlu.probe import QUIET, found


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    for name, content in make_graphs().items():
        (folder / name).write_bytes(content)
    return folder


HEAD = """
import atexit, os, signal, sys, time
import numpy as np
"""
PLANTED = """
@probe("planted-{number}", "7.0", "What does a planted probe do?", cases=("before", "bad", "after"), card=False)
def _planted_{number}(bench: Bench, case: str) -> Finding:
    print("the vendor's last words at " + os.path.join(bench.scratch, "x"), flush=True)
    if case == "bad":
        {bad}
    return Finding("fine")
"""


def run_planted(
    folder: Path, graphs: Path, bad: Sequence[str], seconds: float, limits: str = ""
) -> list[dict[str, Any]]:
    """Run a copy of the program that has a probe more for each piece of code, and other limits; the records of these probes."""
    files = package_files("clipmlu.magicmind.probe.questions", "planted")
    added = [HEAD, *(PLANTED.format(number=number, bad=code) for number, code in enumerate(bad))]
    files["planted/limits.py"] += "".join(added).encode()
    files["planted/runner.py"] += limits.encode()
    program = folder / "planted.pyz"
    program.write_bytes(make_archive(files, "planted.command:main"))
    command = [sys.executable, str(program), "--graphs", str(graphs), "--output", str(folder), "--arch", "mtp_372"]
    command += [
        "--timeout",
        str(seconds),
        "--jobs",
        "2",
        "--only",
        *(f"planted-{number}" for number in range(len(bad))),
    ]
    environment = emulated_worker(**QUIET).environment
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    records: list[dict[str, Any]] = json.loads((folder / JSON_NAME).read_bytes())["records"]
    return records


BAD = [
    ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed", "killed by SIGSEGV"),
    ("os.abort()", "crashed", "killed by SIGABRT"),
    ("os._exit(3)", "crashed", "exit code 3"),
    ("os._exit(0)", "crashed", "the process ended without an answer"),
    ("time.sleep(100)", "timed out", "no end within 4 s"),
    ("raise ValueError('what now?')", "answered", "raises ValueError: what now?"),
    ("raise NotReachedError('build_model: None')", "answered", "build_model: None"),
    ("return Finding('x', number=np.float32('nan'), more=[object])", "answered", "x"),
]
LEAVING = "atexit.register(os.abort)"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, graphs: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """The records of the probes of ``BAD`` and of ``LEAVING`` by their code, and the Markdown of the report; run once."""
    folder = tmp_path_factory.mktemp("planted")
    codes = [*(code for code, _, _ in BAD), LEAVING]
    records = run_planted(folder, graphs, codes, 4)
    return dict(zip(codes, records, strict=True)), (folder / MARKDOWN_NAME).read_text()


@pytest.mark.parametrize(("bad", "outcome", "said"), BAD)
def test_crash_hang_and_exception_are_findings_and_later_cases_run(
    planted: tuple[dict[str, dict[str, Any]], str], bad: str, outcome: str, said: str
) -> None:
    records, markdown = planted
    record = records[bad]
    assert record["outcome"] == outcome
    assert record["details"]["bad"]["found"] == said
    assert record["details"]["before"]["found"] == record["details"]["after"]["found"] == "fine"
    assert record["answer"] == f"before / after: fine; bad: {said}"
    assert "the vendor's last words at <scratch>" in record["log"]
    if "kill" in bad or "abort" in bad:
        assert 'File "<program>/planted.pyz' in record["log"], "without the name of the folder, which can name a user"
    assert f"| bad | {said} |" in markdown


def test_crash_on_leaving_is_noted_and_spoils_no_answer(planted: tuple[dict[str, dict[str, Any]], str]) -> None:
    record = planted[0][LEAVING]
    assert record["outcome"] == "answered"
    assert [case["raw"] for case in record["details"].values()] == [{}, {}, {"process_end": "killed by SIGABRT"}]


def test_probe_that_keeps_hanging_is_given_up_after_some_cases(tmp_path: Path, graphs: Path) -> None:
    (record,) = run_planted(tmp_path, graphs, ["time.sleep(100)"], 2, limits="MAX_TIMEOUTS = 1\n")
    assert record["outcome"] == "timed out"
    assert [case["outcome"] for case in record["details"].values()] == ["answered", "timed out", "not tried"]
    assert record["details"]["after"]["found"] == "left out after 1 cases that hung"


@pytest.mark.slow
def test_process_that_the_system_cannot_kill_does_not_delay_the_others(tmp_path: Path, graphs: Path) -> None:
    """As one inside a call of a driver; here no signal is sent at all."""
    limits = "KILL_SECONDS = 0.1\ndef kill_group(child):\n    pass\n"
    start = time.monotonic()
    (record,) = run_planted(tmp_path, graphs, ["time.sleep(20)"], 1, limits=limits)
    assert time.monotonic() - start < 15
    found = {case: fields["found"] for case, fields in record["details"].items()}
    assert found == {"before": "fine", "bad": "no end within 1 s; it cannot be killed", "after": "fine"}
    assert record["outcome"] == "timed out"


def test_interpreter_that_never_starts_is_ended_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ >{tmp_path / 'pid'}\nexec sleep 100\n")
    python.chmod(0o755)
    monkeypatch.setattr(run, "_START_SECONDS", 0.2)
    with pytest.raises(BackendUnavailableError, match=r"python' did not start the probes in time\. Check"):
        probe_sdk(tmp_path / "out", python=str(python), timeout_seconds=0.1)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()
    assert not (tmp_path / "out").exists()


def test_interpreter_that_the_system_cannot_kill_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that reads from a file system that does not answer; here the signals are not sent."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 20\n")
    python.chmod(0o755)
    started: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(run, "_START_SECONDS", 0.1)
    monkeypatch.setattr(run, "_END_SECONDS", 0.1)
    monkeypatch.setattr(subprocess.Popen, "send_signal", lambda process, _number: started.append(process))
    start = time.monotonic()
    try:
        with pytest.raises(BackendUnavailableError, match=r"did not start the probes in time"):
            probe_sdk(tmp_path / "out", python=str(python), timeout_seconds=0.1)
        assert time.monotonic() - start < 10
    finally:
        os.kill(started[0].pid, signal.SIGKILL)
        started[0].wait()


def test_interrupted_run_ends_its_processes_and_keeps_what_it_found(tmp_path: Path, graphs: Path) -> None:
    package = "clipmlu.magicmind.probe.questions"
    command = [sys.executable, "-m", package, "--graphs", str(graphs), "--output", str(tmp_path), "--timeout", "60"]
    environment = emulated_worker(**{**QUIET, "faults": "parse:1:hang"}).environment
    process = subprocess.Popen([*command, "--only", "enums", "dims", "--arch", "mtp_372"], env=environment, stderr=-1)
    with process:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        deadline = time.monotonic() + 10
        while not (before := children_of(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.terminate()
        lines += process.stderr.readlines()
        assert process.wait(20) == 130
    assert b"enums: answered" in lines[0]
    assert b"interrupted" in lines[-1]
    assert [record["name"] for record in json.loads((tmp_path / JSON_NAME).read_bytes())["records"]] == ["enums"]
    assert before
    assert not [pid for pid in before if Path(f"/proc/{pid}").exists()]


def children_of(parent: int) -> list[str]:
    return [pid for task in Path(f"/proc/{parent}/task").iterdir() for pid in (task / "children").read_text().split()]


@pytest.mark.slow
def test_hang_inside_the_sdk_is_the_answer(tmp_path: Path) -> None:
    report = probe_emulated_sdk(
        tmp_path, timeout_seconds=2, only=["queueing"], **{**QUIET, "faults": "create_i_context:2:hang"}
    )
    (record,) = report.records
    assert record.outcome == "timed out"
    outcomes = [case.outcome for case in record.details.values()]
    assert outcomes == ["answered", "timed out", "answered", "timed out"]
    assert record.details["two contexts on one queue"].found == "no end within 2 s"


@pytest.mark.slow
def test_crash_inside_the_sdk_is_the_answer(tmp_path: Path) -> None:
    report = probe_emulated_sdk(tmp_path, only=["queueing"], **{**QUIET, "faults": "sync:2:crash"})
    (record,) = report.records
    assert record.outcome == "crashed"
    assert "killed by SIGKILL" in {case.found for case in record.details.values()}


@pytest.mark.slow
def test_card_is_found_out_even_if_it_is_another(tmp_path: Path) -> None:
    report = probe_emulated_sdk(tmp_path, only=["contexts"], arch="mtp_592", **QUIET)
    assert report.arch == "mtp_592"
    assert report.records[0].answer == "16 or more"


@pytest.mark.parametrize(
    ("breakage", "arch"),
    [
        pytest.param("BuilderConfig.mlu_archs = property(lambda self: [])", "json:mtp_372", marks=pytest.mark.slow),
        ("BuilderConfig.mlu_archs = property(lambda self: [])\nconfig.KEYS.pop('archs')", "default:any"),
        pytest.param(
            "from clipmlu.magicmind.emulator.devices import System\ndel System.device_count",
            "mtp_372",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "from clipmlu.magicmind.emulator.model import Model\ndel Model.EngineConfig",
            "mtp_372",
            marks=pytest.mark.slow,
        ),
        ("from clipmlu.magicmind.emulator.tensor import Tensor\ndel Tensor.to", "mtp_372"),
    ],
)
@pytest.mark.slow
def test_sdk_that_lacks_something_is_asked_all_the_same(tmp_path: Path, breakage: str, arch: str) -> None:
    header = (
        "from clipmlu.magicmind.emulator import config\nfrom clipmlu.magicmind.emulator.config import BuilderConfig\n"
    )
    (tmp_path / "sitecustomize.py").write_text(f"{header}{breakage}\n")
    environment = dict(emulated_worker(**QUIET).environment or {})
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    report = probe_sdk(tmp_path, python=sys.executable, environment=environment, only=["casts"])
    assert report.arch == arch
    assert found(report, "casts", "float64 for FLOAT32") == "cast, result right"


@pytest.mark.slow
def test_several_cards_show_what_active_means_to_a_thread(tmp_path: Path) -> None:
    report = probe_emulated_sdk(tmp_path, only=["threads", "two-cards"], **{**QUIET, "devices": 2})
    assert "device 0 is active in this thread" in found(
        report, "threads", "a context of the main thread, without active()"
    )
    assert found(report, "threads", "a context of the main thread, after active()") == "result right"
    assert found(report, "two-cards", "").endswith("open on card 1: Session; run: list; result right")


@pytest.mark.slow
def test_without_a_card_what_needs_none_is_asked(tmp_path: Path) -> None:
    report = probe_emulated_sdk(tmp_path, only=["dims", "casts", "operators"], **{**QUIET, "devices": 0})
    outcomes = {record.name: (record.outcome, record.answer) for record in report.records}
    assert outcomes["casts"] == ("not tried", "there is no card")
    assert outcomes["dims"][0] == "answered"
    assert "not run, for there is no card" in outcomes["operators"][1]


@pytest.mark.slow
def test_no_model_that_runs_leaves_the_rest_untried_and_says_why(tmp_path: Path) -> None:
    report = probe_emulated_sdk(
        tmp_path, only=["foundation", "casts"], **{**QUIET, "faults": "create_i_engine:1:status"}
    )
    assert [record.outcome for record in report.records] == ["answered", "not tried"]
    assert "see 'foundation'" in report.records[1].answer
