"""The report of ``clipmlu doctor --probe-sdk``, as values."""

from __future__ import annotations

from typing import Any, Literal

from clipmlu.specs import Spec

Outcome = Literal["answered", "crashed", "timed out", "not tried"]


class ProbeCase(Spec, frozen=True, kw_only=True):
    """One thing tried.

    Attributes:
        outcome: as a probe's, or ``not reached`` when something else had failed before.
        found: what came of it, in words.
        raw: the facts behind it.
        seconds: how long it took.
    """

    outcome: Literal["answered", "crashed", "timed out", "not tried", "not reached"]
    found: str
    raw: dict[str, Any]
    seconds: float


class ProbeRecord(Spec, frozen=True, kw_only=True):
    """One question and its answer.

    Attributes:
        name: the probe's name.
        issue: number of the question in section 7 of docs/magicmind-api.md.
        question: in one sentence.
        outcome: ``crashed`` or ``timed out`` when any of its cases did.
        answer: what was found, in words.
        details: case -> what it showed.
        log: the end of what the processes printed, the vendor's log among it.
        seconds: how long it took.
    """

    name: str
    issue: str
    question: str
    outcome: Outcome
    answer: str
    details: dict[str, ProbeCase]
    log: str
    seconds: float


class ProbeHost(Spec, frozen=True, kw_only=True):
    """Where the SDK was found.

    Attributes:
        python: version of the interpreter that has it.
        numpy: version of its NumPy.
        platform: operating system.
        machine: processor architecture.
        neuware_home: the variable NEUWARE_HOME.
        sdk_path: the package's file; None when it cannot be imported.
        sdk_version: what the package says of its version, if anything.
        emulated: it is clipmlu's emulated SDK.
        cards: number of cards; None when that could not be asked.
        cnmon: the vendor's monitor on its version.
        problem: what stood in the way.
        log: what importing printed.
    """

    python: str
    numpy: str
    platform: str
    machine: str
    neuware_home: str | None
    sdk_path: str | None
    sdk_version: str | None
    emulated: bool
    cards: int | None
    cnmon: str | None
    problem: str | None
    log: str


class ProbeReport(Spec, frozen=True, kw_only=True):
    """What an SDK does where public sources leave it open.

    Attributes:
        format: version of this format.
        title: says whether the SDK was the emulated one.
        emulated: nothing here says anything about a card.
        host: where it was found.
        arch: the architecture that graphs were built for; None when none worked.
        records: the questions and answers.
    """

    format: Literal[1]
    title: str
    emulated: bool
    host: ProbeHost
    arch: str | None
    records: tuple[ProbeRecord, ...]
