"""What batches take on a card, from the driver to the session's clock, here and in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipmlu.magicmind.backend import load_emulated_sdk
from clipmlu.magicmind.client.local import LocalPeer
from clipmlu.magicmind.client.peer import Peer
from clipmlu.magicmind.client.worker_client import WorkerClient
from clipmlu.magicmind.driver.running import BatchTimes, Runner
from mlu.small import open_request, reference, rows

STAGES = ["copy_in", "compute", "copy_out"]
LATENCY_S = 0.02


def times(copied_in: float, enqueued: float, synced: float, copied_out: float) -> BatchTimes:
    found = BatchTimes(copied_in, enqueued)
    found.synced, found.copied_out = synced, copied_out
    return found


def test_waiting_for_the_batch_before_is_no_computing() -> None:
    """Two batches that were started together and take 4 s each, one after the other."""
    first, second = times(0.0, 1.0, 5.0, 5.5), times(1.0, 2.0, 9.0, 9.25)
    assert first.stages(0.0) == {"copy_in": 1.0, "compute": 4.0, "copy_out": 0.5}
    assert second.stages(first.synced) == {"copy_in": 1.0, "compute": 4.0, "copy_out": 0.25}


def test_runner_tells_the_times_of_each_batch(
    open_runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_LATENCY_MS", str(LATENCY_S * 1e3))
    runner = open_runner(depth=2)
    start = time.perf_counter()
    runner.start([rows(2, 0)])
    runner.start([rows(2, 1)])
    found = []
    for _ in range(2):
        runner.finish()
        found.append(runner.times)
    passed = time.perf_counter() - start
    for each in found:
        assert list(each) == STAGES
        assert min(each.values()) >= 0
    computing = sum(each["compute"] for each in found)
    assert 2 * LATENCY_S * 0.95 <= computing <= passed


def check_clock(peer: Peer, model: Path) -> None:
    opened = peer.open_session(open_request(model))
    futures = [peer.submit(opened, [rows(3, seed)]) for seed in range(5)]
    for seed, future in enumerate(futures):
        np.testing.assert_allclose(future.result()[0], reference(rows(3, seed)), atol=1e-6)
    totals = opened.clock.totals()
    assert list(totals) == STAGES
    assert {total.items for total in totals.values()} == {15}
    assert totals["compute"].seconds >= 5 * LATENCY_S * 0.95


def test_times_come_from_this_process(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_LATENCY_MS", str(LATENCY_S * 1e3))
    peer = LocalPeer(load_emulated_sdk)
    try:
        check_clock(peer, model)
    finally:
        peer.close()


def test_times_come_from_a_worker(client_for: Callable[..., WorkerClient], model: Path) -> None:
    check_clock(client_for(emulator={"latency_ms": LATENCY_S * 1e3}), model)
