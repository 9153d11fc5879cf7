"""The report of ``clipmlu doctor --probe-sdk``, as values."""

from __future__ import annotations

from typing import Any, Literal

from clipmlu.specs import Spec

Outcome = Literal["answered", "crashed", "timed out", "not tried"]


class ProbeCase(Spec, frozen=True, kw_only=True):
    """The result of one case.

    Attributes:
        outcome: as a probe's, or ``not reached`` when a call before the tested one failed.
        found: the finding in words.
        raw: the values that the finding rests on.
        seconds: how long it took.
    """

    outcome: Literal["answered", "crashed", "timed out", "not tried", "not reached"]
    found: str
    raw: dict[str, Any]
    seconds: float


class ProbeRecord(Spec, frozen=True, kw_only=True):
    """A probe: one question about the SDK, and its answer.

    Attributes:
        name: the probe's name.
        issue: number of the question in section 7 of docs/magicmind-api.md.
        question: the question in one sentence.
        outcome: ``crashed`` or ``timed out`` when any of its cases did.
        answer: the findings of all cases in words.
        details: name of a case -> its result.
        log: the end of the output of its processes, which includes the vendor's log.
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
    """The machine and the SDK.

    Attributes:
        python: version of the interpreter that has it.
        numpy: version of its NumPy.
        platform: operating system.
        machine: processor architecture.
        neuware_home: the variable NEUWARE_HOME.
        sdk_path: the package's file; None when it cannot be imported.
        sdk_version: the version that the package states, or None.
        emulated: whether it is clipmlu's emulated SDK.
        cards: number of cards; None when the SDK failed to count them.
        cnmon: the output of ``cnmon version``, the vendor's monitor, or None.
        problem: why the SDK could not be imported, or its cards not be counted; None when all is well.
        log: the output of importing the SDK.
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
    """Undocumented behaviour of an SDK, as the probes found it.

    Attributes:
        format: version of this format.
        title: the headline; it begins with ``Emulated`` for the emulated SDK.
        emulated: whether the SDK was the emulated one; then nothing here is true of a card.
        host: the machine and the SDK.
        arch: the architecture that models were built for; None when none worked.
        records: the probes, in order.
    """

    format: Literal[1]
    title: str
    emulated: bool
    host: ProbeHost
    arch: str | None
    records: tuple[ProbeRecord, ...]
