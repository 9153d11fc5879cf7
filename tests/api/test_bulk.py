"""Jobs and embedding files with keywords, and the functions about this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import clipmlu
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.errors import InputError, OptionError
from support import picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
    return folder


def test_classify_images_writes_the_predictions_of_the_classifier(
    compiled: CompiledBundle, photos: Path, tmp_path: Path
) -> None:
    report = clipmlu.classify_images(
        compiled.path, photos, tmp_path / "job", ["cat", "dog"], top_k=1, shard_format="jsonl", shard_size=2
    )
    assert (report.images, report.errors, report.shards) == (3, 0, 2)
    parts = sorted((tmp_path / "job" / "shards").iterdir())
    rows = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    with clipmlu.load(compiled.path) as model:
        predicted = model.classifier(["cat", "dog"]).predict(sorted(photos.iterdir()))
    assert [row["classes"][0] for row in rows] == [each.class_name for each in predicted]


def test_embed_to_file_equals_the_model(compiled: CompiledBundle, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"no picture")
    report = clipmlu.embed_to_file(compiled.path, tmp_path / "rows.npy", str(photos), workers=1)
    assert (report.path, report.rows, len(report.errors)) == (tmp_path / "rows.npy", 3, 1)
    with clipmlu.load(compiled.path) as model:
        expected = model.embed_images(sorted(photos.glob("[0-9].png")))
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), expected)
    (tmp_path / "texts.txt").write_text("a cat\na dog\n")
    assert clipmlu.embed_to_file(compiled.path, tmp_path / "t.npy", texts=tmp_path / "texts.txt").rows == 2
    with pytest.raises(OptionError, match=r"^expected either inputs or texts; give one of them$"):
        clipmlu.embed_to_file(compiled.path, tmp_path / "none.npy")


def test_embed_images_is_a_job(compiled: CompiledBundle, photos: Path, tmp_path: Path) -> None:
    report = clipmlu.embed_images(compiled.path, [photos / "0.png"], tmp_path / "job", shard_format="npy")
    assert clipmlu.open_job(tmp_path / "job").state().finished_images == report.images == 1


def test_run_emulated_runs_a_program_beside_the_emulated_sdk(capfd: pytest.CaptureFixture[str]) -> None:
    program = "import magicmind; print(magicmind.__file__)"
    assert clipmlu.run_emulated([sys.executable, "-c", program], devices=2) == 0
    assert "emulator" in capfd.readouterr().out
    with pytest.raises(InputError, match=r"^Cannot run 'no-such-program': "):
        clipmlu.run_emulated(["no-such-program"])


@pytest.mark.torch
def test_lists_of_models_and_datasets() -> None:
    assert [each.name for each in clipmlu.list_datasets()] == ["demo", "cifar100", "cifar10", "imagefolder:PATH"]
    assert "openai" in clipmlu.list_models("vit-b-32")["ViT-B-32"]
    assert all(each.check and each.found for each in clipmlu.check_machine())
