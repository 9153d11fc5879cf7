"""Class names: reading them from user input, assigning them to a dataset's folders, and marking repeated names.

A label is a position in the list, so order and number are kept: a repeated name is kept twice, as in ImageNet's
official
list.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from clipmlu.arguments import is_there
from clipmlu.data.dataframes import is_column, table_columns
from clipmlu.data.label_lines import WORDNET_ID, Labels, capital, labels_from_lines, shortened
from clipmlu.data.labels import parse_labels
from clipmlu.data.textfile import Note, check_unicode, full_lines, read_text
from clipmlu.errors import InputError, OptionError
from clipmlu.file_names import expand_home

ClassNames = str | os.PathLike[str] | Iterable[str]
"""Accepted forms of a classifier's class names: a list as text, ``"cat,dog"``; a label file; or a sequence of names."""

FolderNames = str | os.PathLike[str] | Sequence[str] | Mapping[str, str]
"""Accepted forms of names for class folders: a file, names in the order of the folders, or a map from folder to name.
"""

_SHOWN = 5
COMMAS = ",\uff0c\u3001"  # the ASCII comma, and those of Chinese and Japanese keyboards
_EXPECTED = "Give a file with one name a line, or a list: 'cat,dog'."
# A name with a digit and without two letters in a row (n01440764, 0042, c3), or a number after a generic word (class
# 3).
_ID = re.compile(r"(?=.*\d)(?!.*[^\W\d_]{2}).+|(class|label|category|cls|cat|id|target)[-_ ]?\d+", re.IGNORECASE)
_ID_IN_FRONT = re.compile(r"(n\d{8}|\d+)[-_. ]+\S*[^\W\d_]{2}.*")
_log = logging.getLogger(__name__)


def resolve_class_names(labels: ClassNames, *, on_note: Note = _log.warning) -> tuple[str, ...]:
    """Return class names from a label file, a comma-separated list, or the names themselves.

    Args:
        labels: see ``ClassNames``. A file holds one name per line; numbered lines, tables, JSON, and Python lists and
            dicts are parsed too, see ``labels.parse_labels``.
        on_note: called with a line about blank lines and about names that look like ids.

    Raises:
        InputError: the file cannot be read or parsed, there is no name, or a name is blank.
        OptionError: the names are not strings or have no order, or the text is a list without names or with wrong ones.
    """
    if isinstance(labels, os.PathLike):
        return _from_file(Path(labels), on_note)
    if not isinstance(labels, str):
        return check_class_names(labels)
    path = existing_path(labels)
    if path is not None or not (
        set(labels) & set(f"{COMMAS}\n\r") or labels.lstrip()[:1] in ("[", "{") or not labels.strip()
    ):
        return _from_file(Path(labels) if path is None else path, on_note)
    try:
        return _positioned(_from_text(labels, on_note), "the list given", on_note)
    except InputError as error:  # the text itself is wrong, and no file
        raise OptionError(str(error)) from error


def check_class_names(names: Iterable[str], where: str = "") -> tuple[str, ...]:
    """Return class names as a tuple, without surrounding white space; order and number are kept.

    Raises:
        InputError: there are no names, or one is blank.
        OptionError: the names are not strings, or have no order.
    """
    if isinstance(names, (str, bytes, bytearray, set, frozenset, Mapping)) or not isinstance(names, Iterable):
        raise OptionError(f"Class names{where} are of type '{type(names).__name__}'; expected a list of texts.")
    _check_column(names, where)
    given = tuple(names)
    for position, name in enumerate(given):
        if not isinstance(name, str):
            raise OptionError(f"Class name {position}{where} is of type '{type(name).__name__}'; expected a text.")
    checked = tuple(name.strip() for name in given)
    if not checked:
        raise InputError(f"No class names{where}; at least one is needed.")
    if not all(checked):
        raise InputError(f"Class name {checked.index('')}{where} is blank; every class needs a name.")
    for position, name in enumerate(checked):
        check_unicode(name, f"Class name {position}{where}")
    return checked


def _check_column(names: Iterable[str], where: str) -> None:
    """Refuse a table, and a column that holds the class of each image.

    Raises:
        OptionError: it is one of these.
    """
    columns = table_columns(names)
    if columns is not None:
        raise OptionError(
            f"Class names{where} are a table with the columns {', '.join(map(repr, columns))}; expected one column of it, such as "
            "table['name']."
        )
    if is_column(names):
        given = tuple(names)
        different = len(set(given))
        if different * 2 < len(given):
            raise OptionError(
                f"Class names{where} are a column of {len(given)} values, of which {different} are different: the classes of images. "
                "Give each class once: column.unique()."
            )


def repeated_names(names: Sequence[str]) -> dict[str, list[int]]:
    """Map each name that occurs more than once to its positions, in the order of first occurrence."""
    counts = Counter(names)
    found: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        if counts[name] > 1:
            found.setdefault(name, []).append(position)
    return found


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names for display; repeated names get their position as a suffix, such as ``crane (134)``."""
    repeated = repeated_names(names)
    return tuple(f"{name} ({position})" if name in repeated else name for position, name in enumerate(names))


def name_folders(given: FolderNames, folders: Sequence[str], *, on_note: Note = _log.warning) -> tuple[str, ...]:
    """Return class names for the class folders of a dataset.

    Args:
        given: see ``FolderNames``. A file holds one name per line, in the order of the folders, or keys and names: a
            JSON
            map, a table, or ``imagenet_class_index.json``.
        folders: folder names in the dataset's order.
        on_note: called with a line about blank lines and about ids without a folder.

    Raises:
        InputError: the file cannot be read or parsed, a folder has no name, a name has no folder, or the counts differ.
        OptionError: the names are not strings, or have no order.
    """
    where = "the class names given"
    if isinstance(given, (str, os.PathLike)):
        path = Path(given)
        where = f"the file of class names '{path}'"
        labels = parse_labels(read_text(path, "file of class names"), where, on_note)
    elif isinstance(given, Mapping):
        labels = Labels(tuple(given.values()), (tuple(map(str, given)),), "a map")
    else:
        labels = Labels(check_class_names(given))
    return check_class_names(_match(labels, folders, where, on_note), f" in {where}")


def look_like_ids(names: Sequence[str]) -> bool:
    """Return whether more than half of the names are ids: WordNet ids, numbers, or names with such a prefix."""
    count = sum(bool(_ID.fullmatch(name) or _ID_IN_FRONT.fullmatch(name)) for name in names)
    return count * 2 > len(names)


def existing_path(text: str) -> Path | None:
    """Return the text as a path if that exists, else None; also None if the text cannot be a path."""
    path = expand_home(text)
    return path if text and is_there(path) else None


def _from_file(path: Path, on_note: Note) -> tuple[str, ...]:
    where = f"the label file '{path}'"
    if existing_path(str(path)) is None:
        raise InputError(f"Label file '{shortened(str(path), 300)}' does not exist. {_EXPECTED}")
    return _positioned(parse_labels(read_text(path, "label file"), where, on_note), where, on_note)


def _from_text(text: str, on_note: Note) -> Labels:
    where = "the list given"
    stripped = text.strip()
    if stripped[:1] in ("[", "{"):
        return parse_labels(stripped, where, on_note)
    if "\n" in text or "\r" in text:
        return labels_from_lines(full_lines(text, where, on_note), where)
    return labels_from_lines([name.strip() for name in re.split(f"[{COMMAS}]", text) if name.strip()], where)


def _positioned(labels: Labels, where: str, on_note: Note) -> tuple[str, ...]:
    """Return the names of a list in which positions are labels."""
    if labels.unordered:
        raise InputError(f"{capital(where)} is no list of labels: {labels.unordered}. {_EXPECTED}")
    names = check_class_names(labels.names, f" in {where}")
    if all(map(WORDNET_ID.fullmatch, names)):
        raise InputError(
            f"The names in {where} are WordNet ids, such as '{names[0]}', which have no meaning for a text tower. "
            "Give the words: 'tench', or lines such as 'n01440764 tench'."
        )
    if look_like_ids(names):
        on_note(
            f"Names in {where} look like ids or numbers, such as '{names[0]}', which have little meaning for a text tower."
        )
    return names


def _match(labels: Labels, folders: Sequence[str], where: str, on_note: Note) -> tuple[str, ...]:
    """Return names in the order of the folders: by a column of keys that holds all folders, or by position."""
    wanted = [_key(folder) for folder in folders]
    best: tuple[str, ...] = ()
    for column in labels.keys:
        known = {_key(key) for key in column}
        if known.issuperset(wanted):
            return _by_key(labels, column, wanted, where, on_note)
        if len(known.intersection(wanted)) > len(known.intersection(map(_key, best))):
            best = column
    keyed = [column for column in labels.keys if not all(map(str.isdecimal, column))]
    if best or keyed or labels.unordered:
        column = best or (keyed or labels.keys)[0]
        missing = [folder for folder in folders if _key(folder) not in set(map(_key, column))]
        raise InputError(
            f"{capital(where)} has no name for {_listed('folder', missing)}; every class folder needs one."
        )
    if len(labels.names) != len(folders):
        raise InputError(
            f"{capital(where)} has {len(labels.names)} names for {len(folders)} class folders. Give one for each, in the "
            "order of the sorted folders, or a map folder -> name (JSON or tab-separated)."
        )
    if all(map(str.isdecimal, folders)) and sorted(folders, key=int) != list(folders):
        raise InputError(
            f"The class folders are numbers, whose sorted order is {', '.join(folders[:4])}, ...: a plain list of names may mean "
            f"another order. Number the lines of {where} ('0: tench'), or give a map folder -> name."
        )
    return labels.names


def _by_key(labels: Labels, column: Sequence[str], wanted: Sequence[str], where: str, on_note: Note) -> tuple[str, ...]:
    named = {_key(key): name for key, name in zip(column, labels.names, strict=True)}
    if len(named) != len(column):
        twice = next(key for key, count in Counter(map(_key, column)).items() if count > 1)
        raise InputError(f"{capital(where)} has the folder '{twice}' more than once. Every folder needs one name.")
    unknown = [key for key in column if _key(key) not in set(wanted)]
    if unknown and not all(map(WORDNET_ID.fullmatch, unknown)):
        raise InputError(f"{capital(where)} names {_listed('folder', unknown)} that the dataset does not have.")
    if unknown:
        on_note(
            f"{len(unknown)} of the {len(column)} ids of {where} have no folder; the other {len(wanted)} are the classes."
        )
    return tuple(named[key] for key in wanted)


def _key(text: str) -> str:
    """Return a folder name for comparison: numbers are equal with and without leading zeros."""
    return str(int(text)) if text.isdecimal() else text


def _listed(noun: str, names: Sequence[str]) -> str:
    shown = ", ".join(f"'{shortened(name)}'" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{noun}{'s' if len(names) > 1 else ''} {shown}{more}"
