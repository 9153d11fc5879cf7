r"""The file format of emulated models: a magic prefix, a digest, and no pickle.

    offset 0   b"CLIPMLU-EMULATED-MODEL\n"
    then       format version, 4 bytes, little-endian
    then       SHA-256 of all following bytes, 32 bytes
    then       length of the header, 8 bytes, little-endian
    then       the header: JSON, UTF-8 (see ``clipmlu.magicmind.emulator.ports.ModelInfo``)
    then       the graph: an ONNX file

The vendor's format is not public (api 7.13); only the emulator reads this one.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from clipmlu.bundle.graph_file import scan_graph
from clipmlu.files.read import decode_json, open_regular
from clipmlu.magicmind.emulator.status import Code, StatusError

MAGIC = b"CLIPMLU-EMULATED-MODEL\n"
VERSION = 1
_FIXED = struct.Struct("<I32s")
_LENGTH = struct.Struct("<Q")


def is_emulated_model(path: str | Path) -> bool:
    """Return whether the emulator wrote a file; False for other and unreadable files."""
    try:
        with Path(path).open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def write_container(path: str | Path, header: dict[str, Any], graph: bytes) -> None:
    """Write one model.

    Raises:
        StatusError: the file cannot be written.
    """
    text = json.dumps(header, sort_keys=True).encode()
    length = _LENGTH.pack(len(text))
    digest = hashlib.sha256(length)
    digest.update(text)
    digest.update(graph)
    try:
        with Path(path).open("wb") as stream:
            for part in (MAGIC, _FIXED.pack(VERSION, digest.digest()), length, text, graph):
                stream.write(part)
    except OSError as error:
        raise StatusError(Code.UNAVAILABLE, f"cannot write '{path}': {error.strerror}") from error


def read_container(path: str | Path) -> tuple[dict[str, Any], bytes]:
    """Read the header and the graph of one model.

    Raises:
        StatusError: the file is missing, not an emulated model, of another version, or altered.
    """
    try:
        with open_regular(path) as stream:
            content = stream.read()
    except FileNotFoundError as error:
        raise StatusError(Code.NOT_FOUND, f"there is no model file '{path}'") from error
    except OSError as error:
        raise StatusError(Code.UNAVAILABLE, f"cannot read '{path}': {error.strerror}") from error
    if not content.startswith(MAGIC):
        raise StatusError(Code.DATA_LOSS, f"'{path}' was not written by the emulated MagicMind SDK")
    start = len(MAGIC) + _FIXED.size
    if len(content) < start + _LENGTH.size:
        raise StatusError(Code.DATA_LOSS, f"'{path}' is cut short")
    version, expected = _FIXED.unpack_from(content, len(MAGIC))
    if version != VERSION:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"'{path}' has format version {version}; this emulator reads {VERSION}"
        )
    body = memoryview(content)[start:]
    if hashlib.sha256(body).digest() != expected:
        raise StatusError(Code.DATA_LOSS, f"'{path}' is damaged: its digest does not match")
    (length,) = _LENGTH.unpack_from(body)
    graph = bytes(body[_LENGTH.size + length :])
    try:
        header = decode_json(bytes(body[_LENGTH.size : _LENGTH.size + length]), dict[str, Any])
        if scan_graph(graph).data_files:
            raise ValueError("its graph has weights in other files")
    except ValueError as error:  # msgspec's errors included
        raise StatusError(Code.DATA_LOSS, f"'{path}' is damaged: {error}") from error
    return header, graph
