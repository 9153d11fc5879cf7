"""The emulated SDK's log: each refusal on stderr, in the form of the SDK's own lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlu.emulator.calls import Runner, build, calibrate, configure, linear, parse, precision

W = np.arange(6, dtype=np.float32).reshape(3, 2)
X = np.ones((2, 3), np.float32)
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}: (ERROR|WARNING):  emulated MagicMind, (\w+)\]  (.*)\Z")


def _parse(mm: ModuleType, folder: Path) -> Any:
    return mm.Parser(mm.ModelKind.kOnnx).parse(mm.Network(), str(folder / "missing.onnx"))


def _caffe(mm: ModuleType, folder: Path) -> Any:
    return mm.Parser(mm.ModelKind.kCaffe).parse(mm.Network(), "m.caffemodel", "m.prototxt")


def _from_numpy(mm: ModuleType, folder: Path) -> Any:
    return _runner(mm, folder).inputs[0].from_numpy(X.astype(np.int8))


def _enqueue(mm: ModuleType, folder: Path) -> Any:
    runner = _runner(mm, folder)
    return runner.context.enqueue(runner.inputs, [], runner.queue)


def _calibrate(mm: ModuleType, folder: Path) -> Any:
    network = parse(mm, linear(folder / "m.onnx", W))
    return calibrate(mm, network, configure(mm, precision("qint8_mixed_float32")), [])


def _create_outputs(mm: ModuleType, folder: Path) -> Any:
    runner = _runner(mm, folder)
    return runner.context.create_outputs(runner.inputs)


def _runner(mm: ModuleType, folder: Path) -> Runner:
    return Runner(mm, build(mm, parse(mm, linear(folder / "m.onnx", W)), configure(mm)))


@pytest.mark.parametrize(
    ("refused", "call", "reason"),
    [
        (_parse, "parse", "Not found: cannot read '.*missing.onnx': No such file or directory"),
        (_caffe, "parse", "Unimplemented: clipmlu emulates the SDK's ONNX parser only, not that of kCaffe; .*"),
        (_from_numpy, "from_numpy", r"Invalid argument: no public source shows int8 for FLOAT32 \(unknown 7.2\)"),
        (_enqueue, "enqueue", "Failed precondition: input 'x' was never filled"),
        (_calibrate, "calibrate", "Internal: .*no batch.*"),
        (_create_outputs, "create_outputs", "Failed precondition: input 'x' was never filled"),
    ],
)
def test_a_refusal_is_one_line_on_stderr_and_the_status_stays(
    mm: ModuleType,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    refused: Callable[[ModuleType, Path], Any],
    call: str,
    reason: str,
) -> None:
    status = refused(mm, tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    found = LINE.match(line)
    assert found is not None, line
    assert found.groups()[:2] == ("ERROR", call)
    assert re.fullmatch(reason, found[3]), found[3]
    assert not status.ok()
    assert status.error_message() == f"{call}: {found[3].partition(': ')[2]}"


def test_the_reason_of_a_missing_model_is_one_line(
    mm: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configure(mm, precision("qint8_mixed_float32"))
    assert mm.Builder().build_model("x", parse(mm, linear(tmp_path / "m.onnx", W)), config) is None
    (line,) = capfd.readouterr().err.splitlines()
    found = LINE.match(line)
    assert found is not None
    assert found.groups()[:2] == ("ERROR", "build_model")
    assert "needs calibrate() before build_model()" in found[3]


def test_calls_that_succeed_write_nothing(mm: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.testing.assert_array_equal(_runner(mm, tmp_path)(X)[0], X @ W)
    assert capfd.readouterr() == ("", "")


def test_a_result_read_before_sync_is_a_warning(
    mm: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """S#26019113056 reads so."""
    (output,) = _runner(mm, tmp_path).start(X)
    assert np.isnan(output.asnumpy()).all()
    (line,) = capfd.readouterr().err.splitlines()
    found = LINE.match(line)
    assert found is not None
    assert found.groups()[:2] == ("WARNING", "asnumpy")
    assert "before queue.sync()" in found[3]


@pytest.mark.parametrize(
    ("level", "levels"),
    [("", "EW"), ("0", "EW"), ("1", "EW"), ("2", "E"), ("3", ""), ("many", "EW")],
)
def test_the_vendors_variable_sets_the_lowest_level(
    mm: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    level: str,
    levels: str,
) -> None:
    monkeypatch.setenv("MM_CPP_MIN_LOG_LEVEL", level)
    _parse(mm, tmp_path)
    _runner(mm, tmp_path).start(X)[0].asnumpy()
    found = [LINE.match(line) for line in capfd.readouterr().err.splitlines()]
    assert "".join(match[1][0] for match in found if match is not None) == levels


def test_without_stderr_a_refusal_is_only_the_status(
    mm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert not _parse(mm, tmp_path).ok()
    assert capfd.readouterr() == ("", "")


def test_a_stream_of_a_script_needs_nothing_but_write(
    mm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``print`` needs no more: scripts put loggers of their own in place of stderr."""
    written: list[str] = []
    monkeypatch.setattr("sys.stderr", SimpleNamespace(write=written.append))
    assert not _parse(mm, tmp_path).ok()
    assert "ERROR:  emulated MagicMind, parse]" in "".join(written)


def test_each_failed_batch_is_one_line(mm: ModuleType, mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A range with step 0 fails when it is computed; ``sync`` returns the first failure of the queue only."""
    network = mm.Network()
    ends = [network.add_input(mm.DataType.INT32, mm.Dims([1])) for _ in range(3)]
    network.mark_output(network.add_i_range_node(*ends).get_output(0))
    runner = Runner(mm, build(mm, network, configure(mm)))
    for step in (0, 1, 0):
        runner.inputs = runner.context.create_inputs()  # those before are lent until sync
        runner.start(*(np.array([number], np.int32) for number in (0, 5, step)))
    assert not runner.queue.sync().ok()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("emulated MagicMind, sync]  Internal: " in line and "delta in Range" in line for line in lines)
    unfinished = runner.start(*(np.array([number], np.int32) for number in (0, 5, 0)))
    unfinished[0].asnumpy()  # before sync: not valid in strict mode, waited for in lenient mode
    (line,) = capfd.readouterr().err.splitlines()
    assert ("before queue.sync()" if mode == "strict" else "delta in Range") in line
