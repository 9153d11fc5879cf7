"""The thread that runs batches in their order."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

from clipmlu.backends.ordered import OrderedThread
from clipmlu.errors import SessionError

FEEDS = {"x": np.zeros(1, np.float32)}


def test_batches_run_one_after_the_other_and_none_after_the_end() -> None:
    thread = OrderedThread("test", "Bundle 'b'")
    running, go = threading.Event(), threading.Event()

    def hold(feeds: dict[str, Any]) -> dict[str, Any]:
        running.set()
        assert go.wait(60)
        return feeds

    first = thread.submit(hold, FEEDS)
    second = thread.submit(lambda feeds: feeds, FEEDS)
    assert running.wait(60)
    assert not second.running()
    thread.stop(wait=False)
    go.set()
    assert first.result(60) == FEEDS
    with pytest.raises(CancelledError):
        second.result(60)
    with pytest.raises(SessionError, match="Bundle 'b': no batch is started any more"):
        thread.submit(hold, FEEDS)
