"""Several runs, threads and processes at a time (api 7.7)."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .bench import Bench, Session, runs_worth
from .calls import Attempt, CallLog, need
from .findings import Finding
from .probe import probe
from .results import close, compare


@probe(
    "queueing",
    "7.7",
    "How many runs can be queued, and may contexts and queues be mixed?",
    cases=("64 runs, one sync", "two contexts on one queue", "one context on two queues", "two engines of one model"),
)
def _queueing(bench: Bench, case: str) -> Finding:
    session = bench.session("static")
    feeds = [bench.rows(2)[0] + number for number in range(64 if case.startswith("64") else 2)]
    expected = [np.maximum(feed, 0) @ np.load(os.path.join(bench.graphs, "base.weight.npy")) for feed in feeds]
    if case.startswith("64"):
        started = [session.enqueue(feed) for feed in feeds]
        session.sync()
        right = [close(outputs[0].asnumpy(), want) for outputs, want in zip(started, expected)]
        return Finding("all results right" if all(right) else f"{right.count(False)} of 64 results are wrong")
    context, queues = session.context, [session.queue, session.queue]
    contexts = [context, context]
    if case == "two contexts on one queue":
        contexts[1] = need("create_i_context", session.engine.create_i_context)
    elif case == "one context on two queues":
        queues[1] = need("create_queue", session.device.create_queue)
    else:
        other = Session(bench, session.model, session.device)
        contexts[1], queues[1] = other.context, other.queue
    log = CallLog()
    kept = []
    for number, (each, queue) in enumerate(zip(contexts, queues)):
        inputs = need("create_inputs", each.create_inputs)
        session.fill(inputs, [feeds[number]])
        outputs: list[Any] = []
        log.call(f"enqueue {number + 1}", each.enqueue, inputs, outputs, queue)
        kept.append((inputs, outputs))
    for number, queue in enumerate(queues):
        log.call(f"sync {number + 1}", queue.sync)
    if not log.good:
        return log.finding()
    right = [close(outputs[0].asnumpy(), want) for (_, outputs), want in zip(kept, expected)]
    return Finding("all results right" if all(right) else f"right: {right}", good=True)


_THREADS = (
    "a context of the main thread, without active()",
    "a context of the main thread, after active()",
    "made and run in a thread, without active()",
    "two threads at a time, each with its own context",
)


@probe("threads", "7.7", "What works in another thread, and does it need Device.active() there?", cases=_THREADS)
def _threads(bench: Bench, case: str) -> Finding:
    index = bench.count() - 1  # where there are several, not the one that may be active by default
    session = bench.session("static", index)
    feed, expected = bench.rows(2)
    if case.startswith("two threads"):
        return _two_threads(bench, session)

    def work() -> str:
        log = CallLog()
        used = session
        if "after active()" in case:
            log.call("active", session.device.active)
        if case.startswith("made"):
            used = log.make("open", Session, bench, session.model, session.device)
        results = log.call("run", lambda: used.run(feed))
        if log.good:
            log.steps = [f"result {compare(results[0], expected)}"]
        return log.text

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        text = pool.submit(work).result()
    return Finding(text, card=index)


def _two_threads(bench: Bench, session: Session) -> Finding:
    feed, expected = bench.rows(2)
    barrier = threading.Barrier(2)

    def work(_number: int) -> str:
        need("active", session.device.active)
        own = Session(bench, session.model, session.device)
        barrier.wait()
        right = [close(own.run(feed)[0], expected) for _ in range(30)]
        return "" if all(right) else f"{right.count(False)} of 30 results are wrong"

    def safely(number: int) -> str:
        attempt = Attempt(work, number)
        if not attempt.good:
            barrier.abort()
        return str(attempt.value) if attempt.good else attempt.text

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        texts = [text for text in pool.map(safely, range(2)) if text]
    return Finding("; ".join(texts) or "all results right")


@probe("gil", "7.7", "Do enqueue and sync let other Python threads run?", cases=("sync", "enqueue"), alone=True)
def _gil(bench: Bench, case: str) -> Finding:
    session = bench.session("slow")
    feed = bench.arrays("slow", "in")[0]
    count = runs_worth(session, feed, 0.3)
    counter = _Counter()
    with counter:
        start = time.perf_counter()
        time.sleep(0.2)
        idle_rate = counter.total / (time.perf_counter() - start)
        before, start = counter.total, time.perf_counter()
        started = [session.enqueue(feed) for _ in range(count)]
        enqueue_seconds, enqueue_ticks = time.perf_counter() - start, counter.total - before
        before, start = counter.total, time.perf_counter()
        session.sync()
        sync_seconds, sync_ticks = time.perf_counter() - start, counter.total - before
    seconds, ticks = (sync_seconds, sync_ticks) if case == "sync" else (enqueue_seconds, enqueue_ticks)
    raw = {"seconds": seconds, "ticks": ticks, "idle_ticks_per_second": idle_rate, "runs": len(started)}
    if seconds < 0.02:
        return Finding("too short to tell", **raw)
    share = ticks / seconds / max(idle_rate, 1.0)
    return Finding("other threads run" if share > 0.1 else "other threads stand still", share=share, **raw)


class _Counter:
    """A thread that counts while it is not blocked."""

    def __init__(self) -> None:
        self.total = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> _Counter:
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._stop.set()
        self._thread.join()

    def _count(self) -> None:
        while not self._stop.is_set():
            self.total += 1
            time.sleep(0.0005)


_FORKS = (
    "objects of the parent, in the child",
    "own objects in the child",
    "in the child of a parent that used nothing",
)


@probe("fork", "7.7", "What works after a fork?", cases=_FORKS, fresh=True)
def _fork(bench: Bench, case: str) -> Finding:
    feed, expected = bench.rows(2)
    session = None
    if "used nothing" not in case:
        session = bench.session("static")
        session.run(feed)

    def in_child() -> str:
        log = CallLog()
        used = session
        if not case.startswith("objects of the parent"):
            used = log.make("open", bench.session, "static")
        results = log.call("run", lambda: [] if used is None else used.run(feed))
        return f"result {compare(results[0], expected)}" if log.good else log.text

    text = _in_forked_child(in_child, bench.step_seconds)
    if session is None:
        return Finding(text)
    after = Attempt(session.run, feed)
    return Finding(text, parent_works_afterwards=after.good and close(after.value[0], expected))


def _in_forked_child(work: Callable[[], str], seconds: float) -> str:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        attempt = Attempt(work)
        os.write(writing, (str(attempt.value) if attempt.good else attempt.text).encode())
        os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + seconds
    status = None
    while status is None and time.monotonic() < deadline:
        ended, code = os.waitpid(pid, os.WNOHANG)
        status = code if ended else None
        time.sleep(0.02)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as stream:
        text = stream.read().decode("utf-8", "replace")
    if status is None:
        return "hangs"
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return text or f"exit code {os.WEXITSTATUS(status)}"
