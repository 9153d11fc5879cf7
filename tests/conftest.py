"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real test data (CIFAR-100, golden CLIP tensors); its README lists what is in it."""
    given = os.environ.get("CLIPMLU_TEST_DATA")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no test data at '{folder}'; set CLIPMLU_TEST_DATA to the folder that holds it")
    return folder
