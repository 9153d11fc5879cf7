"""The emulated SDK on this process's path, in both readings of what is not known."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from clipmlu.magicmind.emulator import faults, site_path


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No emulator variable of the developer's shell, no fault or active device of an earlier test."""
    import os

    from clipmlu.magicmind.emulator.devices import _active

    for name in list(os.environ):
        if name.startswith("CLIPMLU_EMULATOR_") or name == "MLU_VISIBLE_DEVICES":
            monkeypatch.delenv(name)
    faults.reset()
    yield
    faults.reset()
    _active.device = 0


@pytest.fixture
def mm(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """``magicmind.python.runtime``, in the strict reading."""
    monkeypatch.syspath_prepend(str(site_path()))
    yield importlib.import_module("magicmind.python.runtime")
    for name in [name for name in sys.modules if name.split(".")[0] == "magicmind"]:
        del sys.modules[name]


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lenient reading."""
    monkeypatch.setenv("CLIPMLU_EMULATOR_MODE", "lenient")
