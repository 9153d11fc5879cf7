"""open_clip with configurations of the test's choice."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from clipmlu.export import catalog


@pytest.fixture
def give_config(
    libraries: None, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Callable[[str], dict[str, Any]]], None]]:
    """``give_config(make)``: open_clip's installation has the configuration ``make(name)`` for each of its names."""

    def give(make: Callable[[str], dict[str, Any]]) -> None:
        installed, folder = catalog.open_clip_folder(), tmp_path_factory.mktemp("open_clip")
        for path in installed.iterdir():
            if path.name != "model_configs":
                (folder / path.name).symlink_to(path)
        (folder / "model_configs").mkdir()
        for path in (installed / "model_configs").glob("*.json"):
            (folder / "model_configs" / path.name).write_text(json.dumps(make(path.stem)))
        spec = importlib.import_module("open_clip").__spec__
        monkeypatch.setattr(spec, "submodule_search_locations", [str(folder)])
        catalog._config_paths.cache_clear()

    yield give
    catalog._config_paths.cache_clear()
