r"""Reading of small UTF-8 text files, with clear errors for other encodings and file types.

Lines end at ``\n``, ``\r\n`` and ``\r`` only. ``str.splitlines`` also ends a line at form feeds, U+0085 and U+2028,
which
occur inside names: all later lines would then be shifted.
"""

from __future__ import annotations

import codecs
import logging
import os
import re
from collections.abc import Callable
from typing import Any

from clipmlu.errors import InputError
from clipmlu.file_names import expand_home
from clipmlu.files.read import read_small_file

_MOST_BYTES = 16 << 20
_LINES_SHOWN = 5
_LINE_END = re.compile(r"\r\n|\r|\n")
_log = logging.getLogger(__name__)

Note = Callable[[str], Any]
"""Callback that receives one line of text for the user."""

_MARKS = (  # longest first: UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_SIGNATURES = (
    (b"PK\x03\x04", "a ZIP archive, as spreadsheets are too"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"SQLite format 3", "an SQLite database"),
    (b"version https://git-lfs", "a pointer of Git LFS: the file itself was not fetched (git lfs pull)"),
)
_WEB_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Read a small UTF-8 text file, with or without a byte order mark.

    Args:
        path: the file.
        what: the kind of file, for messages, such as ``"label file"``.

    Raises:
        InputError: the file cannot be read, is not a regular file, is too large, or is not UTF-8; the message names its
            probable encoding.
    """
    try:
        content = read_small_file(expand_home(path), _MOST_BYTES)
    except FileNotFoundError:
        raise InputError(f"The {what} '{path}' does not exist.") from None
    except OSError as error:
        raise InputError(f"Cannot read the {what} '{path}': {error.strerror}.") from error
    return decode_text(content, f"The {what} '{path}'")


def decode_text(content: bytes, where: str) -> str:
    """Decode UTF-8.

    Args:
        content: content of a file.
        where: beginning of the error message.

    Raises:
        InputError: the content is not UTF-8 text; the message names the probable file type or encoding.
    """
    kind = next((kind for signature, kind in _SIGNATURES if content.startswith(signature)), None)
    if kind is None and _WEB_PAGE.match(content):
        kind = "a web page or XML"
    if kind is not None:
        raise InputError(f"{where} is {kind}. Expected a text file.")
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None) or _encoding_by_zeros(content)
    if encoding is not None:
        raise InputError(f"{where} is {encoding} text, not UTF-8. {_advice(encoding)}")
    if b"\0" in content:
        raise InputError(f"{where} holds zero bytes: it is no text. Expected a UTF-8 text file.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(_LINE_END.findall(content[: error.start].decode("latin-1"))) + 1
        guess = _guess_encoding(content)
        raise InputError(
            f"{where} is not UTF-8 text: byte 0x{content[error.start]:02x} in line {line}; it is probably {guess}. "
            f"{_advice(guess.split()[0])}"
        ) from error


def check_unicode(text: str, what: str) -> None:
    """Check that a text can be encoded as UTF-8, which a command line in another encoding may violate.

    Raises:
        InputError: the text holds lone surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} '{text}' holds bytes that are not UTF-8, at position {error.start}. Encode it as UTF-8."
        ) from None


def split_lines(text: str) -> list[str]:
    r"""Return the lines without their ends, which are ``\n``, ``\r\n`` and ``\r`` only; the last line may have no end."""
    lines = _LINE_END.split(text)
    return lines[:-1] if not lines[-1] else lines


def read_lines(path: str | os.PathLike[str], what: str, on_note: Note = _log.warning) -> list[str]:
    """Return the lines of a small UTF-8 text file without surrounding white space; a note counts skipped blank lines.

    Raises:
        InputError: as for ``read_text``.
    """
    return full_lines(read_text(path, what), f"the {what} '{path}'", on_note)


def full_lines(text: str, where: str, on_note: Note) -> list[str]:
    """Return the lines without surrounding white space; a note counts skipped blank lines."""
    lines = [line.strip() for line in split_lines(text)]
    blank = [number for number, line in enumerate(lines, 1) if not line]
    if blank:
        shown = ", ".join(map(str, blank[:_LINES_SHOWN])) + (", ..." if len(blank) > _LINES_SHOWN else "")
        noun = "blank line" if len(blank) == 1 else "blank lines"
        on_note(f"Left out {len(blank)} {noun} of {where} (line {shown}); lines are counted without them.")
    return [line for line in lines if line]


def _encoding_by_zeros(content: bytes) -> str | None:
    """Detect UTF-16 or UTF-32 without a mark: ASCII characters have zero bytes on one side."""
    zeros = [content[start::4].count(0) for start in range(4)]
    full = max(zeros)
    if not full:
        return None
    if sum(count == full for count in zeros) == 3 and full >= len(content) // 4:
        return "UTF-32"
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    low, high = sorted((even, odd))
    if low == 0 and len(content) % 2 == 0 and (high >= len(content) // 8 or b"\n\0" in content or b"\0\n" in content):
        return "UTF-16LE" if odd else "UTF-16BE"
    return None


def _guess_encoding(content: bytes) -> str:
    """Guess the encoding: bytes above 0x80 come in pairs in Chinese and Japanese, and mostly alone in Western text."""
    high = [byte >= 0x80 for byte in content]
    beside = sum(
        here and (before or after)
        for before, here, after in zip([False, *high], high, [*high[1:], False], strict=False)
    )
    if beside * 2 > sum(high):
        for encoding in ("gb18030", "shift_jis"):
            try:
                content.decode(encoding)
            except UnicodeDecodeError:
                continue
            return "GB18030 (or GBK)" if encoding == "gb18030" else "SHIFT_JIS"
        return "no text at all, or damaged"
    return "CP1252 (or Latin-1)"


def _advice(encoding: str) -> str:
    if encoding == "no":
        return "Expected a UTF-8 text file."
    return f"Convert it: iconv -f {encoding} -t UTF-8 FILE > NEW"
