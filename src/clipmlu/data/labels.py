"""Lists of class names as people have them: plain lines, numbered lines, tables, JSON, and Python's lists and dicts.

A shape is understood or refused; what belongs to the shape (brackets, quotes, numbers, ids) never becomes a part of a name.
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from clipmlu.data.textfile import Note, full_lines
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
_NUMBERED = re.compile(r"(\d+)(\s*[:=,]\s*|[.)]\s+|\s+)(.+)")
_NUMBER_LAST = re.compile(r"(.+?)(\s*[:=,]\s*|\s+)(\d+)")
_ID_FIRST = re.compile(r"(n\d{8})(?:\s*[:=,]\s*|\s+)(.+)")
_QUOTED = re.compile(r"\"[^\"]*\"|'(?:[^']|(?<=\w)'(?=\w))*'")
_ASSIGNED = re.compile(r"\w+\s*=\s*(?=[\[({])")
_YAML_HEAD = re.compile(r"[A-Za-z_]\w*:")
_YAML_NAMES = re.compile(r"(names|classes|labels|nc)\s*:")
_COMMENT = re.compile(r"#(\s|$)|//")
_NESTS = ("id2label", "names", "classes", "labels", "class_names", "label_names", "categories")
_EXPECTED = "Expected one name a line, or a JSON list of names."


@dataclasses.dataclass(frozen=True)
class Labels:
    """Class names, and what each is keyed by where the text says so.

    Attributes:
        names: in the order of the positions, or of the text where it gives none.
        keys: columns of keys, each as long as ``names``: ids, folder names or numbers.
        unordered: why the names have no positions, as part of a message; empty where they have.
    """

    names: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...] = ()
    unordered: str = ""


def parse_labels(text: str, where: str, on_note: Note) -> Labels:
    """Class names of a text.

    Args:
        text: of a label file.
        where: what it is called in messages, such as ``"the label file 'labels.txt'"``.
        on_note: called with a line about blank lines.

    Raises:
        InputError: its shape is not understood, with the place and what is expected.
    """
    value = _structure(text.strip(), where)
    if value is not None:
        return _from_value(value, where)
    lines = full_lines(text, where, on_note)
    if len(lines) == 1 and "," in lines[0].rstrip(","):
        raise InputError(
            f"{_capital(where)} has one line with commas in it: '{_short(lines[0])}'. Put each name on a line of its own, or give "
            "the list itself: 'cat,dog'."
        )
    return labels_from_lines(lines, where)


def parse_entries(text: str, where: str, on_note: Note) -> list[str]:
    """Entries of a plain list, such as templates: lines, or a list as JSON or Python write it.

    Raises:
        InputError: it begins as a list, and is none.
    """
    value = _structure(text.strip(), where) if text.lstrip()[:1] == "[" else None
    if value is None:
        return _bare(full_lines(text, where, on_note), where)
    if not isinstance(value, (list, tuple)) or not all(isinstance(entry, str) for entry in value):
        raise InputError(f"{_capital(where)} is not a list of texts. Expected one a line, or a JSON list of texts.")
    return [entry.strip() for entry in value]


def labels_from_lines(lines: Sequence[str], where: str) -> Labels:
    """Class names of lines that are not blank; see ``parse_labels``."""
    for number, line in enumerate(lines, 1):
        if _COMMENT.match(line):
            raise InputError(
                f"Entry {number} of {where} looks like a comment: '{_short(line)}'. Take it out. {_EXPECTED}"
            )
    if len(lines) > 1 and _YAML_HEAD.fullmatch(lines[0]) and (_are_dashed(lines[1:]) or _are_numbered(lines[1:])):
        lines = lines[1:]
    elif any(_YAML_NAMES.match(line) for line in lines):
        raise InputError(f"{_capital(where)} looks like YAML with more than a list in it. {_EXPECTED}")
    lines = _bare(lines, where)
    rows = _rows(lines, where)
    return _from_rows(rows, where) if rows is not None else _from_numbers(lines, where)


def _structure(text: str, where: str) -> Any:
    """The value of a text that is JSON or a Python literal, or None where it begins like neither."""
    assigned = _ASSIGNED.match(text)
    body = text[assigned.end() :] if assigned else text
    if body[:1] not in ("[", "{", "("):
        return None
    try:
        return json.loads(body, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except (ValueError, RecursionError) as error:
        reason = str(error)
    try:
        return ast.literal_eval(body)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if body[:1] == "(" and not assigned:
            return None  # a name may begin so
    raise InputError(
        f"{_capital(where)} begins with '{text[:1] if not assigned else _short(text)}' and is neither JSON ({reason}) nor a "
        f"list or dict of Python. {_EXPECTED}"
    )


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise InputError(f"{_capital(where)} has the key '{repeated[0]}' more than once. Every key needs one name.")
    return dict(pairs)


def _from_value(value: Any, where: str) -> Labels:
    if isinstance(value, dict):
        nests = [key for key in _NESTS if isinstance(value.get(key), (dict, list))]
        if nests:
            return _from_value(value[nests[0]], where)
        return _from_mapping(value, where)
    if isinstance(value, (list, tuple)):
        if value and all(_is_pair(entry) for entry in value):
            return Labels(_names([name for _, name in value], where), (tuple(str(key) for key, _ in value),))
        return Labels(_names(value, where))
    raise InputError(f"{_capital(where)} holds a value of type '{type(value).__name__}'. {_EXPECTED}")


def _from_mapping(mapping: dict[Any, Any], where: str) -> Labels:
    keys, values = [str(key) for key in mapping], list(mapping.values())
    if values and all(_is_number(value) for value in values):  # name -> position, as torchvision's class_to_idx
        return Labels(_in_order(keys, values, where))
    extra: tuple[tuple[str, ...], ...] = ()
    if values and all(_is_pair(value) for value in values):  # position -> (id, name), as imagenet_class_index.json
        extra = (tuple(key for key, _ in values),)
        values = [name for _, name in values]
    names = _names(values, where)
    if not all(key.isdecimal() for key in keys):
        return Labels(names, (tuple(keys), *extra), "it maps keys to names and says no positions")
    if sorted(map(int, keys)) != list(range(len(keys))):
        return Labels(names, (tuple(keys), *extra), _gap([int(key) for key in keys]))
    order = sorted(range(len(keys)), key=lambda at: int(keys[at]))
    columns = (tuple(keys), *extra)
    return Labels(tuple(names[at] for at in order), tuple(tuple(column[at] for at in order) for column in columns))


def _names(values: Sequence[Any], where: str) -> tuple[str, ...]:
    for number, value in enumerate(values, 1):
        if not isinstance(value, str):
            kind = {dict: "an object", list: "a list", bool: "a truth value", type(None): "null"}.get(
                type(value), "a number"
            )
            raise InputError(f"Entry {number} of {where} is {kind}, not a name: {_short(repr(value))}. {_EXPECTED}")
    return tuple(value.strip() for value in values)


def _bare(lines: Sequence[str], where: str) -> list[str]:
    """Lines without what belongs to a list: commas at their ends, dashes at their beginnings, quotes around them."""
    bare = list(lines)
    with_comma = [line.endswith(",") for line in bare]
    if any(with_comma):
        if not all(with_comma[:-1]) or len(bare) == 1:
            number = with_comma.index(True) + 1
            raise InputError(
                f"Entry {number} of {where} ends with a comma, others do not: '{_short(bare[number - 1])}'."
            )
        bare = [line.rstrip(",").rstrip() for line in bare]
    if _are_dashed(bare):
        bare = [line[1:].strip() for line in bare]
    return [_unquoted(line) for line in bare] if all(map(_QUOTED.fullmatch, bare)) else bare


def _unquoted(text: str) -> str:
    return text[1:-1].strip() if _QUOTED.fullmatch(text) else text


def _rows(lines: Sequence[str], where: str) -> list[list[str]] | None:
    """Cells of a table, or None where the lines are none."""
    for separator in ("\t", ";", "|"):
        holding = [separator in line for line in lines]
        if all(holding) and lines:
            return _cells(lines, separator, where)
        if separator == "\t" and any(holding):
            number = holding.index(False) + 1
            raise InputError(
                f"Entry {number} of {where} has no tab, others have: '{_short(lines[number - 1])}'. {_EXPECTED}"
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
                f"Entry {number} of {where} has {len(row)} columns, the first one {len(rows[0])}. {_EXPECTED}"
            )
    return [[_unquoted(cell) for cell in row] for row in rows]


def _from_rows(rows: list[list[str]], where: str) -> Labels:
    body = rows[1:] if len(rows) > 1 and _is_head(rows) else rows
    columns = list(zip(*body, strict=True))
    ids = [column for column in columns if all(WORDNET_ID.fullmatch(cell) for cell in column)]
    numbers = [column for column in columns if all(cell.isdecimal() for cell in column)]
    words = [column for column in columns if column not in ids and column not in numbers]
    if len(words) == 2 and len(columns) == 2:
        return Labels(_names(words[1], where), (words[0],), "it has two columns of words and says no positions")
    if len(words) != 1 or len(numbers) > 1 or len(ids) > 1:
        raise InputError(
            f"{_capital(where)} has {len(columns)} columns, and which one holds the names is not clear: "
            f"'{_short(', '.join(body[0]))}'. {_EXPECTED}"
        )
    names = _names(words[0], where)
    if not numbers:
        return Labels(names, tuple(ids))
    found = [int(cell) for cell in numbers[0]]
    if sorted(found) != list(range(len(found))):
        return Labels(names, (*ids, numbers[0]), _gap(found))
    order = sorted(range(len(found)), key=found.__getitem__)
    return Labels(
        tuple(names[at] for at in order), tuple(tuple(column[at] for at in order) for column in (*ids, numbers[0]))
    )


def _is_head(rows: list[list[str]]) -> bool:
    """Whether the first row says what the columns are."""
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
    """Lines that may begin with a number or an id, or end with a number."""
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    matches = [match for match in numbered if match is not None]
    if matches and len(matches) == len(lines):
        numbers = [int(match[1]) for match in matches]
        if _count_up(numbers) or not all(match[2].isspace() for match in matches):
            rest = labels_from_lines(_in_order([match[3] for match in matches], numbers, where), where)
            return Labels(rest.names, (*rest.keys, tuple(map(str, range(len(lines))))))
    elif len(matches) > len(lines) / 2 and not all(match[2].isspace() for match in matches):
        number = numbered.index(None) + 1
        raise InputError(
            f"Entry {number} of {where} has no number, others have: '{_short(lines[number - 1])}'. {_EXPECTED}"
        )
    last = [_NUMBER_LAST.fullmatch(line) for line in lines]
    ends = [match for match in last if match is not None]
    if len(lines) > 1 and len(ends) == len(lines) and len({match[1] for match in ends}) == len(lines):
        numbers = [int(match[3]) for match in ends]
        if sorted(numbers) == list(range(len(numbers))):
            return Labels(_in_order([match[1] for match in ends], numbers, where))
    with_ids = [_ID_FIRST.fullmatch(line) for line in lines]
    found = [match for match in with_ids if match is not None]
    if found and len(found) == len(lines):
        return Labels(tuple(match[2] for match in found), (tuple(match[1] for match in found),))
    if found:
        number = with_ids.index(None) + 1
        raise InputError(
            f"Entry {number} of {where} has no id, others have: '{_short(lines[number - 1])}'. {_EXPECTED}"
        )
    return Labels(tuple(lines))


def _count_up(numbers: Sequence[int]) -> bool:
    """Whether numbers before names are positions: 0, 1, 2 in any order; or such from 1, which will be refused."""
    ordered, count = sorted(numbers), len(numbers)
    return (count > 1 and ordered == list(range(count))) or (count > 2 and ordered == list(range(1, count + 1)))


def _in_order(names: Sequence[str], numbers: Sequence[int], where: str) -> tuple[str, ...]:
    """Names by their positions.

    Raises:
        InputError: the numbers are not 0, 1, 2 and so on, each once.
    """
    if sorted(numbers) != list(range(len(numbers))):
        raise InputError(f"{_capital(where)} numbers its names, but {_gap(list(numbers))}.")
    placed = dict(zip(numbers, names, strict=True))
    return tuple(placed[number].strip() for number in range(len(numbers)))


def _gap(numbers: list[int]) -> str:
    """Why numbers are no positions."""
    if sorted(numbers) == list(range(1, len(numbers) + 1)):
        return "its numbers begin at 1, and positions are counted from 0; number from 0, or leave the numbers out"
    repeated = [number for number, count in Counter(numbers).items() if count > 1]
    if repeated:
        return f"the number {repeated[0]} occurs more than once; every position 0 to {len(numbers) - 1} is needed once"
    missing = sorted(set(range(len(numbers))) - set(numbers))
    return f"the number {missing[0]} is missing; every position 0 to {len(numbers) - 1} is needed once"


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_dashed(lines: Sequence[str]) -> bool:
    return bool(lines) and all(re.match(r"[-*]\s+\S", line) for line in lines)


def _are_numbered(lines: Sequence[str]) -> bool:
    return bool(lines) and all(_NUMBERED.fullmatch(line) for line in lines)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _capital(where: str) -> str:
    return where[:1].upper() + where[1:]
