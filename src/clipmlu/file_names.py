r"""File names as text: written so that every output can hold them, and read back to the very file.

A POSIX file name is bytes. What is no UTF-8 in it, and what would break a line or steer a terminal, is written as ``\xNN``, one
for each byte, and a backslash as ``\\``. All other names are written as they are.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Container
from pathlib import Path

_log = logging.getLogger(__name__)
_ESCAPED_BYTES = os.name == "posix"
# A backslash; control characters of ASCII and of Unicode; line and paragraph separators; bytes that are no UTF-8, which
# Python keeps as lone surrogates (PEP 383).
_UNSAFE = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]")
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]")
_ESCAPE = re.compile(rb"\\(?:(\\)|x([0-9a-f]{2})|)")


def name_from_path(path: str | os.PathLike[str]) -> str:
    r"""The name of a file for people, JSON and CSV: valid Unicode in one line.

    Args:
        path: as the operating system gives it.

    Returns:
        The path itself, with a backslash as ``\\`` and unsafe bytes as ``\xNN``; ``path_from_name`` is the way back.
    """
    text = os.fspath(path)
    if not _ESCAPED_BYTES or (text.isprintable() and "\\" not in text):
        return text
    return _UNSAFE.sub(_escape, text)


def path_from_name(name: str) -> Path:
    r"""The path that ``name_from_path`` wrote, such as the ``source`` of a prediction or an id of an embedding.

    Raises:
        ValueError: a backslash in it begins neither ``\\`` nor ``\xNN``.
    """
    return Path(text_from_name(name))


def text_from_name(name: str) -> str:
    """The text that ``name_from_path`` wrote, such as a dataset that holds a path; see ``path_from_name``."""
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
    r"""A message with every byte that is no UTF-8, or steers a terminal, as ``\xNN``; the rest of it stays, its lines too."""
    return _STEERING.sub(_escape, message)


def expand_home(path: str | os.PathLike[str]) -> Path:
    """A path whose ``~`` is the home folder, as a shell has it; one that exists as it is written stays."""
    text = os.fspath(path)
    return Path(os.path.expanduser(text) if text.startswith("~") and not os.path.lexists(text) else text)


def prefer_known_name(text: str, known: Container[str], kind: str) -> bool:
    """Whether a text that may be a name or a path is a name: a known name wins, and ``./NAME`` is always the path.

    Logs a warning where something in the working directory is called so too.

    Args:
        text: what the user gave.
        known: the names, none of which has a separator of paths in it.
        kind: what they name, for the message.
    """
    if text not in known:
        return False
    if os.path.lexists(text):
        _log.warning("'%s' is taken as the %s, not as what is called so here; write './%s' for that.", text, kind, text)
    return True


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    return "\\\\" if character == "\\" else "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
