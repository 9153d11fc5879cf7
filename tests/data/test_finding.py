"""Finding images: links, loops, what cannot be listed, what is left out; the order is torchvision's."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import support
from clipmlu.data import finding
from clipmlu.data.datasets import open_dataset, open_folder
from clipmlu.data.finding import Found, SkippedFiles, find_images, find_matches
from clipmlu.data.images import load_image
from clipmlu.errors import InputError

_NOBODY = 65534


def fill(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg"):
            support.picture(number).save(path)
        else:
            path.write_text("x")


def found_in(folder: Path, skipped_files: SkippedFiles | None = None) -> list[str]:
    return [
        each.path.relative_to(folder).as_posix() + (" !" if each.error else "")
        for each in find_images(folder, skipped_files or SkippedFiles())
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_files_come_in_sorted_order_then_folders_whatever_the_systems_order(tmp_path: Path, order: int) -> None:
    expected = ["a.png", "c.png", "e.png", "b/a.png", "b/c.png", "d/a.png"]
    fill(tmp_path, *expected[::order])
    assert found_in(tmp_path) == expected


def as_another_user(folder: Path, call: Callable[[], Any]) -> Any:
    """What a function returns, as JSON has it, in a child that is not the superuser; modules must be loaded already."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
        os.write(writer, json.dumps(call()).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, "rb") as stream:
        return json.loads(stream.read())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_folder_that_cannot_be_listed_is_an_entry_with_the_reason(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "closed/2.png", "unreadable.png", "z.png")
    tmp_path.chmod(0o755)
    (tmp_path / "closed").chmod(0)
    (tmp_path / "unreadable.png").chmod(0)
    load_image(tmp_path / "z.png")

    def read(found: Found) -> Any:
        try:
            return load_image(found.source()).size
        except InputError as error:
            return str(error)

    def read_all(entries: Iterator[Found]) -> dict[str, Any]:
        return {found.name: read(found) for found in entries}

    try:
        found = as_another_user(tmp_path, lambda: read_all(find_images(Path(), SkippedFiles())))
        matched = as_another_user(tmp_path, lambda: read_all(find_matches("*/*.png", SkippedFiles())))
    finally:
        (tmp_path / "closed").chmod(0o755)
    size = [support.SIDE, support.SIDE]
    assert found.pop("unreadable.png").startswith("Cannot read image 'unreadable.png': Permission denied.")
    assert found == {
        "z.png": size,
        "a/1.png": size,
        "closed": "Cannot list the folder 'closed': Permission denied.",
    }
    assert matched == {"a/1.png": size, "closed": "Cannot list the folder 'closed': Permission denied."}


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    fill(tmp_path / "outside", "o.png")
    root = tmp_path / "root"
    fill(root, "a/1.png", "b.png")
    (root / "a" / "up").symlink_to(root)
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "linked_again").symlink_to(tmp_path / "outside")
    skipped_files = SkippedFiles()
    assert found_in(root, skipped_files) == ["b.png", "a/1.png", "linked/o.png"]
    assert skipped_files.note() == "Left out: 2 folder(s) reached again through a link."


def test_links_that_lead_nowhere_are_entries_that_say_so(tmp_path: Path) -> None:
    fill(tmp_path, "1.png")
    (tmp_path / "gone.png").symlink_to("nowhere/x.png")
    (tmp_path / "photos_2024").symlink_to("/nowhere/photos")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    found = {each.path.name: each for each in find_images(tmp_path, SkippedFiles())}
    assert sorted(found) == ["1.png", "gone.png", "photos_2024", "self.jpg"]
    with pytest.raises(InputError, match=r"gone\.png': it is a link to 'nowhere/x\.png', which does not exist"):
        found["gone.png"].source()
    with pytest.raises(InputError, match="photos_2024': it is a link to '/nowhere/photos'"):
        found["photos_2024"].source()
    with pytest.raises(InputError, match=r"self\.jpg': Too many levels"):
        found["self.jpg"].source()
    with pytest.raises(InputError, match=r"gone\.png': it is a link to 'nowhere/x\.png', which does not exist"):
        load_image(tmp_path / "gone.png")


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package pillow_heif is not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    finding._reads_heif.cache_clear()
    yield
    finding._reads_heif.cache_clear()


@pytest.mark.usefixtures("without_heif")
def test_what_is_left_out_is_counted_in_one_note(tmp_path: Path) -> None:
    fill(tmp_path, "a.HEIC", "sub/b.heic", "c.txt", "noend", "._d.png", "__MACOSX/e.png", "f.JPG")
    skipped_files = SkippedFiles()
    assert found_in(tmp_path, skipped_files) == ["f.JPG"]
    assert skipped_files.note() == (
        "Left out: 4 file(s) of other types (.heic 2, without suffix 1, .txt 1); 2 of macOS's own (__MACOSX, ._*). "
        "HEIC and HEIF are read with pillow-heif: pip install 'clipmlu[heif]'."
    )
    assert SkippedFiles().note() is None


def test_heic_is_read_as_its_plugin_reads_it(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    photo = support.picture(3).resize((64, 48))
    heif = pillow_heif.from_pillow(photo)
    heif.save(tmp_path / "photo.heic", quality=-1)
    assert found_in(tmp_path) == ["photo.heic"]
    image = load_image(tmp_path / "photo.heic")
    expected = np.asarray(pillow_heif.open_heif(tmp_path / "photo.heic").to_pillow())
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert np.abs(np.asarray(image, int) - np.asarray(photo, int)).mean() < 8  # lossy in colour


def test_heic_without_its_plugin_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    with pytest.raises(InputError, match=r"photo\.heic': it is HEIC or HEIF\. .*pip install 'clipmlu\[heif\]'"):
        load_image(tmp_path / "photo.heic")


def test_a_pattern_gives_each_file_once_and_folders_are_searched(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "a/b/2.png", "c.png", ".hidden/3.png", "a/x[1]/4.png", "a/notes.txt")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)

    def matches(pattern: str) -> list[str]:
        return [
            each.path.relative_to(tmp_path).as_posix() for each in find_matches(f"{tmp_path}/{pattern}", SkippedFiles())
        ]

    assert sorted(matches("**/*.png")) == ["a/1.png", "a/b/2.png", "a/x[1]/4.png", "c.png"]
    assert sorted(matches("**")) == [".hidden/3.png", "a/1.png", "a/b/2.png", "a/x[1]/4.png", "c.png"]
    everything = [os.path.realpath(tmp_path / name) for name in matches("**/*")]
    files = [".hidden/3.png", "a/1.png", "a/b/2.png", "a/notes.txt", "a/x[1]/4.png", "c.png"]
    assert sorted(everything) == [str(tmp_path / name) for name in files]
    assert matches("a/x[1]/*.png") == ["a/x[1]/4.png"]
    assert matches("[ac]*/?.png") == ["a/1.png"]
    assert matches("absent*") == []


@pytest.mark.torch
def test_image_folder_has_the_items_of_torchvision_in_its_order(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets", reason="needs the export extra", exc_type=ImportError)
    fill(tmp_path / "outside", "o.png", "p/q.png")
    root = tmp_path / "root"
    fill(root, "b/2.png", "b/1.PNG", "b/sub/x.png", "b/sub-a/y.png", "b/z.png", "a_dog/k.jpg", "a_dog/k.txt")
    (root / "b" / "linked").symlink_to(tmp_path / "outside")
    expected = datasets.ImageFolder(str(root))
    dataset = open_dataset(f"imagefolder:{root}")
    assert dataset.original_names == tuple(expected.classes)
    found = [(str(dataset.source(index)), dataset.label(index)) for index in range(len(dataset))]
    assert found == expected.samples


def test_image_folder_counts_what_cannot_be_read_and_notes_what_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, "cat/1.png", "dog/2.png", "dog/notes.txt", "beside.png", "__MACOSX/cat/1.png", ".git/x.png")
    (tmp_path / "dog" / "gone.png").symlink_to("nowhere")
    dataset = open_dataset(f"imagefolder:{tmp_path}")
    assert dataset.class_names == ("cat", "dog")
    assert [dataset.key(index) for index in range(len(dataset))] == ["cat/1.png", "dog/2.png", "dog/gone.png"]
    with pytest.raises(InputError, match="which does not exist"):
        dataset.image(2)
    assert caplog.messages == [
        "Left out: 1 file(s) of other types (.txt 1); 1 of macOS's own (__MACOSX, ._*); 1 hidden folder(s); "
        "1 image(s) beside the class folders."
    ]


def test_class_folder_that_is_a_dangling_link_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.png")
    (tmp_path / "dog").symlink_to("/nowhere/dog")
    with pytest.raises(InputError, match="dog': it is a link to '/nowhere/dog', which does not exist"):
        open_dataset(f"imagefolder:{tmp_path}")


def test_folder_without_classes_takes_dangling_links_for_items(tmp_path: Path) -> None:
    fill(tmp_path, "1.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    dataset = open_folder(tmp_path)
    assert [dataset.key(index) for index in range(len(dataset))] == ["1.png", "gone.png"]


def test_home_folder_of_an_image_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path, "photos/cat/1.png")
    assert len(open_dataset("imagefolder:~/photos")) == 1


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_names_that_are_no_utf8_are_escaped_in_a_dataset(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    stream = io.BytesIO()
    support.picture(0).save(stream, "PNG")
    with open(folder + b"/\xff.png", "wb") as file:
        file.write(stream.getvalue())
    dataset = open_dataset(f"imagefolder:{tmp_path}")
    assert dataset.class_names == (r"caf\xe9",)
    assert dataset.key(0) == r"caf\xe9/\xff.png"
    assert load_image(dataset.source(0)).size == (support.SIDE, support.SIDE)
