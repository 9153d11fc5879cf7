"""The parent process: runs each probe in child processes and collects the report."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from .bench import read_index
from .catalogue import LEFT_OUT, PROBES
from .findings import (
    ANSWERED,
    CRASHED,
    NOT_TRIED,
    TIMED_OUT,
    Details,
    Fields,
    list_findings,
)
from .foundation import ARCHS, FALLBACKS
from .host import HOST
from .probe import Probe
from .processes import (
    LOG_TAIL,
    cnmon_version,
    describe_exit,
    kill_group,
    own_command,
    read_notes,
    read_tail,
)
from .report import new_report

KILL_SECONDS = 10.0
MAX_TIMEOUTS = 3  # cases of one probe that may hang; after that the other cases are skipped


class Ending:
    """The notes, exit and log of a child process.

    Attributes:
        notes: its notes, in order.
        how: description of the failure; empty without one.
        timed_out: whether it was ended because a case took too long.
        log: the end of its output.
    """

    def __init__(self, notes: list[Fields], how: str, timed_out: bool, log: str) -> None:
        self.notes = notes
        self.how = how
        self.timed_out = timed_out
        self.log = log


class ProbeRunner:
    """Runs probes, each in child processes.

    Args:
        graphs: folder of the graphs.
        scratch: folder for models and logs.
        timeout: seconds for one case.
        arch: architecture to build for; None for the first that works.
    """

    def __init__(self, graphs: str, scratch: str, timeout: float, arch: str | None) -> None:
        self.arch = arch
        self.has_card = False
        self.problem = ""
        self._graphs = graphs
        self._scratch = scratch
        self._timeout = timeout
        self._index = read_index(graphs)
        self._numbers = 0
        self._lock = threading.Lock()
        self._living: dict[int, subprocess.Popen[bytes]] = {}
        self._stopped = False

    def host(self) -> Fields:
        """Facts about the host and the SDK, found by a child process."""
        ending = self._run_child(HOST, [""])
        done = [note for note in ending.notes if "outcome" in note]
        if done and done[0]["raw"]:
            facts: Fields = done[0]["raw"]
        else:
            how = ending.how or (done[0]["found"] if done else "it gave no answer")
            facts = {"python": platform.python_version(), "numpy": np.__version__, "platform": platform.platform()}
            facts.update(machine=platform.machine(), neuware_home=os.environ.get("NEUWARE_HOME"), sdk_path=None)
            facts.update(sdk_version=None, emulated=False, cards=None, problem=f"import magicmind: {how}")
        facts["cnmon"] = None if facts["emulated"] else cnmon_version()
        facts["log"] = self.clean(ending.log)
        for key in ("sdk_path", "neuware_home", "problem", "cnmon"):
            facts[key] = None if facts[key] is None else self.clean(facts[key])
        self.has_card = facts["sdk_path"] is not None and facts["cards"] != 0  # None: it could not be asked
        return facts

    def find_arch(self) -> Fields:
        """Find the architecture to build for; returns the record of the probe "foundation"."""
        first = PROBES["foundation"]
        record = self.record(first, [self.arch] if self.arch else None)
        if not cases_with(record, "good") and not self.arch and self.has_card:
            more = self.record(first, FALLBACKS)
            details = dict(record["details"], **more["details"])
            record = dict(more, details=details, answer=list_findings(details), outcome=outcome_of(details))
        found = cases_with(record, "right") or cases_with(record, "good")
        if found:
            self.arch = found[0]
        elif self.has_card:
            self.problem = "no architecture gave a model that is built, loaded and run: see 'foundation'"
        return record

    def record(self, probe_: Probe, cases: Sequence[str] | None = None) -> Fields:
        """Run all cases of one probe, or those given; returns its record."""
        start = time.monotonic()
        base = {"name": probe_.name, "issue": probe_.issue, "question": probe_.question}
        reason = "" if not probe_.card else self.problem if self.has_card else "there is no card"
        if reason or self._stopped:
            return dict(base, outcome=NOT_TRIED, answer=reason or "interrupted", details={}, log="", seconds=0.0)
        details, logs = self._run_all(probe_, probe_.cases(self._index) if cases is None else list(cases))
        answer = self._sum_up(probe_, details)
        return dict(
            base,
            outcome=outcome_of(details),
            answer=answer,
            details=details,
            log=self.clean("\n".join(logs))[-LOG_TAIL:],
            seconds=round(time.monotonic() - start, 3),
        )

    def stop(self) -> None:
        """Kill all children; cases that have not run are recorded as "not tried"."""
        with self._lock:
            self._stopped = True
            for child in self._living.values():
                kill_group(child)

    def clean(self, text: str) -> str:
        """Replace host name, home directory and temporary folders by placeholders."""
        for found, shown in (
            (os.path.abspath(self._scratch), "<scratch>"),
            (os.path.abspath(self._graphs), "<graphs>"),
            (os.path.dirname(os.path.abspath(sys.argv[0])), "<program>"),  # in tracebacks
            (os.path.expanduser("~"), "~"),
        ):
            if len(found) > 1:
                text = text.replace(found, shown)
        host = platform.node()
        return re.sub(rf"\b{re.escape(host)}\b", "<host>", text) if host else text

    def _run_all(self, probe_: Probe, cases: list[str]) -> tuple[Details, list[str]]:
        details: Details = {}
        logs: list[str] = []
        hangs = 0
        remaining = list(cases)
        while remaining and not self._stopped:
            if hangs >= MAX_TIMEOUTS:
                for case in remaining:
                    details[case] = case_fields(NOT_TRIED, f"left out after {hangs} cases that hung")
                break
            ending = self._run_child(probe_, remaining[:1] if probe_.fresh else remaining)
            self._take(ending, remaining, details)
            hangs += ending.timed_out
            if ending.log:
                logs.append(ending.log)
            remaining = [case for case in remaining if case not in details]
        for case in remaining:
            details.setdefault(case, case_fields(NOT_TRIED, "interrupted"))
        return {case: details[case] for case in cases}, logs

    def _take(self, ending: Ending, remaining: Sequence[str], details: Details) -> None:
        for note in ending.notes:
            if "outcome" in note:
                case = note.pop("case")
                details[case] = json.loads(self.clean(json.dumps(note)))
        begun = [note["case"] for note in ending.notes if "outcome" not in note and note["case"] not in details]
        left = [case for case in remaining if case not in details]
        if begun or (left and (ending.how or not ending.notes)):
            case = begun[0] if begun else left[0]
            kind = TIMED_OUT if ending.timed_out else CRASHED
            where = "" if begun else " before the case began"
            details[case] = case_fields(kind, (ending.how or "the process ended without an answer") + where)
        elif ending.how and ending.notes:
            last = [note for note in ending.notes if note][-1]
            case = last.get("case", "") if last.get("case", "") in details else list(details)[-1]
            details[case]["raw"]["process_end"] = ending.how  # all cases were through: it went wrong on leaving

    def _sum_up(self, probe_: Probe, details: Details) -> str:
        try:
            return probe_.sum_up(details)
        except Exception as error:
            return f"{list_findings(details)} (summing up failed: {error})"

    def _run_child(self, probe_: Probe, cases: Sequence[str]) -> Ending:
        with self._lock:
            self._numbers += 1
            stem = os.path.join(self._scratch, f"{probe_.name}-{self._numbers}")
        command = [*own_command(), "--run", probe_.name, "--graphs", self._graphs]
        command += ["--scratch", self._scratch, "--notes", f"{stem}.notes", "--cases", json.dumps(list(cases))]
        command += ["--step-seconds", str(self._timeout / 4), "--arch", self.arch or ARCHS[0]]
        open(f"{stem}.notes", "w").close()
        with open(f"{stem}.log", "wb") as log:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
            with self._lock:
                self._living[child.pid] = child
            try:
                timed_out = self._wait(child, f"{stem}.notes")
            finally:
                kill_group(child)  # what it may have left behind, or all of it when this process is interrupted
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(KILL_SECONDS)  # a process inside a driver's call may not be killed before that returns
                with self._lock:
                    del self._living[child.pid]
        how = f"no end within {self._timeout:g} s" if timed_out else describe_exit(child.returncode or 0)
        if child.returncode is None:
            how = f"{how}; it cannot be killed" if how else "it cannot be killed"
        return Ending(read_notes(f"{stem}.notes"), how, timed_out, read_tail(f"{stem}.log"))

    def _wait(self, child: subprocess.Popen[bytes], notes: str) -> bool:
        """Wait for a child; True when one of its cases takes longer than the timeout."""
        seen, deadline = -1, 0.0
        while child.poll() is None:
            size = os.path.getsize(notes)
            if size != seen:
                seen, deadline = size, time.monotonic() + self._timeout
            if self._stopped or time.monotonic() > deadline:
                return not self._stopped
            time.sleep(0.02)
        return False


def cases_with(record: Fields, key: str) -> list[str]:
    """The cases of the record of "foundation" whose raw value ``key`` is true: ``good`` or ``right``."""
    return [case for case, fields in record["details"].items() if fields["raw"].get(key)]


def case_fields(outcome: str, found: str) -> Fields:
    """The fields of a case that gave no finding itself."""
    return {"outcome": outcome, "found": found, "raw": {}, "seconds": 0.0}


def outcome_of(details: Details) -> str:
    """The outcome of a probe: the worst outcome of its cases."""
    outcomes = [fields["outcome"] for fields in details.values()]
    for outcome in (CRASHED, TIMED_OUT, ANSWERED):
        if outcome in outcomes:
            return outcome
    return NOT_TRIED


def run_probes(runner: ProbeRunner, names: Sequence[str], jobs: int, save: Callable[[Fields], None]) -> Fields:
    """Run probes and save the report after each.

    Args:
        runner: runs one probe.
        names: the probes; with all of them the report also lists the questions that are left out.
        jobs: probes at a time.
        save: is given the report, again and again.

    Returns:
        The report.
    """
    report = new_report(runner.host())
    save(report)
    if report["host"]["sdk_path"] is None:
        return report
    left_out = LEFT_OUT if len(names) == len(PROBES) else ()
    order = [*names, *(name for name, _, _, _ in left_out)]
    records: dict[str, Fields] = {}

    def add(record: Fields) -> None:
        records[record["name"]] = record
        report["records"] = [records[name] for name in order if name in records]
        save(report)
        print_note(f"[{len(records)}/{len(order)}] {record['name']}: {record['outcome']}")

    if any(PROBES[name].card or name == "foundation" for name in names) or not runner.arch:
        found = runner.find_arch()
        report["arch"] = runner.arch
        if "foundation" in names:
            add(found)
    _run_chosen(runner, [PROBES[name] for name in names if name != "foundation"], jobs, add)
    for name, issue, question, reason in left_out:
        base = {"name": name, "issue": issue, "question": question}
        add(dict(base, outcome=NOT_TRIED, answer=reason, details={}, log="", seconds=0.0))
    return report


def _run_chosen(runner: ProbeRunner, chosen: Sequence[Probe], jobs: int, add: Callable[[Fields], None]) -> None:
    """Run probes, several at a time but for those that must run alone, and hand over each record."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        pending = [pool.submit(runner.record, each) for each in chosen if not each.alone]
        try:
            for future in _as_completed(pending):
                add(future.result())
            for each in chosen:
                if each.alone:
                    add(runner.record(each))
        except KeyboardInterrupt:
            runner.stop()
            raise


def _as_completed(pending: Iterable[concurrent.futures.Future[Fields]]) -> Iterator[concurrent.futures.Future[Fields]]:
    """Give futures when they are done. Waits in short intervals: a signal just before a wait does not interrupt that wait."""
    left = set(pending)
    while left:
        done, left = concurrent.futures.wait(left, 0.5, concurrent.futures.FIRST_COMPLETED)
        yield from done


def print_note(text: str) -> None:
    """Print to stderr, at once."""
    print(text, file=sys.stderr, flush=True)
