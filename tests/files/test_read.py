"""Files are read where they are regular and small; anything else is refused at once, and in the same way."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from clipmlu.files.read import decode_json, open_regular, read_json, read_small_file


class _Pair(msgspec.Struct):
    first: int
    second: list[int]


def test_regular_file_is_read_whole_through_links_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\0\r\n\xff" * 1000)
    (tmp_path / "link").symlink_to("file")
    assert read_small_file(tmp_path / "link") == b"\0\r\n\xff" * 1000
    with open_regular(str(tmp_path / "file")) as stream:
        assert stream.read(2) == b"\0\r"


def test_limit_is_the_largest_size_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_small_file(tmp_path / "file", limit=5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_small_file(tmp_path / "file", limit=4)


def test_sparse_giant_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as stream:
        stream.truncate(1 << 42)
    with pytest.raises(OSError, match="more than"):
        read_small_file(tmp_path / "file")


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))
    return path


def _link_to_zeros(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_pipe, "not a regular file"),
        (_socket, "not a regular file"),
        (_link_to_zeros, "not a regular file"),
        (lambda path: path.mkdir() or path, "it is a directory"),
        (lambda path: path, "No such file"),
        (lambda path: path.with_name("nul\0l"), "null character"),
    ],
)
def test_anything_else_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=reason) as caught:
        read_small_file(make(tmp_path / "it"))
    assert caught.value.strerror


def test_json_becomes_the_type(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"first": 1, "second": [2]}')
    assert read_json(tmp_path / "a.json", _Pair) == _Pair(1, [2])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 100_000, b'{"first": ' * 100_000, b'{"first": "\xff", "second": []}', b'{"first": 1}'],
)
def test_json_has_one_kind_of_error(content: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_json(content, _Pair)
    with pytest.raises(msgspec.DecodeError):
        decode_json(content, dict[str, _Pair])
