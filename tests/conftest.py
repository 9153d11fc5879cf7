"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import support
from clipmlu.bundle import CompiledBundle, ExportedBundle
from clipmlu.compile.compiler import CompileOptions, compile_bundle

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real test data (CIFAR-100, golden CLIP tensors); its README lists what is in it."""
    given = os.environ.get("CLIPMLU_TEST_DATA")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no test data at '{folder}'; set CLIPMLU_TEST_DATA to the folder that holds it")
    return folder


@pytest.fixture(autouse=True)
def _private_surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache, nor finds a dataset that the developer's shell points to."""
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("CIFAR100_DATASETS_PATH", raising=False)


@pytest.fixture
def exported(tmp_path: Path) -> ExportedBundle:
    """The tiny model of ``support``, exported."""
    return support.write_exported(tmp_path / "tiny")


@pytest.fixture
def compiled(tmp_path: Path, exported: ExportedBundle) -> CompiledBundle:
    """The tiny model, compiled for the CPU with any batch of 1..8 rows."""
    return compile_bundle(exported, tmp_path / "tiny-cpu", CompileOptions(target="cpu", batch_size=4, max_batch=8))
