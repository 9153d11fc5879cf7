"""The command line: tests undocumented behaviour of the MagicMind SDK on tiny graphs and writes a report.

It needs Python 3.7 or newer, the standard library, NumPy and ``magicmind``. ``clipmlu doctor --probe-sdk`` runs it where clipmlu is
installed; ``clipmlu doctor --write-probe DIR`` writes it and its graphs into a folder, to be copied to a machine without clipmlu:

    python3.7 clipmlu_probe.pyz                     run all probes; writes magicmind-probe.json and magicmind-probe.md
    python3.7 clipmlu_probe.pyz --only casts json   run some of them
    python3.7 clipmlu_probe.pyz --list              list the questions

Each probe runs in a child process, so that crashes, hangs and exceptions are recorded as answers. A probe consists of cases; when one
ends the process, the cases after it run in a new process. Nothing is sent anywhere, and the report names neither host nor user.

"api 7.n" refers to section 7 of docs/magicmind-api.md, which lists the questions; the calls that the probes rely on are in its
section 2.15.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from .catalogue import PROBES
from .child import child_main
from .report import JSON_NAME, MARKDOWN_NAME, write_report
from .runner import ProbeRunner, print_note, run_probes


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """A temporary folder, removed at the end."""
    path = tempfile.mkdtemp(prefix="magicmind-probe-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _leave(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def parent_main(options: argparse.Namespace) -> int:
    """Run all probes, or those that ``--only`` names, and write the report."""
    names = list(options.only or PROBES)
    unknown = sorted(set(names) - set(PROBES))
    if unknown:
        print_note(f"there is no probe {', '.join(unknown)}; see --list")
        return 2
    os.makedirs(options.output, exist_ok=True)
    signal.signal(signal.SIGTERM, _leave)
    with scratch_folder() as scratch:
        runner = ProbeRunner(options.graphs, scratch, options.timeout, options.arch)
        try:
            report = run_probes(runner, names, options.jobs, lambda report: write_report(options.output, report))
        except KeyboardInterrupt:
            if not options.called:
                print_note(f"interrupted; what was found so far is in '{options.output}'")
            return 130
    if options.called:
        return 0
    if report["host"]["sdk_path"] is None:
        print_note(f"there is no MagicMind SDK here: {report['host']['problem']}")
        return 1
    print_note(f"written: {os.path.join(options.output, MARKDOWN_NAME)} and {JSON_NAME} beside it")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run it; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Test undocumented behaviour of the MagicMind SDK on tiny graphs and write a report."
    )
    here = os.path.dirname(os.path.abspath(sys.argv[0]))
    parser.add_argument(
        "--graphs", default=os.path.join(here, "graphs"), help="folder of the graphs (default: beside this program)"
    )
    parser.add_argument("--output", default=".", help="folder of the report (default: this one)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one case (default: 120)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="probes to run (default: all)")
    parser.add_argument("--arch", help="architecture to build for (default: the first that works)")
    parser.add_argument("--jobs", type=int, default=1, help="probes at a time (default: 1)")
    parser.add_argument("--list", action="store_true", help="list the probes")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--called", action="store_true", help=argparse.SUPPRESS)  # the caller says how it went
    parser.add_argument("--cases", help=argparse.SUPPRESS)
    parser.add_argument("--notes", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    parser.add_argument("--step-seconds", type=float, default=10.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.list:
        for each in PROBES.values():
            print(f"{each.issue:5} {each.name:18} {each.question}")
        return 0
    return child_main(options) if options.run else parent_main(options)
