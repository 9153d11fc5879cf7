"""Lowered graphs on the terminal."""

from __future__ import annotations

from clipmlu.compile.lowered_files import README_NAME
from clipmlu.compile.lowering import LoweredGraphs
from clipmlu.file_names import name_from_path
from clipmlu.report.tables import echo_json, print_facts
from clipmlu.report.wrapping import Whole


def show_lowered(lowered: LoweredGraphs, *, as_json: bool) -> None:
    """Print the facts of lowered graphs on stdout: in JSON all of them."""
    if as_json:
        echo_json(lowered.to_dict())
        return
    facts = dict(lowered.summary().facts)
    facts["graphs"] = Whole(facts["graphs"])
    facts["described in"] = Whole(name_from_path(lowered.path / README_NAME))
    print_facts(facts.items())
