"""Parsing of class names from lines: plain, quoted, dashed or numbered lines, tables, and names after ids."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from clipmlu.errors import InputError

WORDNET_ID = re.compile(r"n\d{8}")
_HEADS = frozenset(
    {
        "",
        "#",
        "no",
        "number",
        "index",
        "idx",
        "id",
        "class_id",
        "classid",
        "wnid",
        "synset",
        "folder",
        "directory",
        "dir",
    }
    | {
        "name",
        "names",
        "class",
        "classes",
        "class_name",
        "classname",
        "label",
        "labels",
        "category",
        "title",
        "text",
        "words",
    }
)
_NUMBERED = re.compile(r"\(?(?:(?:class|label|id)[-_ ]?)?(\d+)(\s*[:=,]\s*|[.)]\s+|\s+)(.+)", re.IGNORECASE)
_NUMBER_LAST = re.compile(r"(.+?)(\s*[:=,]\s*|\s+)(\d+)")
_ID_FIRST = re.compile(r"(n\d{8})(?:\s*[:=,]\s*|\s+)(.+)")
_DOUBLY_QUOTED = re.compile(r"\"(?:[^\"]|\"\")+\"")  # quotes inside are doubled
_QUOTED = re.compile(r"\"[^\"]*\"|'(?:[^']|(?<=\w)'(?=\w))*'")
_YAML_HEAD = re.compile(r"[A-Za-z_]\w*:")
_YAML_NAMES = re.compile(r"(names|classes|labels|nc)\s*:")
_COMMENT = re.compile(r"#(\s|$)|//")
_PROGRAM = re.compile(r".*[{\[(]|[}\])]+[,;]?")
EXPECTED = "Expected one name a line, or a JSON list of names."


@dataclasses.dataclass(frozen=True)
class Labels:
    """Class names and the keys that the text gives for them.

    Attributes:
        names: in the order of their positions, or of the text if it gives no positions.
        keys: columns of keys, each as long as ``names``: ids, folder names or numbers.
        unordered: why the names have no positions, as part of a message; empty if they have.
    """

    names: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...] = ()
    unordered: str = ""


def labels_from_lines(lines: Sequence[str], where: str) -> Labels:
    """Parse class names from lines that are not blank; see ``parse_labels``."""
    for number, line in enumerate(lines, 1):
        if _COMMENT.match(line):
            raise InputError(
                f"Entry {number} of {where} looks like a comment: '{shortened(line)}'. Take it out. {EXPECTED}"
            )
        if _PROGRAM.fullmatch(line):
            raise InputError(f"{capital(where)} looks like a program or its data: '{shortened(line)}'. {EXPECTED}")
    if len(lines) > 1 and _YAML_HEAD.fullmatch(lines[0]) and (_are_dashed(lines[1:]) or _are_numbered(lines[1:])):
        lines = lines[1:]
    elif any(_YAML_NAMES.match(line) for line in lines):
        raise InputError(f"{capital(where)} looks like YAML with more than a list in it. {EXPECTED}")
    lines = bare_lines(lines, where)
    rows = _rows(lines, where)
    return _from_rows(rows, where) if rows is not None else _from_numbers(lines, where)


def bare_lines(lines: Sequence[str], where: str) -> list[str]:
    """Return lines without list syntax: commas at the end, dashes at the beginning, surrounding quotes."""
    bare = list(lines)
    with_comma = [line.endswith(",") for line in bare]
    if any(with_comma):
        if not all(with_comma[:-1]) or len(bare) == 1:
            number = with_comma.index(True) + 1
            raise InputError(
                f"Entry {number} of {where} ends with a comma, others do not: '{shortened(bare[number - 1])}'."
            )
        bare = [line.rstrip(",").rstrip() for line in bare]
    if _are_dashed(bare):
        bare = [line[1:].strip() for line in bare]
    if not all(map(_QUOTED.fullmatch, bare)):
        return [_unquoted(line) if line.startswith('"') else line for line in bare]  # CSV may quote single lines
    return [_unquoted(line) for line in bare]


def _unquoted(text: str) -> str:
    if _DOUBLY_QUOTED.fullmatch(text):
        text = text.replace('""', '"')
    elif not _QUOTED.fullmatch(text):
        return text
    return text[1:-1].strip()


def _rows(lines: Sequence[str], where: str) -> list[list[str]] | None:
    """Return the cells of a table, or None if the lines are not a table."""
    for separator in ("\t", ";", "|"):
        holding = [separator in line for line in lines]
        if all(holding) and lines:
            return _cells(lines, separator, where)
        if separator == "\t" and any(holding):
            number = holding.index(False) + 1
            raise InputError(
                f"Entry {number} of {where} has no tab, others have: '{shortened(lines[number - 1])}'. {EXPECTED}"
            )
    if lines and all(re.search(r",\S", line) for line in lines):
        try:
            rows = list(csv.reader(lines, strict=True))
        except csv.Error:
            return None
        if len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            return [[cell.strip() for cell in row] for row in rows]
    return None


def _cells(lines: Sequence[str], separator: str, where: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split(separator)] for line in lines]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise InputError(
                f"Entry {number} of {where} has {len(row)} columns, the first one {len(rows[0])}. {EXPECTED}"
            )
    return [[_unquoted(cell) for cell in row] for row in rows]


def _from_rows(rows: list[list[str]], where: str) -> Labels:
    body = rows[1:] if len(rows) > 1 and _is_head(rows) else rows
    columns = list(zip(*body, strict=True))
    ids = [column for column in columns if all(WORDNET_ID.fullmatch(cell) for cell in column)]
    numbers = [column for column in columns if all(cell.isdecimal() for cell in column)]
    words = [column for column in columns if column not in ids and column not in numbers]
    if len(words) == 2 and len(columns) == 2:
        return Labels(check_names(words[1], where), (words[0],), "it has two columns of words and gives no positions")
    if len(words) != 1 or len(numbers) > 1 or len(ids) > 1:
        raise InputError(
            f"{capital(where)} has {len(columns)} columns, and it is not clear which one holds the names: "
            f"'{shortened(', '.join(body[0]))}'. {EXPECTED}"
        )
    names = check_names(words[0], where)
    if not numbers:
        return Labels(names, tuple(ids))
    found = [int(cell) for cell in numbers[0]]
    if sorted(found) != list(range(len(found))):
        return Labels(names, (*ids, numbers[0]), describe_gap(found))
    order = sorted(range(len(found)), key=found.__getitem__)
    return Labels(
        tuple(names[at] for at in order), tuple(tuple(column[at] for at in order) for column in (*ids, numbers[0]))
    )


def _is_head(rows: list[list[str]]) -> bool:
    """Return whether the first row is a heading."""
    first = [cell.lower().replace(" ", "_") for cell in rows[0]]
    if all(cell in _HEADS for cell in first):
        return True
    rest = list(zip(*rows[1:], strict=True))
    return any(
        all(cell.isdecimal() or WORDNET_ID.fullmatch(cell) for cell in column)
        and not (rows[0][at].isdecimal() or WORDNET_ID.fullmatch(rows[0][at]))
        for at, column in enumerate(rest)
    )


def _from_numbers(lines: Sequence[str], where: str) -> Labels:
    """Parse lines that may begin with a number or an id, or end with a number."""
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    matches = [match for match in numbered if match is not None]
    if len(matches) == len(lines):
        numbers = [int(match[1]) for match in matches]
        if _count_up(numbers) or not all(match[2].isspace() for match in matches):
            rest = labels_from_lines(in_order([match[3] for match in matches], numbers, where), where)
            return Labels(rest.names, (*rest.keys, tuple(map(str, range(len(lines))))))
    elif len(matches) > len(lines) / 2 and not all(match[2].isspace() for match in matches):
        number = numbered.index(None) + 1
        raise InputError(
            f"Entry {number} of {where} has no number, others have: '{shortened(lines[number - 1])}'. {EXPECTED}"
        )
    last = [_NUMBER_LAST.fullmatch(line) for line in lines]
    ends = [match for match in last if match is not None]
    if len(lines) > 1 and len(ends) == len(lines) and len({match[1] for match in ends}) == len(lines):
        numbers = [int(match[3]) for match in ends]
        if sorted(numbers) == list(range(len(numbers))):
            return Labels(in_order([match[1] for match in ends], numbers, where))
    with_ids = [_ID_FIRST.fullmatch(line) for line in lines]
    found = [match for match in with_ids if match is not None]
    if found and len(found) == len(lines):
        return _with_ids([match[1] for match in found], [match[2] for match in found])
    if found:
        number = with_ids.index(None) + 1
        raise InputError(
            f"Entry {number} of {where} has no id, others have: '{shortened(lines[number - 1])}'. {EXPECTED}"
        )
    return Labels(tuple(lines))


def _with_ids(ids: Sequence[str], rest: Sequence[str]) -> Labels:
    """Parse lines after their ids; a number may follow, as in map_clsloc.txt: ``n02119789 1 kit_fox``."""
    numbered = [_NUMBERED.fullmatch(line) for line in rest]
    numbers = [int(match[1]) for match in numbered if match is not None]
    if len(numbers) < len(rest) or not _count_up(numbers):
        return Labels(tuple(rest), (tuple(ids),))
    names = tuple(match[3] for match in numbered if match is not None)
    in_place = numbers in (list(range(len(rest))), list(range(1, len(rest) + 1)))
    return Labels(names, (tuple(ids),), "" if in_place else "its numbers are in another order than its lines")


def _count_up(numbers: Sequence[int]) -> bool:
    """Return whether numbers before names are positions: 0, 1, 2 in any order, or from 1, which a later check rejects."""
    ordered, count = sorted(numbers), len(numbers)
    return (count > 1 and ordered == list(range(count))) or (count > 2 and ordered == list(range(1, count + 1)))


def in_order(names: Sequence[str], numbers: Sequence[int], where: str) -> tuple[str, ...]:
    """Return the names in the order of their numbers.

    Raises:
        InputError: the numbers are not 0, 1, 2 and so on, each once.
    """
    if sorted(numbers) != list(range(len(numbers))):
        raise InputError(f"{capital(where)} numbers its names, but {describe_gap(list(numbers))}.")
    placed = dict(zip(numbers, names, strict=True))
    return tuple(placed[number].strip() for number in range(len(numbers)))


def describe_gap(numbers: list[int]) -> str:
    """Return why numbers are not positions."""
    if sorted(numbers) == list(range(1, len(numbers) + 1)):
        return "its numbers begin at 1, and positions are counted from 0; number from 0, or leave the numbers out"
    repeated = [number for number, count in Counter(numbers).items() if count > 1]
    if repeated:
        return f"the number {repeated[0]} occurs more than once; every position 0 to {len(numbers) - 1} is needed once"
    missing = sorted(set(range(len(numbers))) - set(numbers))
    return f"the number {missing[0]} is missing; every position 0 to {len(numbers) - 1} is needed once"


def check_names(values: Sequence[Any], where: str) -> tuple[str, ...]:
    """Return the names without surrounding white space.

    Raises:
        InputError: a name is not a string.
    """
    for number, value in enumerate(values, 1):
        if not isinstance(value, str):
            kind = {dict: "an object", list: "a list", bool: "a truth value", type(None): "null"}.get(
                type(value), "a number"
            )
            raise InputError(f"Entry {number} of {where} is {kind}, not a name: {shortened(repr(value))}. {EXPECTED}")
    return tuple(value.strip() for value in values)


def _are_dashed(lines: Sequence[str]) -> bool:
    return bool(lines) and all(re.match(r"[-*•]\s+\S", line) for line in lines)


def _are_numbered(lines: Sequence[str]) -> bool:
    return bool(lines) and all(_NUMBERED.fullmatch(line) for line in lines)


def shortened(text: str, most: int = 60) -> str:
    """Return at most ``most`` characters of a text, for a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def capital(where: str) -> str:
    """Return the text with a capital first letter."""
    return where[:1].upper() + where[1:]
