"""Jobs: shards, records, and resuming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipmlu
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.data.finding import SkippedFiles, find_images
from clipmlu.jobs.run import run_embed_job


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(7):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"no image")
    return folder


def test_shards_hold_the_embeddings_of_the_images_in_order(
    compiled: CompiledBundle, images: Path, tmp_path: Path
) -> None:
    run_embed_job(compiled.path, tmp_path / "job", find_images(images, SkippedFiles()), shard_size=3)
    shards = tmp_path / "job" / "shards"
    found = np.concatenate([np.load(path) for path in sorted(shards.glob("*.npy"))])
    lines = [json.loads(line) for path in sorted(shards.glob("*.jsonl")) for line in path.read_text().splitlines()]
    assert [Path(line["id"]).name for line in lines] == [f"{number}.png" for number in range(7)]
    assert [line["error"] is None for line in lines] == [number != 3 for number in range(7)]
    assert np.isnan(found[3]).all()
    good = [number for number in range(7) if number != 3]
    with clipmlu.load(compiled.path) as model:
        expected = model.embed_images([images / f"{number}.png" for number in good])
    np.testing.assert_allclose(found[good], expected, atol=1e-6)
