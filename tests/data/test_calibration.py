"""Which data calibration hands over: the train split through the model's own preprocessing, in full batches."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

import support
from clipmlu.bundle.directory import ExportedBundle, open_exported
from clipmlu.data.calibration import CalibrationOptions, draw_prompts, obtain_calibration
from clipmlu.data.calibration_set import load_calibration
from clipmlu.data.datasets import open_dataset
from clipmlu.data.images import content_digest
from clipmlu.data.prompts import resolve_templates
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import CalibrationError, InputError, OptionError, OutputError
from clipmlu.file_names import text_from_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures of two classes in ``train``, and others beside it."""
    for split, first in (("train", 0), ("test", 50)):
        for number in range(7):
            place = tmp_path / "folder" / split / ("cat" if number < 3 else "red circle")
            place.mkdir(parents=True, exist_ok=True)
            support.picture(first + number).save(place / f"{number}.png")
    return tmp_path / "folder"


def options(folder: Path, **changes: Any) -> CalibrationOptions:
    return CalibrationOptions(dataset=f"imagefolder:{folder}", **changes)


def test_images_are_those_of_the_train_split_each_once_then_from_the_front(
    exported: ExportedBundle, folder: Path
) -> None:
    data = obtain_calibration(exported, options(folder, samples=100))
    (source,) = data.feeds(exported, "image", 4, 100).values()
    rows = np.concatenate([np.asarray(batch) for batch in source.batches])
    assert [len(batch) for batch in source.batches] == [4, 4]  # type: ignore[arg-type]
    expected = [support.preprocess(support.picture(number)) for number in range(7)]
    found = [next(i for i, image in enumerate(expected) if np.array_equal(image, row)) for row in rows]
    assert sorted(found[:7]) == list(range(7))
    assert found[7] == found[0], "filled up from the front"
    assert data.record.samples == 7
    assert data.record.texts == len(data.prompts)


def test_seed_decides_the_choice(exported: ExportedBundle, folder: Path) -> None:
    def first(seed: int) -> list[object]:
        data = obtain_calibration(exported, options(folder, samples=3, seed=seed))
        (source,) = data.feeds(exported, "image", 3, 1).values()
        return [np.asarray(batch).tobytes() for batch in source.batches]

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_every_beginning_of_the_draw_holds_all_classes_alike(exported: ExportedBundle, folder: Path) -> None:
    data = obtain_calibration(exported, options(folder, samples=6))
    cats = [support.preprocess(support.picture(number)) for number in range(3)]
    (source,) = data.feeds(exported, "image", 2, 1).values()
    for batch in source.batches:
        found = [any(np.array_equal(row, cat) for cat in cats) for row in np.asarray(batch)]
        assert sorted(found) == [False, True]


def test_texts_are_prompts_that_no_usual_evaluation_uses(exported: ExportedBundle, folder: Path) -> None:
    data = obtain_calibration(exported, options(folder))
    evaluated = {
        template.replace("{}", name)
        for template in (*resolve_templates("simple"), *resolve_templates("cifar"))
        for name in ("cat", "red circle")
    }
    assert len(set(data.prompts)) == len(data.prompts) > 100
    assert not evaluated & set(data.prompts)
    assert all(("cat" in prompt) != ("red circle" in prompt) for prompt in data.prompts)
    tokenizer = Tokenizer.load(exported.tokenizer_path, exported.manifest.tokenizer)
    (source,) = data.feeds(exported, "text", 2, 100).values()
    np.testing.assert_array_equal(np.asarray(source.batches[0]), tokenizer(list(data.prompts[:2])))
    joint = data.feeds(exported, "joint", 4, 3)
    assert joint["input_ids"].repeat
    np.testing.assert_array_equal(np.asarray(joint["input_ids"].batches[0]), tokenizer(list(data.prompts[:3])))
    assert len(joint["pixel_values"].batches) == 2


def test_a_folder_without_classes_is_calibrated_with_nouns(exported: ExportedBundle, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "plain").mkdir(exist_ok=True)
        support.picture(number).save(tmp_path / "plain" / f"{number}.png")
    data = obtain_calibration(exported, CalibrationOptions(dataset=str(tmp_path / "plain")))
    assert data.record.samples == 3
    assert any("bicycle" in prompt for prompt in data.prompts)
    assert draw_prompts((), 0) == list(data.prompts)


def test_chinese_class_names_are_calibrated_with_chinese_prompts(
    exported: ExportedBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "photos"
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        support.picture(number).save(folder / name / "0.png")
    support.edit_manifest(exported.path, model={"name": "hf:org/Chinese-CLIP", "pretrained": None, "random_seed": 0})
    chinese = open_exported(exported.path)
    english = obtain_calibration(chinese, options(folder))
    assert any("cat" in prompt for prompt in english.prompts)
    assert "prompts for calibration are English, and 'hf:org/Chinese-CLIP' is a Chinese model" in caplog.text
    caplog.clear()
    data = obtain_calibration(chinese, options(folder, class_names={"cat": "猫", "dog": "狗"}))
    assert "English" not in caplog.text
    assert len(data.prompts) == len(set(data.prompts)) > 30
    assert all(("猫" in prompt) != ("狗" in prompt) for prompt in data.prompts)
    assert not any(letter.isascii() and letter.isalpha() for prompt in data.prompts for letter in prompt)
    assert not {"一张猫的照片。", "一张狗的照片。"} & set(data.prompts), "with which Chinese-CLIP is evaluated"


def test_a_saved_set_gives_the_same_data_and_the_same_digest(
    exported: ExportedBundle, folder: Path, tmp_path: Path
) -> None:
    drawn = obtain_calibration(exported, options(folder, samples=5))
    drawn.save(tmp_path / "set")
    opened = obtain_calibration(exported, CalibrationOptions(dataset=str(tmp_path / "set")))
    assert opened.record == drawn.record
    assert len(opened.record.digest) == 64
    for tower in ("image", "text"):
        (here,) = drawn.feeds(exported, tower, 2, 1).values()  # type: ignore[arg-type]
        (there,) = opened.feeds(exported, tower, 2, 1).values()  # type: ignore[arg-type]
        for one, other in zip(here.batches, there.batches, strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    other = obtain_calibration(exported, options(folder, samples=5, seed=1))
    assert other.record.digest != drawn.record.digest


def test_a_saved_set_is_verified(exported: ExportedBundle, folder: Path, tmp_path: Path) -> None:
    obtain_calibration(exported, options(folder, samples=5)).save(tmp_path / "set")
    pixels = tmp_path / "set" / "pixels.npy"
    content = pixels.read_bytes()
    pixels.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"damaged: 'pixels\.npy' does not match its digest"):
        load_calibration(tmp_path / "set")
    pixels.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        load_calibration(tmp_path / "set")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full: /dev/full")
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    exported: ExportedBundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = obtain_calibration(exported, options(folder, samples=5))

    opens = Path.open
    full = Path("/dev/full")  # Linux: every write fails with ENOSPC
    monkeypatch.setattr(
        Path, "open", lambda path, *mode, **how: opens(full if path.name == "pixels.npy" else path, *mode, **how)
    )
    with pytest.raises(OutputError, match=r"No space left on the disk of .*set"):
        drawn.save(tmp_path / "set")
    assert not [path for path in tmp_path.iterdir() if "set" in path.name]


def test_a_saved_set_of_another_size_is_refused(exported: ExportedBundle, folder: Path) -> None:
    drawn = obtain_calibration(exported, options(folder, samples=2))
    larger = dataclasses.replace(drawn, preprocess=msgspec.structs.replace(drawn.preprocess, height=16))
    with pytest.raises(CalibrationError, match=r"height 16; bundle '.*' has 8"):
        larger.check_fits(exported)


def test_cifar_calibrates_with_its_train_split(exported: ExportedBundle, data_dir: Path) -> None:
    """The vendor's sample calibrates with the images that it evaluates; none of them may be in here."""
    given = CalibrationOptions(dataset="cifar100", samples=64, data_dir=data_dir / "cifar-100-python", download=False)
    data = obtain_calibration(exported, given)
    assert (data.record.split, data.record.samples) == ("train", 64)
    test = open_dataset("cifar100", "test", data_dir=data_dir / "cifar-100-python", download=False)
    held_out = {content_digest(test.image(index)) for index in range(len(test))}
    assert not held_out & set(data.images)


def test_what_cannot_be_is_refused(exported: ExportedBundle, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="samples is 0"):
        CalibrationOptions(dataset="demo", samples=0)
    with pytest.raises(OptionError, match="seed is -1"):
        CalibrationOptions(dataset="demo", seed=-1)
    with pytest.raises(InputError):
        obtain_calibration(exported, CalibrationOptions(dataset=f"imagefolder:{tmp_path / 'absent'}"))


def test_a_set_that_lost_its_digest_is_damaged(saved: Path) -> None:
    record = msgspec.json.decode((saved / "calibration-set.json").read_bytes())["record"]
    _edit_header(saved, record={**record, "digest": ""})
    with pytest.raises(InputError, match=r"is damaged: .*do not match their digest"):
        load_calibration(saved)


@pytest.fixture
def saved(exported: ExportedBundle, folder: Path, tmp_path: Path) -> Path:
    obtain_calibration(exported, options(folder, samples=5)).save(tmp_path / "set")
    return tmp_path / "set"


def _edit_header(folder: Path, **changes: object) -> None:
    path = folder / "calibration-set.json"
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **changes}))


def _replace_pixels(folder: Path, content: bytes) -> None:
    (folder / "pixels.npy").write_bytes(content)
    _edit_header(folder, pixels={"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)})


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4",
        b"\x93NUMPY\1\0\x05\0{[((\n",
        _npy(np.zeros((5, 8, 8, 3), np.float32)),
        _npy(np.zeros((4, 8, 8, 3), np.uint8)),
        _npy(np.zeros((5, 8, 8, 3), np.uint8))[:-1],
        _npy(np.zeros((5, 8, 8, 3), np.uint8)).replace(b"(5, 8, 8, 3)", b"(5, 8, 10**8, 3)"),
        pickle.dumps([1]),
    ],
)
def test_pixels_that_cannot_be_right_are_one_line(saved: Path, content: bytes) -> None:
    _replace_pixels(saved, content)
    with pytest.raises(InputError, match=r"^Calibration set '.*set' (is damaged|cannot be read): .*Make it again\.$"):
        load_calibration(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"images": []},
        {"images": ["x"] * 5},
        {"prompts": []},
        {"prompts": ["a"]},
        {"schema_version": -1},
        {"preprocess": {}},
    ],
)
def test_header_that_does_not_fit_its_data_is_refused(saved: Path, changes: dict[str, object]) -> None:
    _edit_header(saved, **changes)
    with pytest.raises(InputError, match=r"Calibration set '.*set' (is damaged|cannot be read)"):
        load_calibration(saved)


@pytest.mark.parametrize("name", ["calibration-set.json", "pixels.npy"])
def test_pipe_in_a_saved_set_is_refused_at_once(saved: Path, name: str) -> None:
    (saved / name).unlink()
    os.mkfifo(saved / name)
    with pytest.raises(InputError, match="not a regular file"):
        load_calibration(saved)


def test_broken_images_are_reported_and_others_taken(
    exported: ExportedBundle, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = obtain_calibration(exported, options(folder, samples=5))
    (folder / "train" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff garbage")
    (folder / "train" / "cat" / "gone.png").symlink_to("nowhere")
    drawn = obtain_calibration(exported, options(folder, samples=5))
    assert drawn.record.samples == len(drawn.images) == len(drawn.pixels) == 5
    everything = obtain_calibration(exported, options(folder, samples=100))
    assert set(whole.images) < set(everything.images)
    assert everything.record.samples == 7
    said = [message for message in caplog.messages if message.startswith("skipped: ")]
    assert any("broken.jpg" in message for message in said)
    assert any("gone.png" in message and "nowhere" in message for message in said)
    for path in (folder / "train").rglob("*.png"):
        path.unlink()
    with pytest.raises(CalibrationError, match=r"Not one of the 1 images of 'folder:.*' could be read"):
        obtain_calibration(exported, CalibrationOptions(dataset=str(folder / "train" / "cat")))


def test_sixteen_bit_images_are_counted(
    exported: ExportedBundle, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(np.full((9, 9), 60_000, np.uint16)).save(folder / "train" / "cat" / "deep.png")
    obtain_calibration(exported, options(folder, samples=100))
    assert any(message.startswith("1 image(s) hold grey values outside 0..255") for message in caplog.messages)


@pytest.mark.parametrize("kind", ["folder", "set"])
def test_a_datasets_name_wins_over_what_is_called_so_here(
    exported: ExportedBundle, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    own = obtain_calibration(exported, CalibrationOptions(dataset=str(folder), samples=3))
    if kind == "set":
        own.save(folder.parent / "demo")
    else:
        folder.rename(folder.parent / "demo")
    monkeypatch.chdir(folder.parent)
    drawn = obtain_calibration(exported, CalibrationOptions(dataset="demo", samples=3))
    assert drawn.images != own.images
    assert drawn.record.split == "train"
    assert set(caplog.messages) == {
        "'demo' is taken as the dataset, not as the folder of that name; write './demo' for it."
    }
    assert obtain_calibration(exported, CalibrationOptions(dataset="./demo", samples=3)).images == own.images


def test_a_bundle_that_is_called_like_the_dataset_is_no_reason_for_a_note(
    exported: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(exported.path, tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    assert obtain_calibration(exported, CalibrationOptions(dataset="demo", samples=3)).record.split == "train"
    assert caplog.messages == []


def test_home_folder_is_expanded(exported: ExportedBundle, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert obtain_calibration(exported, CalibrationOptions(dataset="~/folder", samples=3)).record.samples == 3


def test_pixel_limit_is_the_options(exported: ExportedBundle, folder: Path) -> None:
    with pytest.raises(CalibrationError, match="Not one of the 7 images"):
        obtain_calibration(exported, options(folder, samples=3, max_pixels=support.SIDE**2 - 1))
    assert obtain_calibration(exported, options(folder, samples=3, max_pixels=support.SIDE**2)).record.samples == 3


def test_a_folder_whose_name_is_no_utf8_is_recorded_so_that_it_is_found_again(
    exported: ExportedBundle, folder: Path
) -> None:
    odd = folder.rename(folder.parent / os.fsdecode(b"d\xe9"))
    drawn = obtain_calibration(exported, CalibrationOptions(dataset=str(odd), samples=3))
    assert drawn.record.dataset == f"{odd.parent}/d\\xe9"
    drawn.save(folder.parent / "set")
    kept = load_calibration(folder.parent / "set").record.dataset
    assert text_from_name(kept) == str(odd)
    again = obtain_calibration(exported, CalibrationOptions(dataset=text_from_name(kept), samples=3))
    assert again.images == drawn.images
