"""Write docs/reference/manifest.md and reports.md, and their JSON schemas, from the types: python tools/write_schema_reference.py.

The fields, types and bounds come from ``msgspec.json.schema``, which also checks the files when they are read; the meanings
come from the docstrings.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from clipmlu.bundle.manifest import Manifest
from clipmlu.chain import RunReport
from clipmlu.index.report import IndexReport
from clipmlu.jobs.export import ExportReport
from clipmlu.jobs.state import JobState
from clipmlu.jobs.verify import JobCheck
from clipmlu.magicmind.mm_run import MmRunReport
from clipmlu.magicmind.probe.records import ProbeReport
from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.measure.compare.compare import ComparisonReport
from clipmlu.measure.retrieval.report import RetrievalReport
from clipmlu.measure.speed.speed import SpeedReport
from clipmlu.report.write import WrittenReport
from clipmlu.tune.sweep_report import SweepReport
from clipmlu.tune.trial import SearchReport

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
NOTICE = "<!-- Written by `python tools/write_schema_reference.py`; do not edit. -->\n"
TYPES = {
    "manifest": {"`manifest.json` of every bundle": Manifest},
    "reports": {
        "`clipmlu eval --json` and `--output`": AccuracyReport,
        "`clipmlu eval --task retrieval --json` and `--output`": RetrievalReport,
        "`clipmlu compare --json`": ComparisonReport,
        "`clipmlu bench --json`": SpeedReport,
        "`clipmlu bench --tool mm_run --json`": MmRunReport,
        "`clipmlu sweep --json` and `sweep.json`": SweepReport,
        "`search.json` of a bundle that `clipmlu compile --max-drop` found": SearchReport,
        "`clipmlu run --json`": RunReport,
        "`clipmlu index --json`": IndexReport,
        "`clipmlu job --json`": JobState,
        "`clipmlu job --verify --json` and `--repair`": JobCheck,
        "`clipmlu job --export --json`": ExportReport,
        "`clipmlu report --json`": WrittenReport,
        "`clipmlu doctor --probe-sdk`": ProbeReport,
    },
}
INTRODUCTIONS = {
    "manifest": """# Manifest

A bundle is a folder with `manifest.json`, which describes everything else in it. This page lists its fields. Unknown fields are errors, and a
`schema_version` that this version of clipmlu does not know is refused. The same as a JSON schema: [manifest.schema.json](manifest.schema.json).
""",
    "reports": """# Reports

The JSON documents that the commands print or write. Fractions such as `top1` are in 0..1, times have their unit in the name, and a figure that does
not exist is `null`. Fields may be added in later versions. The same as a JSON schema: [reports.schema.json](reports.schema.json). [Results](../results.md)
shows the reports in Python.
""",
}


def render_files() -> dict[Path, str]:
    """Return the text of each file that this tool writes."""
    files = {}
    for page, kinds in TYPES.items():
        references, components = msgspec.json.schema_components(list(kinds.values()))
        structs = {name: _struct(name, list(kinds.values())) for name in components}
        titles = {kind.__name__: title for title, kind in kinds.items()}
        ordered = sorted(components, key=lambda name: (name not in titles, list(components).index(name)))
        sections = [_section(name, components[name], structs[name], titles.get(name, "")) for name in ordered]
        files[FOLDER / f"{page}.md"] = "\n".join([NOTICE, INTRODUCTIONS[page], *sections])
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "anyOf": list(references),
            "$defs": components,
        }
        files[FOLDER / f"{page}.schema.json"] = json.dumps(schema, indent=1) + "\n"
    return files


def _struct(name: str, roots: list[type]) -> type | None:
    """Return the type of that name that is reachable from the given ones."""
    waiting: list[Any] = list(roots)
    seen: list[Any] = []
    while waiting:
        kind = waiting.pop()
        if kind in seen:
            continue
        seen.append(kind)
        if getattr(kind, "__name__", "") == name and inspect.isclass(kind):
            return kind
        if inspect.isclass(kind) and hasattr(kind, "__struct_fields__"):
            waiting += [field.type for field in msgspec.structs.fields(kind)]
        waiting += getattr(kind, "__args__", ())
    return None


def _section(name: str, schema: dict[str, Any], kind: type | None, title: str) -> str:
    summary, meanings = _docstring(kind)
    lines = [f"## {name}", ""]
    if title:
        lines += [f"{title}.", ""]
    if summary:
        lines += [summary, ""]
    if "enum" in schema:
        return "\n".join([*lines, "One of " + ", ".join(f"`{value}`" for value in schema["enum"]) + ".", ""])
    required = schema.get("required", ())
    lines += ["| field | type | meaning |", "|---|---|---|"]
    for field, of in schema.get("properties", {}).items():
        default = "" if field in required else _default(of)
        lines.append(f"| `{field}` | {_type(of)} | {_cell(meanings.get(field, '') + default)} |")
    return "\n".join([*lines, ""])


def _docstring(kind: type | None) -> tuple[str, dict[str, str]]:
    """Return the text of a docstring before its sections, and the meanings of its attributes, those of bases too."""
    meanings: dict[str, str] = {}
    summary = ""
    for base in reversed(kind.__mro__ if kind is not None else ()):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        summary, _, attributes = text.partition("\nAttributes:\n")
        for entry in re.split(r"\n(?= {4}\w)", "\n" + attributes):
            field, colon, meaning = entry.strip().partition(":")
            if colon and field.isidentifier():
                meanings[field] = " ".join(meaning.split())
    return _cell(summary.strip()), meanings


def _cell(text: str) -> str:
    """Return docstring text as Markdown of one line."""
    text = re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split()))
    return re.sub(r"\bNone\b", "`null`", text).replace("|", "\\|")


def _default(schema: dict[str, Any]) -> str:
    if "default" not in schema:
        return ""
    return f" (default: {json.dumps(schema['default'])})"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        parts = [_type(each) for each in schema.get("prefixItems", ())]
        return f"array of {', '.join(parts) or _type(schema.get('items') or {})}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return f"{kind}{_bounds(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return ""
    return f" {low if low is not None else ''}..{high if high is not None else ''}"


if __name__ == "__main__":
    for path, text in render_files().items():
        path.write_text(text, encoding="utf-8")
