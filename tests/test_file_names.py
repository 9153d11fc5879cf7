"""File names as text: any name survives every output and leads back to its file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmlu.data.prompts import resolve_templates
from clipmlu.errors import UnknownNameError
from clipmlu.export.options import ExportOptions
from clipmlu.export.source import resolve_source
from clipmlu.file_names import expand_home, name_from_path, path_from_name, printable

pytestmark = pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"photos/caf\xc3\xa9 1.jpg", "photos/café 1.jpg"),
        (b"caf\xe9.jpg", r"caf\xe9.jpg"),
        (rb"a\xe9.jpg", r"a\\xe9.jpg"),
        (b"two\nlines\r.jpg", r"two\x0alines\x0d.jpg"),
        (b"\x1b[31mred", r"\x1b[31mred"),
        ("a\u2028b".encode(), r"a\xe2\x80\xa8b"),
    ],
)
def test_unsafe_bytes_are_escaped_and_come_back(raw: bytes, name: str) -> None:
    assert name_from_path(os.fsdecode(raw)) == name
    assert os.fsencode(path_from_name(name)) == raw


@given(raw=st.binary(min_size=1, max_size=40).filter(lambda raw: b"\0" not in raw and b"/" not in raw))
def test_any_name_is_one_line_of_json_and_comes_back(raw: bytes) -> None:
    name = name_from_path(os.fsdecode(raw))
    assert len(name.splitlines()) == 1
    read = json.loads(json.dumps(name, ensure_ascii=False).encode("utf-8"))
    assert os.fsencode(path_from_name(read)) == os.fsencode(Path(os.fsdecode(raw)))


@pytest.mark.parametrize("name", ["\\", "a\\b", "\\x1", "\\xZZ", "a\\\\\\"])
def test_a_lone_backslash_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="lone backslash"):
        path_from_name(name)


def test_a_message_becomes_printable_and_keeps_its_backslashes() -> None:
    assert printable("no 'caf\udce9', 'a\\b'") == r"no 'caf\xe9', 'a\b'"


def test_home_folder_is_expanded_unless_the_name_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert expand_home("~/photos") == tmp_path / "home" / "photos"
    assert expand_home("a/~") == Path("a/~")
    (tmp_path / "~").mkdir()
    assert expand_home("~") == Path("~")


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: resolve_templates("cifar"), "template set"),
        (lambda: resolve_source("ViT-B-32", ExportOptions(pretrained="openai")), "tag"),
    ],
)
def test_a_known_name_wins_over_a_file_and_says_so(
    call: Callable[[], Any],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("open_clip", reason="needs the export extra")
    expected = call()
    assert caplog.messages == []
    monkeypatch.chdir(tmp_path)
    for name in ("cifar", "openai"):
        (tmp_path / name).write_text("a picture of a {}\n")
    assert call() == expected
    (message,) = caplog.messages
    assert f"is taken as the {kind}, not as the file of that name; write './" in message


def test_a_folder_cannot_be_meant_by_a_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chinese").mkdir()
    assert len(resolve_templates("chinese")) > 1
    assert caplog.messages == []


def test_a_path_says_that_the_file_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cifar").write_text("a picture of a {}\n")
    assert resolve_templates("./cifar") == resolve_templates("~/cifar") == ("a picture of a {}",)


def test_a_tag_too_long_for_a_path_is_an_unknown_tag() -> None:
    pytest.importorskip("open_clip", reason="needs the export extra")
    with pytest.raises(UnknownNameError):
        resolve_source("ViT-B-32", ExportOptions(pretrained="x" * 300))


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\x9bb\x7f", r"a\xc2\x9bb\x7f"),
        ("a\u2028b", r"a\xe2\x80\xa8b"),
        ("a\udcffb", r"a\xffb"),
        ("bell\x07 back\x08", r"bell\x07 back\x08"),
        ("two\n\tlines, C:\\x, \u732b", "two\n\tlines, C:\\x, \u732b"),
    ],
)
def test_message_steers_no_terminal(message: str, shown: str) -> None:
    assert printable(message) == shown
