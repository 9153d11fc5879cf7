"""Classifier files are read as if by a stranger: every damage is one line that names the file, and costs no memory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmlu.bundle.directory import CompiledBundle
from clipmlu.classify.classifier_file import read_classifier
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import InputError
from clipmlu.model import load

NAMES = ["cat", "dog", "bird"]


@pytest.fixture
def encoder(compiled: CompiledBundle) -> Iterator[Encoder]:
    with load(compiled.path) as opened:
        yield opened


@pytest.fixture
def saved(encoder: Encoder, tmp_path: Path) -> Path:
    path = tmp_path / "three.clf"
    encoder.classifier(NAMES, cache=False).save(path)
    return path


def _parts(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    with np.load(path) as archive:
        return json.loads(archive["header"].tobytes()), archive["class_embeddings"]


def _write(path: Path, header: Any, embeddings: np.ndarray) -> None:
    """A file whose digest is right, whatever it holds."""
    if isinstance(header, dict):
        header["embeddings_sha256"] = hashlib.sha256(embeddings.tobytes()).hexdigest()
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with path.open("wb") as stream:
        np.savez(stream, header=np.frombuffer(text, np.uint8), class_embeddings=embeddings)


def test_file_is_read_as_it_was_written(saved: Path, encoder: Encoder) -> None:
    expected, rows = _parts(saved)
    header, embeddings = read_classifier(saved)
    assert list(header.class_names) == expected["class_names"] == NAMES
    assert np.array_equal(embeddings, rows)
    assert embeddings.flags.writeable


def _nan(rows: np.ndarray) -> np.ndarray:
    rows[1, 2] = np.nan
    return rows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_nan, "class 'dog' has the norm nan, not 1"),
        (lambda rows: rows * np.float32(np.inf), "has the norm"),
        (lambda rows: rows * np.float32(0), "class 'cat' has the norm 0, not 1"),
        (lambda rows: rows * np.float32(2), "class 'cat' has the norm 2, not 1"),
        (lambda rows: rows.astype(np.float64), r"type float64 and the shape \(3, 12\)"),
        (lambda rows: rows.astype(">f4"), "type >f4"),
        (lambda rows: rows[:2], r"shape \(2, 12\), for 3 classes"),
        (lambda rows: rows[0], r"shape \(12,\)"),
        (np.asfortranarray, "Fortran"),
        (lambda rows: rows[:, :0], r"shape \(3, 0\)"),
    ],
)
def test_embeddings_that_cannot_be_right_are_refused(
    saved: Path, encoder: Encoder, change: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    header, rows = _parts(saved)
    _write(saved, header, change(rows.copy()))
    with pytest.raises(InputError, match=rf"^Classifier file '.*three\.clf' is damaged: .*{words}"):
        encoder.load_classifier(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_scale", None),
        ("logit_scale", -1),
        ("logit_scale", 1e300),
        ("logit_bias", 1e300),
        ("class_names", []),
        ("class_names", [1, 2, 3]),
        ("schema_version", 99),
        ("surprise", 1),
    ],
)
def test_header_that_cannot_be_right_is_refused(saved: Path, encoder: Encoder, field: str, value: object) -> None:
    header, rows = _parts(saved)
    _write(saved, {**header, field: value}, rows)
    with pytest.raises(InputError, match=r"three\.clf"):
        encoder.load_classifier(saved)


def test_embeddings_of_another_file_are_refused(saved: Path, encoder: Encoder) -> None:
    header, rows = _parts(saved)
    text = json.dumps(header).encode()
    with saved.open("wb") as stream:
        np.savez(stream, header=np.frombuffer(text, np.uint8), class_embeddings=rows[::-1].copy())
    with pytest.raises(InputError, match=r"three\.clf' is damaged: its embeddings do not match their digest"):
        encoder.load_classifier(saved)


@pytest.mark.parametrize(
    ("write", "size", "words"),
    [
        (np.lib.format.write_array_header_1_0, 3, r"its header is an array of type uint8 and shape \(3,\)"),
        (np.lib.format.write_array_header_2_0, None, r"an array in it has the format version \(2, 0\)"),
    ],
)
def test_array_that_is_not_what_it_says_is_refused(
    saved: Path, encoder: Encoder, write: Callable[..., None], size: int | None, words: str
) -> None:
    with zipfile.ZipFile(saved) as archive:
        rows = archive.read("class_embeddings.npy")
    text = json.dumps(_parts(saved)[0]).encode()
    stream = io.BytesIO()
    write(stream, {"descr": "|u1", "fortran_order": False, "shape": (size or len(text),)})
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("header.npy", stream.getvalue() + text)
        archive.writestr("class_embeddings.npy", rows)
    with pytest.raises(InputError, match=rf"three\.clf' is damaged: {words}"):
        encoder.load_classifier(saved)


def test_deep_nesting_in_the_header_is_one_line(saved: Path, encoder: Encoder) -> None:
    _write(saved, b'{"tool_versions": ' + b"[" * 100_000, _parts(saved)[1])
    with pytest.raises(InputError, match=r"three\.clf"):
        encoder.load_classifier(saved)


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_refused(saved: Path, encoder: Encoder, method: int) -> None:
    members = _members(saved)
    with zipfile.ZipFile(saved, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match="compressed or encrypted"):
        encoder.load_classifier(saved)


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (8, 0xFFFF), (10, 12), (10, 93), (10, 0xFFFF)])
def test_flags_and_methods_are_one_line(saved: Path, encoder: Encoder, offset: int, value: int) -> None:
    content = bytearray(saved.read_bytes())
    struct.pack_into("<H", content, content.index(b"PK\1\2") + offset, value)
    saved.write_bytes(content)
    with pytest.raises(InputError, match=r"three\.clf"):
        encoder.load_classifier(saved)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_member_that_is_there_twice_is_refused(saved: Path, encoder: Encoder) -> None:
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("class_embeddings.npy", b"")
    with pytest.raises(InputError, match=r"holds 'class_embeddings\.npy' 2 times"):
        encoder.load_classifier(saved)


def test_objects_are_not_unpickled(saved: Path, encoder: Encoder, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    header = np.frombuffer(json.dumps(_parts(saved)[0]).encode(), np.uint8)
    with saved.open("wb") as stream:
        np.savez(stream, header=header, class_embeddings=np.array([[Trap()]] * 3, object))
    with pytest.raises(InputError, match="type object"):
        encoder.load_classifier(saved)
    assert not (tmp_path / "sprung").exists()


def _claims(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("shape", ["(3, 10000000000)", "(3, 1000000)", "(3, -1)", "(3, 10**400)", "(" * 90 + ")" * 90])
def test_huge_shape_in_a_small_file_takes_no_memory(saved: Path, shape: str) -> None:
    members = _members(saved)
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("header.npy", members["header.npy"])
        archive.writestr("class_embeddings.npy", _claims(shape))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"three\.clf"):
            read_classifier(saved)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def _outcome(path: Path) -> np.ndarray | str:
    try:
        return read_classifier(path)[1]
    except InputError as error:
        return str(error)


def test_every_flipped_byte_is_read_or_refused_in_one_line(saved: Path) -> None:
    content = saved.read_bytes()
    good = read_classifier(saved)[1]
    generator = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), generator.integers(1, 4)):
            damaged[place] = generator.integers(0, 256)
        saved.write_bytes(damaged[: generator.integers(0, len(content))] if generator.random() < 0.2 else damaged)
        outcome = _outcome(saved)
        if isinstance(outcome, str):
            assert "three.clf" in outcome
            assert "\n" not in outcome
        else:
            assert np.array_equal(outcome, good)  # what was flipped means nothing


def test_pipe_is_refused_at_once(saved: Path, encoder: Encoder) -> None:
    saved.unlink()
    os.mkfifo(saved)
    with pytest.raises(InputError, match=r"three\.clf.*not a regular file"):
        encoder.load_classifier(saved)
