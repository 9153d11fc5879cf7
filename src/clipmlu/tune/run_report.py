"""The report of ``clipmlu run``: its steps and the accuracy."""

from __future__ import annotations

from typing import Any

from clipmlu.display import Displayed, Summary, as_plain
from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.specs import Spec


class Step(Spec, frozen=True, kw_only=True):
    """One step of a run.

    Attributes:
        name: ``export``, ``compile`` or ``eval``.
        result: ``made``, ``reused``, or the measured accuracy as text.
        elapsed_s: wall time in seconds.
        path: path of the result.
    """

    name: str
    result: str
    elapsed_s: float
    path: str


class RunReport(Displayed, Spec, frozen=True, kw_only=True):
    """Report of ``clipmlu run``: the steps and the accuracy."""

    steps: tuple[Step, ...]
    accuracy: AccuracyReport

    def summary(self) -> Summary:
        """Return the facts that people see."""
        steps = {step.name: f"{step.result}, {step.elapsed_s:.1f} s" for step in self.steps}
        return Summary({**self.accuracy.provenance.facts(), **steps}, self.accuracy.provenance.emulated)

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each step."""
        return [as_plain(step) for step in self.steps]

    def html_records(self) -> list[dict[str, Any]]:
        """Return the steps."""
        return self.records()
