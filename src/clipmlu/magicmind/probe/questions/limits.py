"""Numbers of contexts and cards, times, and options of an engine (api 7.20)."""

from __future__ import annotations

import time

import numpy as np

from .bench import Bench
from .calls import Attempt, CallLog
from .findings import Finding, NotReachedError
from .probe import probe
from .results import close, compare


@probe("contexts", "7.20", "How many contexts does one engine give (up to 16)?")
def _contexts(bench: Bench, _case: str) -> Finding:
    session = bench.session("static")
    feed, expected = bench.rows(2)
    contexts = [session.context]
    failure = ""
    while len(contexts) < 16 and not failure:
        made = Attempt(session.engine.create_i_context)
        if made.good and made.value is not None:
            contexts.append(made.value)
        else:
            failure = made.text
    right = []
    for context in contexts:
        session.context = context
        right.append(close(session.run(feed)[0], expected))
    text = f"{len(contexts)}" + (f", then {failure}" if failure else " or more")
    return Finding(text if all(right) else f"{text}; {right.count(False)} of them compute wrongly", right=right)


@probe("latency", "7.20", "How long does the first call of a model take, and how long the following ones?", alone=True)
def _latency(bench: Bench, _case: str) -> Finding:
    session = bench.session("static")
    feed = bench.rows(2)[0]
    milliseconds = []
    for _ in range(20):
        start = time.perf_counter()
        session.run(feed)
        milliseconds.append(1000 * (time.perf_counter() - start))
    later = float(np.median(milliseconds[1:]))
    emulated = bool(getattr(bench.sdk, "EMULATED", False))
    text = f"{'emulated: ' if emulated else ''}first {milliseconds[0]:.3g} ms, then {later:.3g} ms"
    return Finding(text, milliseconds=milliseconds, emulated=emulated)


@probe("engine-config", "7.20", "What can be set on EngineConfig, kernel_capture included?", card=False)
def _engine_config(bench: Bench, _case: str) -> Finding:
    options = bench.sdk.Model.EngineConfig()
    names = sorted({name for name in dir(options) if not name.startswith("_")} | set(getattr(options, "__dict__", {})))
    return Finding(", ".join(names) or "nothing", names=names)


@probe("two-cards", "7.20", "Can one process use two cards?")
def _two_cards(bench: Bench, _case: str) -> Finding:
    if bench.count() < 2:
        raise NotReachedError(f"this process sees {bench.count()} card")
    feed, expected = bench.rows(2)
    log = CallLog()
    for index in (0, 1):
        session = log.make(f"open on card {index}", lambda index=index: bench.session("static", index))
        results = log.call("run", lambda session=session: session.run(feed))
        log.note(f"result {compare(results[0], expected)}" if log.good else "")
    return log.finding()
