"""Arrays that are given to the SDK: their shapes, types and strides, and when they are copied (api 7.1 and 7.2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .bench import RANGE, Bench, Session, copies, runs_worth, slow_inputs
from .calls import Attempt, CallLog, need
from .findings import Array, Finding
from .probe import probe
from .results import close, compare, which_values

_SHAPES = {
    "dynamic, more rows than the range": ("dynamic", (RANGE[1] + 1, 8)),
    "dynamic, fewer rows than the range": ("dynamic", (RANGE[0] - 1, 8)),
    "dynamic, another size of a fixed axis": ("dynamic", (3, 9)),
    "static, more rows": ("static", (3, 8)),
    "static, fewer rows": ("static", (1, 8)),
    "static, another size of a fixed axis": ("static", (2, 7)),
}


_RANKS = {
    "dynamic, one axis more": ("dynamic", (3, 8, 1)),
    "static, one axis more": ("static", (2, 8, 1)),
    "static, one axis less": ("static", (16,)),
}


def _run(session: Session, values: Array) -> tuple[CallLog, list[Any]]:
    """Run a session of one input with ``from_numpy``; return the log of the calls and the list of outputs."""
    outputs: list[Any] = []
    log = CallLog()
    log.call("from_numpy", session.inputs[0].from_numpy, values)
    log.call("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
    log.call("sync", session.queue.sync)
    return log, outputs


def _feed_shape(bench: Bench, kind: str, shape: Sequence[int]) -> Finding:
    values = np.ones(shape, np.float32)
    log, outputs = _run(bench.session(kind), values)
    if log.good:
        results = copies(outputs)
        fits = len(shape) == 2 and shape[1] == 8
        expected = values @ np.load(os.path.join(bench.graphs, "base.weight.npy")) if fits else None
        verdict = "" if expected is None else f", {compare(results[0], expected)}"
        log.note(f"result {list(results[0].shape)}{verdict}")
    after = Attempt(bench.session(kind).run, bench.rows(2)[0])
    works = after.good and close(after.value[0], bench.rows(2)[1])
    return log.finding(works_afterwards=works)


@probe(
    "shape-outside",
    "7.1",
    "What happens when a batch lies outside dim_range, or differs from a static model's shape?",
    cases=tuple(_SHAPES),
    fresh=True,
)
def _shape_outside(bench: Bench, case: str) -> Finding:
    return _feed_shape(bench, *_SHAPES[case])


@probe("rank", "7.2", "Does from_numpy look at the rank?", cases=tuple(_RANKS), fresh=True)
def _rank(bench: Bench, case: str) -> Finding:
    return _feed_shape(bench, *_RANKS[case])


_CASTS = {
    "float64 for FLOAT32": ("static", np.float64),
    "float16 for FLOAT32": ("static", np.float16),
    "uint8 for FLOAT32": ("static", np.uint8),
    "int32 for FLOAT32": ("static", np.int32),
    "int64 for FLOAT32": ("static", np.int64),
    "int64 for INT32": ("integers", np.int64),
    "int16 for INT32": ("integers", np.int16),
    "float32 for INT32": ("integers", np.float32),
}


@probe("casts", "7.2", "Which types does from_numpy cast, and how?", cases=tuple(_CASTS))
def _casts(bench: Bench, case: str) -> Finding:
    kind, dtype = _CASTS[case]
    session = bench.session(kind)
    values = np.arange(16 if kind == "static" else 6).reshape(2, -1).astype(dtype)
    plain = values.astype(np.float32)
    expected = plain @ np.load(os.path.join(bench.graphs, "base.weight.npy")) if kind == "static" else 2 * plain
    return _feed(session, values, lambda result: f"cast, result {compare(result, expected)}")


@probe(
    "overflow",
    "7.2",
    "What becomes of int64 values that do not fit INT32?",
    cases=("2**31 + 1", "2**32 + 5", "-2**31 - 1"),
)
def _overflow(bench: Bench, case: str) -> Finding:
    number = {"2**31 + 1": 2**31 + 1, "2**32 + 5": 2**32 + 5, "-2**31 - 1": -(2**31) - 1}[case]
    wrapped = (number + 2**31) % 2**32 - 2**31
    limit = 2**31 - 1 if number > 0 else -(2**31)
    session = bench.session("integers")
    values = np.full((2, 3), number, np.int64)

    def judge(result: Array) -> str:
        seen = float(result.flat[0]) / 2
        tolerance = 300.0  # the graph computes in float32
        for name, value in (("wraps", wrapped), ("saturates", limit), ("is kept", number)):
            if abs(seen - value) <= tolerance * (abs(value) > 2**24) + 0.5:
                return f"{name} ({seen:.0f})"
        return f"becomes {seen:.0f}"

    return _feed(session, values, judge)


@probe(
    "strides",
    "7.2",
    "Does from_numpy take arrays that are not contiguous?",
    cases=("negative stride", "transposed", "every second row", "read-only"),
)
def _strides(bench: Bench, case: str) -> Finding:
    session = bench.session("static")
    values = {
        "negative stride": np.arange(16, dtype=np.float32).reshape(2, 8)[:, ::-1],
        "transposed": np.arange(16, dtype=np.float32).reshape(8, 2).T,
        "every second row": np.arange(32, dtype=np.float32).reshape(4, 8)[::2],
        "read-only": np.arange(16, dtype=np.float32).reshape(2, 8),
    }[case]
    if case == "read-only":
        values.setflags(write=False)
    expected = np.ascontiguousarray(values) @ np.load(os.path.join(bench.graphs, "base.weight.npy"))
    return _feed(session, values, lambda result: f"result {compare(result, expected)}")


def _feed(session: Session, values: Array, judge: Callable[[Array], str]) -> Finding:
    log, outputs = _run(session, values)
    if log.good:
        result = copies(outputs)[0]
        return Finding(judge(result), good=True, first=float(result.flat[0]))
    return log.finding()


@probe(
    "array-overwritten",
    "7.2",
    "Is the array given to from_numpy copied at once?",
    cases=("overwritten before enqueue", "overwritten between enqueue and sync"),
)
def _array_overwritten(bench: Bench, case: str) -> Finding:
    session = bench.session("slow")
    old, new = slow_inputs(bench)
    before = [session.run(each)[0] for each in (old, new)]
    ahead = runs_worth(session, old, 0.1)
    buffer = old.copy()
    need("from_numpy", session.inputs[0].from_numpy, buffer)
    if "before enqueue" in case:
        buffer[...] = new
        ahead = 0
    waiting = [session.enqueue(old) for _ in range(ahead)]
    outputs: list[Any] = []
    need("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
    buffer[...] = new
    session.sync()
    del waiting
    return Finding(which_values(copies(outputs)[0], before), runs_queued_before=ahead)
