"""Failures on demand, in this process and in others."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clipmlu.magicmind.emulator import emulated_environment, faults
from conftest import REPOSITORY
from mlu.emulator.calls import Runner, build, calibrate, configure, linear, parse, precision

W = np.arange(6, dtype=np.float32).reshape(3, 2)
X = np.ones((2, 3), np.float32)

SCRIPT = """
import sys
import numpy as np
import magicmind.python.runtime as mm
model = mm.Model()
assert model.deserialize_from_file(sys.argv[1]).ok()
context = model.create_i_engine().create_i_context()
queue = mm.Device().create_queue()
for step in range(4):
    inputs = context.create_inputs()
    assert inputs[0].from_numpy(np.ones((2, 3), np.float32)).ok()
    outputs = []
    assert context.enqueue(inputs, outputs, queue).ok()
    assert queue.sync().ok()
    print(step, outputs[0].asnumpy().sum(), flush=True)
"""


@pytest.fixture
def model(mm: ModuleType, tmp_path: Path) -> Any:
    return build(mm, parse(mm, linear(tmp_path / "m.onnx", W)), configure(mm))


def _inject(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    faults.reset()
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULTS", text)


def _statuses(runner: Runner, steps: int) -> list[str]:
    """enqueue and sync, several times; one word for each step."""
    found = []
    for _ in range(steps):
        runner.inputs[0].from_numpy(X)
        outputs: list[Any] = []
        status = runner.context.enqueue(runner.inputs, outputs, runner.queue)
        if status.ok():
            status = runner.queue.sync()
        good = status.ok() and np.array_equal(outputs[0].asnumpy(), X @ W)
        found.append("good" if good else "garbage" if status.ok() else str(status).split(":")[0])
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("enqueue:2:status", ["good", "INTERNAL", "good", "good"]),
        ("enqueue:3:oom", ["good", "good", "RESOURCE_EXHAUSTED", "good"]),
        ("sync:2:device_lost", ["good", "UNAVAILABLE", "UNAVAILABLE", "UNAVAILABLE"]),
        ("enqueue:2:nan", ["good", "garbage", "good", "good"]),
        ("enqueue@0:1:status,enqueue@0:4:status", ["INTERNAL", "good", "good", "INTERNAL"]),
        ("enqueue@1:1:status", ["good", "good", "good", "good"]),
    ],
)
def test_the_nth_call_fails_and_the_others_do_not(
    mm: ModuleType, mode: str, model: Any, monkeypatch: pytest.MonkeyPatch, text: str, expected: list[str]
) -> None:
    runner = Runner(mm, model)
    _inject(monkeypatch, text)
    assert _statuses(runner, 4) == expected


def test_factories_answer_with_none(
    mm: ModuleType, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _inject(
        monkeypatch,
        "create_i_engine:1:oom,create_i_context:1:oom,create_queue:1:status,create_inputs:1:status,build_model:1:status",
    )
    assert model.create_i_engine() is None
    engine = model.create_i_engine()
    assert engine.create_i_context() is None
    context = engine.create_i_context()
    assert mm.Device().create_queue() is None
    assert "create_inputs: failed" in str(context.create_inputs())
    network = parse(mm, tmp_path / "m.onnx")
    assert mm.Builder().build_model("x", network, configure(mm)) is None
    assert mm.Builder().build_model("x", network, configure(mm)) is not None


def test_every_step_of_a_build_can_fail(
    mm: ModuleType, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _inject(
        monkeypatch,
        "parse:2:status,calibrate:1:status,serialize_to_file:1:status,deserialize_from_file:1:oom,active:1:status",
    )
    network = parse(mm, tmp_path / "m.onnx")
    assert not mm.Parser(mm.ModelKind.kOnnx).parse(mm.Network(), str(tmp_path / "m.onnx")).ok()
    assert not calibrate(mm, network, configure(mm, precision("qint8_mixed_float32")), [X]).ok()
    assert not model.serialize_to_file(str(tmp_path / "x")).ok()
    assert not mm.Model().deserialize_from_file(str(tmp_path / "x")).ok()
    assert not mm.Device().active().ok()
    assert mm.Device().active().ok()


@pytest.mark.parametrize("text", ["fly:1:status", "enqueue:x:status", "enqueue:1:sulk", "sync:1:nan", "enqueue"])
def test_what_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"CLIPMLU_EMULATOR_FAULTS holds '{text}'"):
        faults.parse_faults(text)


def _script(model: Any, tmp_path: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "model"
    assert model.serialize_to_file(str(path)).ok()
    environment = emulated_environment({"PYTHONPATH": str(REPOSITORY / "src"), "PATH": "/usr/bin:/bin"}, **settings)
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_crash_ends_the_process(model: Any, tmp_path: Path) -> None:
    done = _script(model, tmp_path, faults="enqueue:3:crash")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.splitlines() == ["0 30.0", "1 30.0"]


def test_a_noted_fault_does_not_fire_again_in_the_next_process(model: Any, tmp_path: Path) -> None:
    settings = {"faults": "enqueue:3:crash", "fault_log": tmp_path / "fired"}
    assert _script(model, tmp_path, **settings).returncode == -signal.SIGKILL
    assert (tmp_path / "fired").read_text() == "enqueue:3:crash\n"
    done = _script(model, tmp_path, **settings)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 4


def test_one_of_several_that_come_to_a_fault_at_the_same_time_records_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULT_LOG", str(tmp_path / "fired"))
    with ThreadPoolExecutor(8) as pool:
        for number in range(1, 21):
            fault = faults.Fault("sync", None, number, "device_lost")
            assert sum(pool.map(faults.record, [fault] * 8)) == 1
    assert len((tmp_path / "fired").read_text().splitlines()) == 20


def test_a_hang_hangs(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "model"
    assert model.serialize_to_file(str(path)).ok()
    environment = emulated_environment({"PYTHONPATH": str(REPOSITORY / "src")}, faults="enqueue:2:hang")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "0 30.0\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
    finally:
        process.kill()
        process.communicate()
