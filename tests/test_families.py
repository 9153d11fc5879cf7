"""The script that tries one model of each family of open_clip, and the table in the documentation."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from clipmlu.export.catalog import model_names, read_config
from clipmlu.export.exporter import ExportOptions, export_model
from conftest import REPOSITORY

pytest.importorskip("open_clip", reason="needs the export extra (open_clip)", exc_type=ImportError)
pytestmark = pytest.mark.torch


def _load_script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("try_families", REPOSITORY / "tools" / "try_families.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look there
    specification.loader.exec_module(module)
    return module


SCRIPT = _load_script()
DOCUMENT = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")


def test_each_family_is_a_model_of_open_clip_that_needs_no_hub() -> None:
    for name, family in SCRIPT.FAMILIES.items():
        assert family.model in model_names(), name
        assert (family.text_config is not None) == ("hf_model_name" in read_config(family.model)["text_cfg"]), name


def test_short_models_have_the_first_layers_only(tmp_path: Path) -> None:
    for name, parts in (("coca", ("vision_cfg", "text_cfg", "multimodal_cfg")), ("eva02", ("text_cfg",))):
        SCRIPT.write_model(SCRIPT.shortened(SCRIPT.FAMILIES[name]), tmp_path / name)
        config = json.loads((tmp_path / name / "open_clip_config.json").read_text())["model_cfg"]
        assert [config[part]["layers"] for part in parts] == [3] * len(parts)
    assert SCRIPT.shortened(SCRIPT.FAMILIES["nllb"]).text_config["encoder_layers"] == 3


def test_document_has_a_row_of_each_family() -> None:
    for family in SCRIPT.FAMILIES.values():
        assert f"| {family.title} | `{family.model}`" in DOCUMENT


def test_table_shows_differences_and_reasons() -> None:
    row: dict[str, Any] = {
        "title": "A",
        "model": "a-1",
        "note": "cut",
        "export": {"image": 1.2e-7, "text": 3e-7, "parameters": {"image": 87_600_000, "text": 63e6}},
        "cpu": {"error": "CompileError: a | b"},
    }
    assert SCRIPT.render_table([row], ["cpu", "openvino"]).splitlines()[2] == (
        "| A | `a-1` (cut) | 88 / 63 | 1e-07 / 3e-07 | no: CompileError: a / b | - |"
    )


def test_what_is_done_is_kept_and_a_process_that_ends_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    done = {"export": {"image": 0.0, "text": 0.0}, "cpu": {"image": 0.0, "text": 0.0}}
    (tmp_path / "clip.json").write_text(json.dumps(done))
    SCRIPT._run_in_process("clip", tmp_path, ["cpu", "openvino"])
    row = json.loads((tmp_path / "clip.json").read_text())
    assert row == {**done, "openvino": {"error": "the process ended with status 1"}}


@pytest.mark.full_size
@pytest.mark.parametrize("name", list(SCRIPT.FAMILIES))
def test_one_model_of_each_family_exports(name: str, tmp_path: Path) -> None:
    model = SCRIPT.write_model(SCRIPT.FAMILIES[name], tmp_path / "model")
    bundle = export_model(model, tmp_path / "out", ExportOptions(random_weights=True, seed=3, offline=True))
    assert set(bundle.manifest.towers) == {"image", "text"}
    assert max(record.max_abs_diff for record in bundle.manifest.export.parity) <= 1e-5
