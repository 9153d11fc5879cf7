"""What the tests of the probes share."""

from __future__ import annotations

from typing import Any

from clipmlu.magicmind.probe.records import ProbeReport

QUIET: dict[str, Any] = {"switches": "", "faults": "", "devices": 1}
"""Settings of an emulated SDK with one card and nothing unusual."""


def found(report: ProbeReport, name: str, case: str) -> str:
    record = next(record for record in report.records if record.name == name)
    return record.details[case].found
