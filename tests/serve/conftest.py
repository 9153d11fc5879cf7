"""What the tests of the routes share: the loaded model, to compare answers with, and an indexed job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import clipmlu
from http_client import png


@pytest.fixture(scope="module")
def model(compiled_once: Path) -> Iterator[clipmlu.Model]:
    """The bundle that is served, loaded without a server."""
    with clipmlu.load(compiled_once) as model:
        yield model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, compiled_once: Path) -> Iterator[Path]:
    """The working directory, with ``photos`` and ``job``, an indexed job of two shards."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("photos").mkdir()
        for number in range(6):
            Path(f"photos/{number}.png").write_bytes(png(number))
        clipmlu.embed_images(compiled_once, "photos", "job", shard_format="npy", shard_size=3)
        clipmlu.build_index("job")
        yield folder
