"""Asynchronous work and emulated cards (magicmind-api.md 2.12, 7.5 to 7.7, 7.15)."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clipmlu.magicmind.emulator.jobs import Computations
from clipmlu.magicmind.emulator.status import StatusError
from mlu.emulator.calls import Runner, build, configure, linear, parse

W = np.arange(6, dtype=np.float32).reshape(3, 2)
X = np.ones((2, 3), np.float32)
ATTEMPTS = 5
"""Machines that run the tests stand still at times: what is quick must be so once, what waits is never quick."""


@pytest.fixture
def model(mm: ModuleType, tmp_path: Path) -> Any:
    return build(mm, parse(mm, linear(tmp_path / "m.onnx", W)), configure(mm, {"graph_shape_mutable": True}))


def test_enqueue_returns_before_the_work_is_done(
    mm: ModuleType, mode: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(mm, model)
    runner(X)
    monkeypatch.setenv("CLIPMLU_EMULATOR_LATENCY_MS", "300")

    def start_and_wait() -> float:
        """Seconds until ``enqueue`` returns."""
        begin = time.monotonic()
        outputs = runner.start(X)
        returned = time.monotonic() - begin
        assert runner.queue.sync().ok()
        assert time.monotonic() - begin >= 0.3
        np.testing.assert_array_equal(outputs[0].asnumpy(), X @ W)
        return returned

    assert any(start_and_wait() < 0.25 for _ in range(ATTEMPTS))


def test_several_batches_in_flight_finish_in_order(mm: ModuleType, mode: str, model: Any) -> None:
    runner = Runner(mm, model)
    batches = []
    for factor in range(5):
        runner.inputs = runner.context.create_inputs()
        batches.append(runner.start(X * factor))
    assert runner.queue.sync().ok()
    for factor, outputs in enumerate(batches):
        np.testing.assert_array_equal(outputs[0].asnumpy(), X * factor @ W)


def test_contexts_on_two_cards_work_at_the_same_time(
    mm: ModuleType, mode: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "2")
    runners = [Runner(mm, model, device) for device in (0, 1)]
    monkeypatch.setenv("CLIPMLU_EMULATOR_LATENCY_MS", "300")

    def run_both() -> float:
        begin = time.monotonic()
        started = []
        for runner in runners:
            assert runner.dev.active().ok()
            started.append(runner.start(X))
        for runner, outputs in zip(runners, started, strict=True):
            assert runner.queue.sync().ok()
            np.testing.assert_array_equal(outputs[0].asnumpy(), X @ W)
        return time.monotonic() - begin

    assert any(run_both() < 0.59 for _ in range(ATTEMPTS))


def test_a_card_does_one_thing_at_a_time(
    mm: ModuleType, mode: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runners = [Runner(mm, model), Runner(mm, model)]
    monkeypatch.setenv("CLIPMLU_EMULATOR_LATENCY_MS", "100")
    begin = time.monotonic()
    for runner in runners:
        runner.start(X)
    for runner in runners:
        assert runner.queue.sync().ok()
    assert time.monotonic() - begin >= 0.2


def test_queues_and_contexts_of_different_cards_do_not_mix(
    mm: ModuleType, mode: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "2")
    first, second = Runner(mm, model, 1), Runner(mm, model, 0)
    assert second.inputs[0].from_numpy(X).ok()
    assert "the queue is on device 1" in str(second.context.enqueue(second.inputs, [], first.queue))


def test_device_indices_are_checked(mm: ModuleType, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "4")
    monkeypatch.setenv("MLU_VISIBLE_DEVICES", "1,3")
    assert mm.System().device_count() == 2
    device = mm.Device()
    device.dev_id = 9  # MC maskrcnn sets an attribute that is none
    device.id = 2
    assert not device.active().ok()
    assert device.create_queue() is None
    device.id = 1
    assert device.active().ok()


def test_the_system_is_optional_and_spelled_as_it_is(mm: ModuleType, model: Any) -> None:
    system = mm.System()
    assert system.initialize().ok()
    assert system.destory().ok()
    queue = mm.Device().create_queue()  # without active(), as MC ssd_caffe does
    context = model.create_i_engine().create_i_context()
    inputs = context.create_inputs()
    assert inputs[0].from_numpy(X).ok()
    outputs: list[Any] = []
    assert context.enqueue(inputs, outputs, queue).ok()
    assert queue.sync().ok()
    np.testing.assert_array_equal(outputs[0].asnumpy(), X @ W)


def test_too_few_or_empty_inputs_are_refused(mm: ModuleType, mode: str, model: Any) -> None:
    runner = Runner(mm, model)
    assert "never filled" in str(runner.context.enqueue(runner.inputs, [], runner.queue))
    assert "expected 1 input" in str(runner.context.enqueue([], [], runner.queue))


def test_free_standing_tensors(mm: ModuleType) -> None:
    tensor = mm.Tensor(shape=(2, 3), dtype=mm.DataType.FLOAT32, location=mm.TensorLocation.kMLU)
    assert tensor.shape == (2, 3)
    assert tensor.from_numpy(X).ok()
    assert tensor.to(mm.DataType.FLOAT16).asnumpy().dtype == np.float16
    tensor.reshape((3, 2))
    assert tensor.shape == (3, 2)
    tensor.resize((4,))
    assert tensor.shape == (4,)
    assert mm.Tensor(shape=[], dtype=mm.DataType.INT32).shape == ()


def test_outputs_can_be_dumped(mm: ModuleType, model: Any, tmp_path: Path) -> None:
    runner = Runner(mm, model)
    info = mm.Context.ContextDumpInfo(path=str(tmp_path / "dump"), tensor_name=[], dump_mode=2, file_format=0)
    info.val.dump_mode = mm.DumpMode.kOutputTensors
    assert runner.context.set_context_dump_info(info).ok()
    runner(X)
    np.testing.assert_array_equal(np.load(tmp_path / "dump" / "emulated_y.npy"), X @ W)


def test_the_profiler_is_there(mm: ModuleType, tmp_path: Path) -> None:
    profiler = mm.Profiler(mm.ProfilerOptions(mm.HostTracerLevel.kCritical, mm.DeviceTracerLevel.kOn), str(tmp_path))
    assert all((profiler.start(), profiler.step_begin(1), profiler.step_end(), profiler.stop()))


def test_results_stay_apart_over_many_batches_and_two_queues(mm: ModuleType, mode: str, model: Any) -> None:
    """Two slots with their own context and queue, each in flight while the other is read: nothing lost, nothing doubled."""
    slots = [Runner(mm, model), Runner(mm, model)]
    waiting: list[tuple[Runner, int, list[Any]]] = []
    seen = []
    for step in range(40):
        runner = slots[step % 2]
        if len(waiting) == 2:
            owner, number, outputs = waiting.pop(0)
            assert owner.queue.sync().ok()
            np.testing.assert_array_equal(outputs[0].asnumpy(), np.full((1 + number % 3, 3), number) @ W)
            seen.append(number)
        waiting.append((runner, step, runner.start(np.full((1 + step % 3, 3), step, np.float32))))
    assert seen == list(range(38))


def test_the_process_ends_after_the_computations_that_run() -> None:
    """S#26019113056 ends without ``sync``: the runtime's threads abort a process that ends while they compute."""
    computations = Computations()
    begun, finish, ended = threading.Event(), threading.Event(), threading.Event()

    def compute() -> None:
        with computations.one():
            begun.set()
            finish.wait(30)

    def end() -> None:
        computations.end()
        ended.set()

    threads = [threading.Thread(target=compute), threading.Thread(target=end)]
    threads[0].start()
    assert begun.wait(30)
    threads[1].start()
    assert not ended.wait(0.05)
    finish.set()
    assert ended.wait(30)
    with pytest.raises(StatusError, match="the process is ending"), computations.one():
        pytest.fail("a computation began")
    for thread in threads:
        thread.join()
