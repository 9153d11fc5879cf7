"""A probe: one question about the SDK, and the function that tests it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .bench import Bench
from .findings import Details, Fields, Finding, list_findings


class Probe:
    """One question about the SDK.

    Args:
        name: its name on the command line and in the report.
        issue: its number in section 7 of docs/magicmind-api.md.
        question: the question in one sentence.
        run: tests one case.
        cases: names of the cases, or a function that lists them from the index of graphs.
        card: whether it needs a card.
        fresh: whether each case gets a new process, because it may leave the SDK in a bad state.
        alone: whether no other probe may run at the same time, because it measures time.
        sum_up: makes the answer from the findings of all cases; None lists them, with equal ones together.
    """

    def __init__(
        self,
        name: str,
        issue: str,
        question: str,
        run: Callable[[Bench, str], Finding],
        cases: Sequence[str] | Callable[[Fields], Sequence[str]],
        card: bool,
        fresh: bool,
        alone: bool,
        sum_up: Callable[[Details], str] | None,
    ) -> None:
        self.name = name
        self.issue = issue
        self.question = question
        self.run = run
        self.card = card
        self.fresh = fresh
        self.alone = alone
        self.sum_up = sum_up or list_findings
        self._cases = cases

    def cases(self, index: Fields) -> list[str]:
        """Names of the cases, given the index of graphs."""
        return list(self._cases(index) if callable(self._cases) else self._cases)


def probe(
    name: str,
    issue: str,
    question: str,
    cases: Sequence[str] | Callable[[Fields], Sequence[str]] = ("",),
    card: bool = True,
    fresh: bool = False,
    alone: bool = False,
    sum_up: Callable[[Details], str] | None = None,
) -> Callable[[Callable[[Bench, str], Finding]], Probe]:
    """A decorator that makes a probe of the function that tests one case; see ``Probe``."""

    def make(run: Callable[[Bench, str], Finding]) -> Probe:
        return Probe(name, issue, question, run, cases, card, fresh, alone, sum_up)

    return make
