"""How results show themselves: a short ``repr``, HTML for notebooks, dicts for JSON, and data frames.

A class inherits ``Displayed`` and says in ``summary`` which facts people see, and in ``records`` what the rows of its
data frame are.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from clipmlu.errors import MissingDependencyError
from clipmlu.file_names import name_from_path, printable

if TYPE_CHECKING:
    import pandas as pd

EMULATED_MARK = " (emulated)"
"""Mark of a result of the emulated vendor SDK."""

COLUMNS = 120
ROWS_SHOWN = 20
LONGEST_NAME = 30
"""Characters of a class name in a ``repr``."""

_LONGEST_FACT = 72
_MOST_LINES = 5


class Summary(NamedTuple):
    """What people see of a value.

    Attributes:
        facts: maps the name of a fact to its text.
        emulated: the emulated vendor SDK was used.
    """

    facts: Mapping[str, str]
    emulated: bool = False


@runtime_checkable
class HtmlCell(Protocol):
    """A value of a table that is HTML itself, such as an image."""

    def html(self) -> str:
        """Return the HTML."""


class Displayed:
    """Base class of results; a subclass has ``summary`` for other facts, and ``records`` if its data frame has several rows."""

    __slots__ = ()

    def summary(self) -> Summary:
        """Return the facts that people see; by default the fields with one value each, and the number of values of others."""
        plain = self.to_dict()
        provenance = plain.get("provenance") or {}
        emulated = bool(plain.pop("emulated", False) or provenance.get("emulated"))
        facts = {name.replace("_", " "): _fact(value) for name, value in plain.items() if value not in (None, [], {})}
        return Summary({name: text for name, text in facts.items() if text}, emulated)

    def records(self) -> list[dict[str, Any]]:
        """Return the rows of the data frame: dicts with equal keys; by default one row with the facts."""
        return [dict(self.summary().facts)]

    def columns(self) -> list[str]:
        """Return the names of the columns of a data frame without rows."""
        return []

    def html_records(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows that a notebook shows below the facts; none by default."""
        return ()

    def __repr__(self) -> str:
        facts, emulated = self.summary()
        parts = ["emulated"] if emulated else []
        parts += [f"{name}: {shorten(value)}" for name, value in facts.items()]
        lines = [f"{type(self).__name__}("]
        for number, part in enumerate(parts, start=1):
            text = part + (";" if number < len(parts) else ")")
            if len(lines[-1]) + len(text) >= COLUMNS:
                lines.append(" ")
            lines[-1] += text if lines[-1].endswith("(") else f" {text}"
        return "\n".join(lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 1], "  ...)"])

    def _repr_html_(self) -> str:
        facts, emulated = self.summary()
        title = f"{type(self).__name__}{EMULATED_MARK if emulated else ''}"
        rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{cell(text)}</td></tr>" for name, text in facts.items())
        table = f"<table><caption>{html.escape(title)}</caption><tbody>{rows}</tbody></table>"
        return table + html_table(self.html_records())

    def to_dict(self) -> dict[str, Any]:
        """Return the value as a dict of what JSON has: dicts, lists, texts, numbers, booleans and None."""
        plain: dict[str, Any] = as_plain(self)
        return plain

    def to_dataframe(self) -> pd.DataFrame:
        """Return the rows as a pandas data frame; a column ``emulated`` marks results of the emulated vendor SDK.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingDependencyError("pandas", "dataframe", "A data frame") from error
        records = self.records()
        frame = pd.DataFrame.from_records(records, columns=None if records else self.columns())
        if self.summary().emulated:
            frame["emulated"] = True
        return frame


def size_text(count: int) -> str:
    """Return a number of bytes for people, in MB, or in kB if that is less than one: no file is shown as 0.0 MB."""
    return f"{count / 1e6:,.1f} MB" if count >= 999_950 else f"{count / 1e3:,.1f} kB"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``"1 image"`` or ``"12,345 images"``; ``class`` becomes ``classes``."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number:,} {noun}{ending}"


def _fact(value: object) -> str:
    """Return a value of a dict for JSON in a few words; empty for a dict."""
    if isinstance(value, dict):
        return ""
    if isinstance(value, list):
        return f"{len(value):,}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_plain(value: object) -> Any:
    """Return a report, record or dataclass as what JSON has; paths become names."""
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=_plain))


def _plain(value: object) -> str:
    if isinstance(value, os.PathLike):
        return name_from_path(value)
    raise TypeError(f"a value of type '{type(value).__name__}' has no form in JSON")


def shorten(text: str, width: int = _LONGEST_FACT) -> str:
    """Return a text in one line of at most ``width`` characters; a longer one loses its middle."""
    line = printable(" ".join(text.split()))
    half = (width - 3) // 2
    return line if len(line) <= width else f"{line[:half]}...{line[-half:]}"


def cell(value: object) -> str:
    """Return the content of a cell of an HTML table: escaped, figures with four digits, None as a dash, ``HtmlCell`` as it is."""
    if value is None:
        return "-"
    if isinstance(value, HtmlCell):
        return value.html()
    if isinstance(value, float):
        return f"{value:.4g}"
    return html.escape(printable(str(value)))


def html_table(records: Sequence[Mapping[str, Any]], *, more: int = 0) -> str:
    """Return rows with equal keys as an HTML table of at most ``ROWS_SHOWN`` rows; empty without rows.

    Args:
        records: the rows.
        more: rows that are left out already, in addition to those beyond ``ROWS_SHOWN``.
    """
    if not records:
        return ""
    heads = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in records[0])
    rows = "".join(_row(record.values()) for record in records[:ROWS_SHOWN])
    more += max(0, len(records) - ROWS_SHOWN)
    rest = f"<p>... {more:,} more</p>" if more else ""
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{rest}"


def _row(values: Iterable[object]) -> str:
    return f"<tr>{''.join(f'<td>{cell(value)}</td>' for value in values)}</tr>"
