"""CIFAR: the published files, read safely; anything else refused."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import pickle
import re
import tarfile
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmlu.data.datasets import cifar, locate_dataset, open_dataset
from clipmlu.data.datasets.cifar import CIFAR10, CIFAR100, CifarSource, load_restricted
from clipmlu.errors import InputError, OptionError, UnknownNameError


@pytest.mark.data
def test_cifar100_is_read_as_published(data_dir: Path) -> None:
    dataset = open_dataset("cifar100", data_dir=data_dir)
    with (data_dir / "cifar-100-python" / "test").open("rb") as stream:
        reference = pickle.load(stream, encoding="bytes")  # trusted: its digest was checked when it was opened above
    assert len(dataset) == 10_000
    assert [dataset.label(index) for index in range(len(dataset))] == reference[b"fine_labels"]
    for index in (0, 17, 9_999):
        pixels = np.asarray(dataset.image(index))
        assert np.array_equal(pixels.transpose(2, 0, 1).reshape(-1), reference[b"data"][index])
    assert dataset.class_names[:2] == ("apple", "aquarium fish")
    assert dataset.original_names[:2] == ("apple", "aquarium_fish")
    assert dataset.key(17) == "cifar100/test/000017"


@pytest.mark.data
def test_vendor_variable_is_honoured(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR100_DATASETS_PATH", str(data_dir))
    assert locate_dataset("cifar100") == str(data_dir / "cifar-100-python")
    assert len(open_dataset("cifar100", download=False)) == 10_000


def test_unknown_dataset_is_answered_with_close_names() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown dataset 'cifar1000'\. Did you mean 'cifar100' or 'cifar10'"):
        open_dataset("cifar1000")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "demo"])
def test_unknown_split_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="has no split 'val'; it has train, test"):
        open_dataset(name, "val")


def test_empty_data_dir_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No cifar100 in '.*': expected the folder 'cifar-100-python'"):
        open_dataset("cifar100", data_dir=tmp_path)


def test_offline_says_how_to_provide_the_files() -> None:
    with pytest.raises(
        InputError, match=r"downloading is switched off\. Unpack https://www\.cs\.toronto\.edu/.* --data-dir"
    ):
        open_dataset("cifar10", download=False)


def test_unreachable_address_is_one_line_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path))

    def refuse(*_arguments: object, **_options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(cifar.urllib.request, "urlopen", refuse)
    with pytest.raises(InputError, match=r"Cannot download https://.*: no route to host\. Unpack"):
        open_dataset("cifar100")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_altered_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / CIFAR100.folder
    folder.mkdir()
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a"]}))
    with pytest.raises(
        InputError, match=r"File '.*meta' has MD5 .*; the published cifar100 has 7973b15100ade9c7d40fb424638fde48"
    ):
        open_dataset("cifar100", data_dir=tmp_path)


def _small_source(files: dict[str, bytes], archive: bytes) -> CifarSource:
    return CifarSource(
        name="cifar10",
        folder=CIFAR10.folder,
        url=CIFAR10.url,
        archive_md5=hashlib.md5(archive).hexdigest(),
        splits={"test": ("test_batch",)},
        meta_file="batches.meta",
        md5={name: hashlib.md5(content).hexdigest() for name, content in files.items()},
        names_key="label_names",
        labels_key="labels",
    )


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def small_files() -> dict[str, bytes]:
    pixels = np.arange(2 * 3072, dtype=np.uint64).astype(np.uint8).reshape(2, 3072)
    return {
        "batches.meta": pickle.dumps({"label_names": ["air_plane", "cat"]}, protocol=3),
        "test_batch": pickle.dumps({"data": pixels, "labels": [1, 0]}, protocol=3),
    }


def test_download_is_checked_unpacked_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_files: dict[str, bytes]
) -> None:
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path))
    archive = _archive(
        {f"{CIFAR10.folder}/{name}": content for name, content in small_files.items()} | {"../escape": b"x"}
    )
    source = _small_source(small_files, archive)
    monkeypatch.setattr(cifar.urllib.request, "urlopen", lambda *_arguments, **_options: io.BytesIO(archive))
    dataset = cifar.CifarDataset(source)
    assert [dataset.label(0), dataset.label(1)] == [1, 0]
    assert dataset.class_names == ("air plane", "cat")
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == [f"datasets/{CIFAR10.folder}/batches.meta", f"datasets/{CIFAR10.folder}/test_batch"]


def test_cache_that_cannot_be_written_costs_the_cache_only(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    small_files: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path / "file"))
    archive = _archive({f"{CIFAR10.folder}/{name}": content for name, content in small_files.items()})
    monkeypatch.setattr(cifar.urllib.request, "urlopen", lambda *_arguments, **_options: io.BytesIO(archive))
    dataset = cifar.CifarDataset(_small_source(small_files, archive))
    assert [dataset.label(0), dataset.label(1)] == [1, 0]
    (record,) = caplog.records
    assert re.search(r"cifar10 is not kept in the cache: .*file", record.getMessage())


def test_connection_that_breaks_off_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_files: dict[str, bytes]
) -> None:
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path))

    class Cut(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise http.client.IncompleteRead(b"abc", 7)

    monkeypatch.setattr(cifar.urllib.request, "urlopen", lambda *_arguments, **_options: Cut())
    with pytest.raises(InputError, match=r"^Cannot download https://[^\n]*: IncompleteRead[^\n]*Unpack"):
        cifar.CifarDataset(_small_source(small_files, b""))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_archive_with_a_wrong_digest_is_thrown_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_files: dict[str, bytes]
) -> None:
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path))
    source = _small_source(small_files, b"something else")
    monkeypatch.setattr(
        cifar.urllib.request, "urlopen", lambda *_arguments, **_options: io.BytesIO(_archive(small_files))
    )
    with pytest.raises(InputError, match=r"has MD5 .*, expected"):
        cifar.CifarDataset(source)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


class _Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


@pytest.mark.parametrize(
    "content", [pickle.dumps(_Evil()), pickle.dumps({"x": Path("a")}), b"garbage", b"", pickle.dumps([1])[:-2]]
)
def test_pickle_that_asks_for_anything_else_is_refused(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="cannot be read safely"):
        load_restricted(content)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x03" + b"(" * 10_000 + b".",
        b"\x80\x04\x8e" + b"\xff" * 8,
        b"\x80\x04" + b"]" * 50 + b"e.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntU\x01btR.",
    ],
)
def test_damaged_pickle_is_one_line(content: bytes) -> None:
    with pytest.raises(InputError, match=r"^The pickle cannot be read safely: [^\n]*$"):
        load_restricted(content)


def test_array_that_has_a_size_before_its_state_is_refused() -> None:
    content = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I3\ntU\x01btR."
    with pytest.raises(InputError, match=r"an array of shape \(3,\) before its state"):
        load_restricted(content)


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("batches.meta", ["air"], "holds a list"),
        ("batches.meta", {}, "no list of names 'label_names'"),
        ("batches.meta", {"label_names": []}, "no list of names"),
        ("batches.meta", {"label_names": [1, 2]}, "no list of names"),
        ("test_batch", {"labels": [0, 1]}, "no pixels"),
        ("test_batch", {"data": PIXELS[:, 1:], "labels": [0, 1]}, "no pixels"),
        ("test_batch", {"data": PIXELS.astype(np.int64), "labels": [0, 1]}, "no pixels"),
        ("test_batch", {"data": np.uint8(1).tobytes(), "labels": [0, 1]}, "no pixels"),
        ("test_batch", {"data": PIXELS}, "no list of labels from 0 to 1"),
        ("test_batch", {"data": PIXELS, "labels": [0, 2]}, "no list of labels from 0 to 1"),
        ("test_batch", {"data": PIXELS, "labels": [0, -1]}, "no list of labels"),
        ("test_batch", {"data": PIXELS, "labels": [0, "1"]}, "no list of labels"),
        ("test_batch", {"data": PIXELS, "labels": [0]}, "2 images and 1 labels"),
    ],
)
def test_file_with_other_content_is_one_line(
    small_files: dict[str, bytes], tmp_path: Path, name: str, content: object, words: str
) -> None:
    files = {**small_files, name: pickle.dumps(content, protocol=3)}
    for each, written in files.items():
        (tmp_path / each).write_bytes(written)
    with pytest.raises(InputError, match=rf"File '.*{name}' .*{words}.*Get cifar10 again"):
        cifar.CifarDataset(_small_source(files, b""), data_dir=tmp_path)


def test_pipe_in_the_place_of_a_file_is_refused_at_once(small_files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "batches.meta").write_bytes(small_files["batches.meta"])
    os.mkfifo(tmp_path / "test_batch")
    with pytest.raises(InputError, match=r"test_batch.*not a regular file"):
        cifar.CifarDataset(_small_source(small_files, b""), data_dir=tmp_path)
