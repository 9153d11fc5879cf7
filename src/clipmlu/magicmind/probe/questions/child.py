"""The child process: runs cases of one probe and writes a line of notes for each."""

from __future__ import annotations

import argparse
import faulthandler
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .bench import Bench
from .catalogue import PROBES
from .findings import ANSWERED, NOT_REACHED, Fields, Finding, NotReachedError, shorten
from .foundation import ARCHS
from .host import HOST
from .probe import Probe


def run_cases(probe_: Probe, bench: Bench, cases: Sequence[str], note: Callable[[Fields], None]) -> None:
    """Run cases; each is noted before it begins and after it has ended, so that a crash can be traced to its case."""
    for case in cases:
        note({"case": case})
        start = time.perf_counter()
        try:
            finding, outcome = probe_.run(bench, case), ANSWERED
        except NotReachedError as error:
            finding, outcome = Finding(str(error)), NOT_REACHED
        except Exception as error:
            finding, outcome = Finding(f"raises {shorten(f'{type(error).__name__}: {error}')}"), ANSWERED
        seconds = round(time.perf_counter() - start, 4)
        found = {"outcome": outcome, "found": finding.text, "raw": plain(finding.raw), "seconds": seconds}
        note(dict(found, case=case))


def plain(value: Any) -> Any:
    """Convert a value to what JSON can hold; NaN and infinity become text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else repr(value)


def child_main(options: argparse.Namespace) -> int:
    """Run ``--cases`` of the probe that ``--run`` names; notes go to the file ``--notes``, or are printed."""
    import resource  # Unix only, as the SDK is

    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # no dumps of crashes
    chosen = HOST if options.run == HOST.name else PROBES[options.run]
    scratch = options.scratch or tempfile.mkdtemp(prefix="magicmind-probe-")
    bench = Bench(options.graphs, scratch, options.arch or ARCHS[0], options.step_seconds)
    cases = chosen.cases(bench.index) if options.cases is None else json.loads(options.cases)
    try:
        if options.notes is None:
            run_cases(chosen, bench, cases, lambda fields: print(json.dumps(fields)))
            return 0
        with open(options.notes, "a", encoding="utf-8") as stream:

            def note(fields: Fields) -> None:
                stream.write(json.dumps(fields) + "\n")
                stream.flush()

            run_cases(chosen, bench, cases, note)
    finally:
        if options.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)
    return 0
