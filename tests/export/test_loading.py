"""Weights and activations of loaded models."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipmlu.errors import ExportError, MissingDependencyError
from clipmlu.export.exporter import ExportOptions, export_model
from clipmlu.export.loading import LoadedModel, digest_weights, load_model
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.source import resolve_source
from tiny_models import CONFIGS, write_config

pytestmark = pytest.mark.torch

Tiny = Callable[[str], Path]


def load(model: str, **options: Any) -> LoadedModel:
    given = ExportOptions(**options)
    with quiet_libraries():
        return load_model(resolve_source(model, given), given)


def test_half_precision_checkpoints_are_loaded_as_float32(tiny_model: Tiny, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = write_config(tmp_path / "model", CONFIGS["vit"])
    state = load_file(str(tiny_model("vit") / "open_clip_model.safetensors"))
    save_file({name: tensor.half() for name, tensor in state.items()}, str(folder / "model.safetensors"))
    module = load(f"local-dir:{folder}").module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert torch.equal(module.visual.proj, state["visual.proj"].half().float())


def test_checkpoint_of_another_architecture_is_one_line(tiny_model: Tiny) -> None:
    file = tiny_model("vit") / "open_clip_model.safetensors"
    with pytest.raises(ExportError, match=r"^Cannot load the weights '.*open_clip_model.safetensors': [^\n]+$"):
        load("RN50", pretrained=str(file))


def test_code_in_a_checkpoint_is_not_run(tiny_model: Tiny, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = write_config(tmp_path / "model", CONFIGS["vit"])
    (folder / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps({"state_dict": Bomb()}))
    with pytest.raises(ExportError, match=r"Cannot load the weights '.*open_clip_pytorch_model.bin'"):
        load(f"local-dir:{folder}")
    assert not (tmp_path / "ran").exists()


def test_configuration_that_cannot_be_built_is_one_line(tmp_path: Path) -> None:
    config = {**CONFIGS["vit"], "vision_cfg": {"image_size": 32, "no_such_option": 1}}
    folder = write_config(tmp_path / "model", config)
    with pytest.raises(ExportError, match=r"^Cannot build 'local-dir:.*no_such_option[^\n]*$"):
        load(f"local-dir:{folder}", random_weights=True)


def test_digest_follows_the_weights(tiny_model: Tiny) -> None:
    folder = tiny_model("vit")
    first, second = load(f"local-dir:{folder}"), load(f"local-dir:{folder}")
    assert first.weights_digest == second.weights_digest
    first.module.ln_final.bias[0] += 1e-6
    assert digest_weights(first.module) != second.weights_digest


@pytest.mark.parametrize(
    ("changes", "activation"),
    [({}, "gelu"), ({"quick_gelu": True}, "quick_gelu")],
)
def test_activation_is_that_of_the_built_modules(changes: dict[str, Any], activation: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", {**CONFIGS["vit"], **changes})
    assert load(f"local-dir:{folder}", random_weights=True).activation == activation


def test_tanh_gelu_is_told_apart(tmp_path: Path) -> None:
    text = {**CONFIGS["vit"]["text_cfg"], "act_kwargs": {"approximate": "tanh"}}
    folder = write_config(tmp_path / "model", {**CONFIGS["vit"], "text_cfg": text})
    assert load(f"local-dir:{folder}", random_weights=True).activation == "gelu_tanh"


def test_missing_torch_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip", reason="needs the export extra (open_clip)", exc_type=ImportError)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"Exporting a model needs 'torch'.*clipmlu\[export\]"):
        export_model("ViT-B-32", tmp_path / "out", ExportOptions(random_weights=True))
