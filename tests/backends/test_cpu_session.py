"""The order of batches in a session on the CPU."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from clipmlu.backends.base import SessionOptions
from clipmlu.backends.cpu_session import CpuSession
from clipmlu.bundle.manifest import Tower
from clipmlu.data.feeds import Array
from clipmlu.errors import SessionError
from clipmlu.specs import Precision, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(1,))
FEEDS = {"x": np.zeros(1, np.float32)}


class _HeldSession(CpuSession):
    """A runtime that finishes a batch when ``go`` is set; closing it does not wait for the running batch."""

    runtime = "held"

    def _load(self, path: Path, options: SessionOptions, precision: Precision) -> None:
        self.running, self.go = threading.Event(), threading.Event()

    def _run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        self.running.set()
        assert self.go.wait(60)
        return feeds

    def _release(self) -> None:
        self._stop(wait=False)


def test_batches_run_one_after_the_other_and_none_after_the_end() -> None:
    tower = Tower(file="x.onnx", inputs=(X,), outputs=(X,))
    session = _HeldSession(tower, Path("x.onnx"), "Bundle 'b'", SessionOptions())
    first, second = session.submit(FEEDS), session.submit(FEEDS)
    assert session.running.wait(60)
    session.close()
    session.go.set()
    assert first.result() == FEEDS
    with pytest.raises(SessionError, match=r"Bundle 'b': the session was closed before the batch began\."):
        second.result()
    with pytest.raises(SessionError, match=r"Bundle 'b'"):
        session.submit(FEEDS)


def test_a_thread_that_has_ended_accepts_no_batch() -> None:
    tower = Tower(file="x.onnx", inputs=(X,), outputs=(X,))
    with _HeldSession(tower, Path("x.onnx"), "Bundle 'b'", SessionOptions()) as session:
        session._release()  # as when another thread closes the session meanwhile
        with pytest.raises(SessionError, match=r"Bundle 'b': it accepts no more batches: cannot schedule"):
            session.submit(FEEDS)
