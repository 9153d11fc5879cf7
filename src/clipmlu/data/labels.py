"""Parsing of class name lists: plain lines, numbered lines, tables, JSON, and Python lists and dicts.

A format is either supported or an error; its syntax (brackets, quotes, numbers, ids) never becomes part of a name.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections import Counter
from typing import Any

from clipmlu.data.label_lines import (
    EXPECTED,
    WORDNET_ID,
    Labels,
    bare_lines,
    capital,
    check_names,
    describe_gap,
    in_order,
    labels_from_lines,
    shortened,
)
from clipmlu.data.textfile import Note, full_lines
from clipmlu.errors import InputError

_ASSIGNED = re.compile(r"\w+\s*=\s*(?=[\[({])")
_HEADINGS = frozenset(
    {"name", "class", "label", "class name", "label name", "category", "names", "classes", "labels", "classname"}
)
_NESTS = ("id2label", "names", "classes", "labels", "class_names", "label_names", "categories")


def parse_labels(text: str, where: str, on_note: Note) -> Labels:
    """Parse class names from a text.

    Args:
        text: content of a label file.
        where: name of the source in messages, such as ``"the label file 'labels.txt'"``.
        on_note: called with a line about blank lines.

    Raises:
        InputError: the format is not supported; the message says where, and what is expected.
    """
    labels = _parse(text, where, on_note)
    if not any(all(map(WORDNET_ID.fullmatch, column)) for column in labels.keys):
        return labels
    # Lists with WordNet ids, such as Keras's, write 'great_white_shark'.
    return dataclasses.replace(labels, names=tuple(name.replace("_", " ") for name in labels.names))


def _parse(text: str, where: str, on_note: Note) -> Labels:
    value = _structure(text.strip(), where)
    if value is not None:
        return _from_value(value, where)
    lines = full_lines(text, where, on_note)
    if len(lines) > 1 and lines[0].strip("\"'").lower().replace("_", " ") in _HEADINGS:
        raise InputError(
            f"Entry 1 of {where} looks like a heading: '{lines[0]}'. Take it out, or write a JSON list if it is a class."
        )
    if len(lines) == 1 and "," in lines[0].rstrip(","):
        raise InputError(
            f"{capital(where)} has one line with commas in it: '{shortened(lines[0])}'. Put each name on a line of its own, or give "
            "the list itself: 'cat,dog'."
        )
    return labels_from_lines(lines, where)


def parse_entries(text: str, where: str, on_note: Note) -> list[str]:
    """Parse the entries of a plain list, such as templates: lines, or a JSON or Python list.

    Raises:
        InputError: the text begins like a list but is not one.
    """
    value = _structure(text.strip(), where) if text.lstrip()[:1] == "[" else None
    if value is None:
        return bare_lines(full_lines(text, where, on_note), where)
    if not all(isinstance(entry, str) for entry in value):
        raise InputError(f"{capital(where)} is not a list of texts. Expected one a line, or a JSON list of texts.")
    return [entry.strip() for entry in value]


def _structure(text: str, where: str) -> Any:
    """Return the value of a JSON or Python literal, or None if the text does not begin like one."""
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
            return None  # a name may begin with a bracket
    raise InputError(
        f"{capital(where)} begins with '{text[:1] if not assigned else shortened(text)}' and is neither JSON ({reason}) nor a "
        f"list or dict of Python. {EXPECTED}"
    )


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise InputError(f"{capital(where)} has the key '{repeated[0]}' more than once. Every key needs one name.")
    return dict(pairs)


def _from_value(value: Any, where: str) -> Labels:
    if isinstance(value, dict):
        nests = [key for key in _NESTS if isinstance(value.get(key), (dict, list))]
        if nests:
            return _from_value(value[nests[0]], where)
        return _from_mapping(value, where)
    if isinstance(value, (list, tuple)):
        if value and all(_is_pair(entry) for entry in value):
            return Labels(check_names([name for _, name in value], where), (tuple(str(key) for key, _ in value),))
        return Labels(check_names(value, where))
    raise InputError(f"{capital(where)} holds a value of type '{type(value).__name__}'. {EXPECTED}")


def _from_mapping(mapping: dict[Any, Any], where: str) -> Labels:
    keys, values = [str(key) for key in mapping], list(mapping.values())
    if values and all(_is_number(value) for value in values):  # name -> position, like torchvision's class_to_idx
        return Labels(in_order(keys, values, where))
    extra: tuple[tuple[str, ...], ...] = ()
    if values and all(_is_pair(value) for value in values):  # position -> (id, name), like imagenet_class_index.json
        extra = (tuple(key for key, _ in values),)
        values = [name for _, name in values]
    names = check_names(values, where)
    if not all(key.isdecimal() for key in keys):
        return Labels(names, (tuple(keys), *extra), "it maps keys to names and gives no positions")
    if sorted(map(int, keys)) != list(range(len(keys))):
        return Labels(names, (tuple(keys), *extra), describe_gap([int(key) for key in keys]))
    order = sorted(range(len(keys)), key=lambda at: int(keys[at]))
    columns = (tuple(keys), *extra)
    return Labels(tuple(names[at] for at in order), tuple(tuple(column[at] for at in order) for column in columns))


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
