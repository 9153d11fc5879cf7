r"""File names as text that every output can hold and that converts back to the same file.

A POSIX file name is bytes. Bytes that are not UTF-8, line breaks and control characters are written as ``\xNN``, one
for each byte, and a backslash as ``\\``. All other characters stay unchanged.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Container
from pathlib import Path

_log = logging.getLogger(__name__)
_ESCAPED_BYTES = os.name == "posix"
# A backslash; control characters of ASCII and Unicode; line and paragraph separators; bytes that are not UTF-8, which
# Python stores as lone surrogates (PEP 383).
_UNSAFE = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]")
# The same without the backslash, tabs and line breaks, and the characters that turn the direction of the text after them.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\udc80-\udcff]")
_ESCAPE = re.compile(rb"\\(?:(\\)|x([0-9a-f]{2})|)")


def name_from_path(path: str | os.PathLike[str]) -> str:
    r"""Return the name of a file for display, JSON and CSV: valid Unicode in one line.

    Args:
        path: as the operating system gives it.

    Returns:
        The path, with a backslash as ``\\`` and unsafe bytes as ``\xNN``; ``path_from_name`` is the inverse.
    """
    text = os.fspath(path)
    if not _ESCAPED_BYTES or (text.isprintable() and "\\" not in text):
        return text
    return _UNSAFE.sub(_escape, text)


def path_from_name(name: str) -> Path:
    r"""Return the path from a name of ``name_from_path``, such as the ``source`` of a prediction.

    Args:
        name: the name.

    Raises:
        ValueError: a backslash in it begins neither ``\\`` nor ``\xNN``.
    """
    return Path(text_from_name(name))


def text_from_name(name: str) -> str:
    """Return the text from a name of ``name_from_path``, such as a dataset that holds a path; see ``path_from_name``."""
    if not _ESCAPED_BYTES:
        return name

    def unescape(match: re.Match[bytes]) -> bytes:
        backslash, byte = match.groups()
        if byte is not None:
            return bytes.fromhex(byte.decode())
        if backslash is None:
            raise ValueError(f"'{name}' is no name as clipmlu writes it: a lone backslash would be '\\\\'.")
        return b"\\"

    return os.fsdecode(_ESCAPE.sub(unescape, os.fsencode(name)))


def printable(message: str) -> str:
    r"""Return a message in characters that can be seen, and line breaks.

    Bytes that are not UTF-8, control characters, and those that turn the direction of a text, become ``\xNN`` for each byte.
    """
    return _STEERING.sub(_escape, message)


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` replaced by the home folder, as in a shell, unless the path exists as written."""
    text = os.fspath(path)
    return Path(os.path.expanduser(text) if text.startswith("~") and not os.path.lexists(text) else text)


def prefer_known_name(text: str, known: Container[str], kind: str, *, folder: bool = False) -> bool:
    """Return whether a text that may be a name or a path is a name: known names win; ``./NAME`` is always a path.

    It logs a warning if the working directory has a file, or a folder, of that name.

    Args:
        text: the user's text.
        known: the names; none contains a path separator.
        kind: kind of the names, for the message.
        folder: whether a path would be that of a folder, not of a file.
    """
    if text not in known:
        return False
    if os.path.isdir(text) if folder else os.path.isfile(text):
        other = "folder" if folder else "file"
        _log.warning(
            "'%s' is taken as the %s, not as the %s of that name; write './%s' for it.", text, kind, other, text
        )
    return True


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    return "\\\\" if character == "\\" else "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
