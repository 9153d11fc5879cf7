"""A question and its cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .bench import Bench
from .findings import Details, Fields, Finding, list_findings


class Probe:
    """One question.

    Args:
        name: for the command line and the report.
        issue: its number in section 7 of docs/magicmind-api.md.
        question: in one sentence.
        run: carries out one case.
        cases: names of the cases, or what finds them in the index of graphs.
        card: needs a card.
        fresh: each case gets a new process, because it may leave the SDK in a bad state.
        alone: nothing else may run meanwhile, because it measures time.
        sum_up: the answer from all cases; by default they are listed, equal ones together.
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
        """Names of the cases."""
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
    """Make a probe of the function that carries out one case; see ``Probe``."""

    def make(run: Callable[[Bench, str], Finding]) -> Probe:
        return Probe(name, issue, question, run, cases, card, fresh, alone, sum_up)

    return make
