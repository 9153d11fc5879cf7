"""The report and its files: JSON and Markdown."""

from __future__ import annotations

import json
import os
from typing import Any

from .findings import Fields

FORMAT = 1


JSON_NAME = "magicmind-probe.json"


MARKDOWN_NAME = "magicmind-probe.md"


def new_report(host: Fields) -> Fields:
    """A report without records."""
    return {
        "format": FORMAT,
        "title": f"{'Emulated ' if host['emulated'] else ''}MagicMind SDK: what it does",
        "emulated": host["emulated"],
        "host": host,
        "arch": None,
        "records": [],
    }


def to_markdown(report: Fields) -> str:
    """Render a report as Markdown."""
    host = report["host"]
    lines = [f"# {report['title']}", ""]
    if report["emulated"]:
        lines += ["**Emulated.** This is clipmlu's emulated SDK on a CPU: nothing here says anything about a card.", ""]
    for key in ("python", "numpy", "platform", "sdk_path", "sdk_version", "cards", "cnmon", "neuware_home", "problem"):
        if host[key] is not None:
            lines.append(f"- {key.replace('_', ' ')}: {_cell(host[key])}")
    lines += [
        f"- built for: {report['arch']}",
        "",
        "| issue | probe | question | outcome | answer |",
        "|---|---|---|---|---|",
    ]
    for record in report["records"]:
        row = (record["issue"], record["name"], record["question"], record["outcome"], record["answer"])
        lines.append(f"| {' | '.join(_cell(each) for each in row)} |")
    for record in report["records"]:
        if len(record["details"]) > 1:
            lines += ["", f"## {record['name']}", "", record["question"], "", "| case | found |", "|---|---|"]
            lines += [f"| {_cell(case)} | {_cell(fields['found'])} |" for case, fields in record["details"].items()]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return shorten_cell(" ".join(str(value).split()).replace("|", "\\|"))


def shorten_cell(text: str) -> str:
    """Cut a text to 600 characters; the JSON file has all of it."""
    return text if len(text) <= 600 else text[:597] + "..."


def write_report(output: str, report: Fields) -> None:
    """Write both files, each whole or not at all."""
    texts = {JSON_NAME: json.dumps(report, indent=1) + "\n", MARKDOWN_NAME: to_markdown(report)}
    for name, text in texts.items():
        path = os.path.join(output, name)
        with open(f"{path}.tmp", "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(f"{path}.tmp", path)
