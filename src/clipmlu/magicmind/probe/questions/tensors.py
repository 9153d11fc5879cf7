"""Input and output tensors: whether arrays are copies or views, and whether lists may be reused (api 7.5 and 7.6)."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np

from .bench import Bench, Session, copies, runs_worth, slow_inputs
from .calls import Attempt, CallLog, need
from .findings import Finding
from .probe import probe
from .results import close, compare, which_values


@probe(
    "asnumpy",
    "7.5",
    "Is asnumpy a copy or a view, and when is it valid?",
    cases=(
        "copy or view",
        "before sync",
        "after the next run into the same list",
        "after context and tensors are gone",
    ),
)
def _asnumpy(bench: Bench, case: str) -> Finding:
    if case == "before sync":
        return _before_sync(bench)
    session = bench.session("static")
    first, expected = bench.rows(2)
    outputs: list[Any] = []
    session.fill(session.inputs, [first])
    need("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
    session.sync()
    seen = outputs[0].asnumpy()
    kept = np.array(seen, copy=True)
    if case == "copy or view":
        again = outputs[0].asnumpy()
        view = bool(np.shares_memory(seen, again))
        return Finding("a view" if view else "a copy", writable=bool(seen.flags.writeable), right=close(kept, expected))
    if case.startswith("after the next"):
        session.fill(session.inputs, [first + 1])
        need("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
        changed_early = not np.array_equal(seen, kept)
        session.sync()
        changed = not np.array_equal(seen, kept)
        text = "an array from before changes" if changed else "an array from before stays as it was"
        return Finding(text, changed_before_sync=changed_early)
    del outputs
    session.inputs = []
    session.context = session.queue = session.engine = session.model = None
    gc.collect()
    same = np.array_equal(seen, kept)
    return Finding("the array stays as it was" if same else "the array changes")


def _before_sync(bench: Bench) -> Finding:
    session = bench.session("slow")
    feed = bench.arrays("slow", "in")[0]
    expected = session.run(feed)[0]
    waiting = [session.enqueue(feed) for _ in range(runs_worth(session, feed, 0.1))]
    outputs = session.enqueue(feed)
    start = time.perf_counter()
    attempt = Attempt(outputs[0].asnumpy)
    milliseconds = 1000 * (time.perf_counter() - start)
    text = attempt.text if not attempt.good else compare(np.array(attempt.value, copy=True), expected)
    shape = list(attempt.value.shape) if attempt.good else None
    session.sync()
    return Finding(text, milliseconds=milliseconds, runs_queued_before=len(waiting), shape=shape)


_LISTS = (
    "the same list, same shape",
    "the same list, another shape",
    "cleared, another shape",
    "a list that is too long",
)


@probe("output-list", "7.6", "May a list of outputs be used again?", cases=_LISTS)
def _output_list(bench: Bench, case: str) -> Finding:
    session = bench.session("dynamic")
    outputs: list[Any] = []
    session.fill(session.inputs, [bench.rows(2)[0]])
    need("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
    session.sync()
    count = 2 if "same shape" in case else 3
    feed, expected = bench.rows(count)
    feed, expected = (feed[::-1], expected[::-1]) if count == 2 else (feed, expected)
    if case.startswith("cleared"):
        outputs.clear()
    if "too long" in case:
        outputs.extend(outputs)
    session.fill(session.inputs, [np.ascontiguousarray(feed)])
    log = CallLog()
    log.call("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
    log.call("sync", session.queue.sync)
    if log.good:
        return Finding(f"result {compare(outputs[0].asnumpy(), expected)}", good=True, length=len(outputs))
    return log.finding()


_INPUTS = (
    "too few tensors",
    "never filled",
    "dropped between enqueue and sync",
    "overwritten between enqueue and sync",
    "outputs of another context",
)


@probe("input-list", "7.6", "What does enqueue make of its input tensors?", cases=_INPUTS, fresh=True)
def _input_list(bench: Bench, case: str) -> Finding:
    if case == "overwritten between enqueue and sync":
        return _tensor_overwritten(bench)
    session = bench.session("two" if case == "too few tensors" else "static")
    feed, expected = bench.rows(2)
    inputs = session.inputs[:1]
    if case != "never filled":
        session.fill(inputs, [feed])
    if case == "outputs of another context":
        # MC-old tacotron2 puts outputs of one context into another's inputs; here those of a graph that passes x on.
        other = Session(bench, bench.build("passing"), session.device)
        session.queue = other.queue
        started = other.enqueue(feed)
        inputs = started[:1]
    outputs: list[Any] = []
    log = CallLog()
    log.call("enqueue", session.context.enqueue, inputs, outputs, session.queue)
    if case.startswith("dropped"):
        del inputs
        session.inputs = []
        gc.collect()
    log.call("sync", session.queue.sync)
    if log.good:
        return Finding(f"result {compare(outputs[0].asnumpy(), expected)}", good=True)
    return log.finding()


def _tensor_overwritten(bench: Bench) -> Finding:
    session = bench.session("slow")
    old, new = slow_inputs(bench)
    known = [session.run(each)[0] for each in (old, new)]
    waiting = [session.enqueue(old) for _ in range(runs_worth(session, old, 0.1))]
    outputs: list[Any] = []
    session.fill(session.inputs, [old])
    need("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
    log = CallLog()
    log.call("from_numpy", session.inputs[0].from_numpy, new)
    log.call("sync", session.queue.sync)
    if not log.good:
        return log.finding()
    return Finding(which_values(copies(outputs)[0], known), good=True, runs_queued_before=len(waiting))
