"""Images in tar archives: what is used, what is reported, and damage at any byte."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest

import support
from clipmlu.data.containers.tar import tar_entries
from clipmlu.data.finding import SkippedFiles
from clipmlu.errors import InputError
from clipmlu.file_names import text_from_name


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    support.picture(seed).save(stream, "png")
    return stream.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **attributes: object) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for key, value in attributes.items():
        setattr(header, key, value)
    tar.addfile(header, io.BytesIO(content))


def archive(path: Path, members: dict[str, bytes], *, mode: str = "w", form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, mode, format=form) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            add(tar, name, content)
    return path


def read(path: Path, skipped: SkippedFiles | None = None, **options: int) -> list[tuple[str, bytes | str]]:
    """The entries with the content, or the message of the error."""
    found: list[tuple[str, bytes | str]] = []
    for entry in tar_entries(path, skipped or SkippedFiles(), **options):
        try:
            content = entry.load()
        except InputError as error:
            found.append((entry.name, str(error)))
        else:
            assert isinstance(content, bytes)
            found.append((entry.name, content))
    return found


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("compressed.tar", "w:gz")]
)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_come_in_the_archives_order_and_samples_without_an_image_are_counted(
    tmp_path: Path, name: str, mode: str, form: int
) -> None:
    members = {
        "b/2.png": png(2),
        "b/2.txt": b"a caption",
        "a/1.PNG": png(1),
        "a/1.json": b"{}",
        "0.cls": b"7",
        "0.jpg": b"",
        "README.md": b"",
        "1.jpg_": b"",
        "1.txt": b"",
    }
    skipped = SkippedFiles()
    path = archive(tmp_path / name, members, mode=mode, form=form)
    assert read(path, skipped) == [
        (f"{path}::b/2.png", png(2)),
        (f"{path}::a/1.PNG", png(1)),
        (f"{path}::0.jpg", b""),
    ]
    assert skipped.suffixes == {".md": 1, ".jpg_": 1, ".txt": 1}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_names_that_are_not_utf8_convert_back(tmp_path: Path, form: int) -> None:
    long = "/".join(["folder"] * 40) + "/long.png"
    odd = os.fsdecode(b"caf\xe9 \n\xff.png")
    names = [
        name for name, _ in read(archive(tmp_path / "a.tar", {long: b"1", odd: b"2", "日本.png": b"3"}, form=form))
    ]
    prefix = f"{tmp_path / 'a.tar'}::"
    assert [text_from_name(name) for name in names] == [prefix + long, prefix + odd, prefix + "日本.png"]
    assert all(name.isprintable() for name in names)


def test_files_of_macos_are_counted_and_repeated_names_are_told_apart(tmp_path: Path) -> None:
    path, skipped = tmp_path / "a.tar", SkippedFiles()
    with tarfile.open(path, "w") as tar:
        for name, content in (("1.png", b"old"), ("._1.png", b"x"), ("__MACOSX/1.png", b"x"), ("1.png", b"new")):
            add(tar, name, content)
    assert read(path, skipped) == [(f"{path}::1.png", b"old"), (f"{path}::1.png#2", b"new")]
    assert skipped.macos == 2


def test_links_devices_sparse_and_large_members_are_errors_and_the_rest_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    (tmp_path / "secret.png").write_bytes(b"secret")
    with tarfile.open(path, "w") as tar:
        add(tar, "folder.png", type=tarfile.DIRTYPE)
        add(tar, "1.png", b"one")
        add(tar, "symbolic.png", type=tarfile.SYMTYPE, linkname=str(tmp_path / "secret.png"))
        add(tar, "hard.png", type=tarfile.LNKTYPE, linkname="1.png")
        add(tar, "pipe.png", type=tarfile.FIFOTYPE)
        add(tar, "device.png", type=tarfile.CHRTYPE)
        add(tar, "large.png", b"12345")
        add(tar, "2.png", b"two")
    found = {name.partition("::")[2]: content for name, content in read(path, largest=4)}
    assert list(found) == ["1.png", "symbolic.png", "hard.png", "pipe.png", "device.png", "large.png", "2.png"]
    assert (found["1.png"], found["2.png"]) == (b"one", b"two")
    assert f"a link to '{tmp_path}/secret.png', and links in archives are not followed" in str(found["symbolic.png"])
    assert "a link to '1.png'" in str(found["hard.png"])
    assert "a device or a pipe" in str(found["pipe.png"])
    assert "a device or a pipe" in str(found["device.png"])
    assert "5 bytes, more than the limit of 4" in str(found["large.png"])


def test_a_sparse_image_is_an_error(tmp_path: Path) -> None:
    with (tmp_path / "1.png").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    subprocess.run(["tar", "--sparse", "-cf", "a.tar", "1.png"], cwd=tmp_path, check=True)
    ((_, message),) = read(tmp_path / "a.tar")
    assert "sparse" in str(message)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_without_images_is_an_error(tmp_path: Path, mode: str) -> None:
    path = archive(tmp_path / "a.tar", {"1.txt": b"x"}, mode=mode)
    assert read(path) == [(str(path), f"Cannot read '{path}': it holds no images.")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged at byte 0: it is empty"),
        (b"not an archive", "damaged at byte 0: truncated header"),
        (b"x" * 4096, "damaged at byte 0: "),
        (b"\x1f\x8b", "damaged at byte 0: "),
    ],
)
def test_what_is_no_archive_is_one_error(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    ((name, message),) = read(tmp_path / "a.tar")
    assert name == str(tmp_path / "a.tar")
    assert reason in str(message)


def test_a_missing_archive_and_a_folder_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    assert "there is no such file" in str(read(tmp_path / "none.tar")[0][1])
    assert "it is a directory" in str(read(tmp_path / "a.tar")[0][1])


MEMBERS = {f"{number}.png": png(number) for number in range(8)}


def check_damaged(path: Path) -> int:
    """Check that each entry is a whole image in its order or an error, and that not one image is missing without an error."""
    found = read(path)
    good = [(name.rpartition("::")[2], content) for name, content in found if isinstance(content, bytes)]
    errors = [name for name, content in found if isinstance(content, str)]
    assert [each for each in MEMBERS if each in dict(good)] == [name for name, _ in good]
    assert errors or len(good) == len(MEMBERS)
    assert len({name for name, _ in found}) == len(found)
    return len(good)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_that_is_cut_anywhere_gives_the_images_before_it_and_the_reason(tmp_path: Path, mode: str) -> None:
    content = archive(tmp_path / "whole.tar", MEMBERS, mode=mode).read_bytes()
    path = tmp_path / "cut.tar"
    used = []
    end = len(content) if mode == "w:gz" else len(MEMBERS) * 1024 + 1  # the rest is the end mark and padding
    for length in [*range(0, end, 97), *range(512, end, 512)]:
        path.write_bytes(content[:length])
        used.append((length, check_damaged(path)))
        assert any(isinstance(message, str) for _, message in read(path))
    counts = [count for _, count in sorted(used)]
    assert counts == sorted(counts)
    assert counts[-1] == len(MEMBERS)


def test_zeros_over_a_header_lose_no_image_without_a_word(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", MEMBERS)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        start = tar.getmember("3.png").offset
    content[start : start + 512] = bytes(512)
    path.write_bytes(content)
    found = read(path)
    assert [name.rpartition("::")[2] for name, _ in found[:-1]] == ["0.png", "1.png", "2.png"]
    assert "more data follow a block of zeros" in str(found[-1][1])


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_damage_at_any_byte_is_an_error_or_hurts_no_other_image(tmp_path: Path, mode: str) -> None:
    content = archive(tmp_path / "whole.tar", MEMBERS, mode=mode).read_bytes()
    path = tmp_path / "damaged.tar"
    for position in range(0, len(content), 31):
        for flip in (0x01, 0xFF):
            damaged = bytearray(content)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            found = read(path)
            good = [(name.rpartition("::")[2], each) for name, each in found if isinstance(each, bytes)]
            whole = [name for name, each in good if MEMBERS.get(name) == each]
            assert whole == [name for name in MEMBERS if name in whole]
            assert len(found) >= min(len(MEMBERS), len(good) + 1)
            if mode == "w:gz" and len(whole) < len(MEMBERS):  # the checksum
                assert any(isinstance(each, str) for _, each in found)


def test_headers_with_absurd_sizes_end_the_archive(tmp_path: Path) -> None:
    for size in (-1024, 1 << 40):
        for kind in (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            header = tarfile.TarInfo("1.png")
            header.size, header.type = size, kind
            content = header.tobuf(tarfile.GNU_FORMAT)
            (tmp_path / "a.tar").write_bytes(content + bytes(1 << 14))
            tracemalloc.start()
            found = read(tmp_path / "a.tar")
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert [isinstance(message, str) for _, message in found].count(False) == 0
            assert 1 <= len(found) <= 2
            assert peak < 2 << 20  # Python 3.14 asks for 1 MB at once


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_thousand_members_need_the_memory_of_a_few(tmp_path: Path, mode: str) -> None:
    body = os.urandom(1 << 14)
    path = archive(tmp_path / "a.tar", {f"{number:04}.jpg": body for number in range(1000)}, mode=mode)
    tracemalloc.start()
    count = sum(entry.load() == body for entry in tar_entries(path, SkippedFiles()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 1000
    assert peak < 1 << 20


def test_entries_of_an_uncompressed_archive_hold_no_content(tmp_path: Path) -> None:
    body = os.urandom(1 << 20)
    path = archive(tmp_path / "a.tar", {f"{number}.jpg": body for number in range(16)})
    tracemalloc.start()
    entries = list(tar_entries(path, SkippedFiles()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert all(entry.load() == body for entry in reversed(entries))  # after the archive was read, in any order


def test_it_imports_no_torch_and_no_webdataset() -> None:
    code = "import sys, clipmlu.data.containers.tar; print({'torch', 'webdataset', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_compression_is_read_from_the_content(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    plain = archive(
        tmp_path / "plain.tar", {"000.jpg": b"a", "000.txt": b"t", "001.jpg": b"b"}, form=tarfile.USTAR_FORMAT
    )
    path.write_bytes(gzip.compress(plain.read_bytes()))
    assert [content for _, content in read(path)] == [b"a", b"b"]
