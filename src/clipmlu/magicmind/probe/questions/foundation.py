"""The first probe: finds the architecture for which all others build (api 7.13)."""

from __future__ import annotations

import os

from .bench import Bench, Session
from .calls import CallLog
from .findings import Finding
from .probe import probe
from .results import compare

ARCHS = ("mtp_372", "mtp_592", "tp_322")  # MLU370, MLU590 and the edge part (api 5)


FALLBACKS = (*(f"json:{name}" for name in ARCHS), "default:any")
"""Ways to build when none of ``ARCHS`` works: without the attribute ``mlu_archs``, and without naming any."""


@probe(
    "foundation",
    "7.13",
    "For which architecture is a model built that this card loads and computes rightly?",
    cases=ARCHS,
    fresh=True,
)
def _foundation(bench: Bench, case: str) -> Finding:
    bench.arch = case
    feeds, expected = bench.arrays("base", "in"), bench.arrays("base", "out")
    log = CallLog()
    model = log.make("build", bench.build, "base")
    path = os.path.join(bench.scratch, f"foundation-{case.replace(':', '-')}.mm")
    log.call("serialize_to_file", lambda: model.serialize_to_file(path))
    loaded = bench.sdk.Model()
    log.call("deserialize_from_file", loaded.deserialize_from_file, path)
    session = log.make("open", lambda: Session(bench, loaded, bench.device()))
    results = log.call("run", lambda: session.run(*feeds))
    if not log.good:
        return log.finding(right=False)
    verdict = compare(results[0], expected[0])
    return Finding(
        f"builds, loads and runs: {verdict}", good=True, right=verdict == "right", bytes=os.path.getsize(path)
    )
