"""What MODEL may be, what is refused, and that it is refused before anything slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clipmlu.errors import ExportError, InputError, OptionError, UnknownNameError
from clipmlu.export.exporter import ExportOptions, export_model, identify_source
from clipmlu.export.source import resolve_source
from tiny_models import CONFIGS, write_config

pytest.importorskip("open_clip", reason="needs the export extra (open_clip)", exc_type=ImportError)
pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": "openai", "random_weights": True}, "'openai' and random weights cannot be used together"),
        ({"pretrained": " "}, "tag of the pretrained weights is empty"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"layout": "fused"}, "layout is 'fused'; expected one of towers, joint"),
        ({"opset": 17}, "opset is 17; expected one of 18, 20"),
        ({"max_abs_diff": 0.0}, "parity bounds are 0.0"),
        ({"external_data_bytes": 3_000_000_000}, "external data begins at 3000000000 bytes"),
    ],
)
def test_options_are_checked_when_made(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ExportOptions(**changes)  # type: ignore[arg-type]


def test_tag_may_follow_the_name() -> None:
    for model, options in [
        ("ViT-B-32::openai", ExportOptions()),
        ("ViT-B/32", ExportOptions(pretrained="openai")),
    ]:
        source = resolve_source(model, options)
        assert str(source.identity) == "ViT-B-32::openai"
        assert source.weights is not None
        assert source.weights.quick_gelu


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            "ViT-B-32",
            ExportOptions(),
            "'ViT-B-32' needs weights: clipmlu export ViT-B-32::openai -o vit-b-32 .*clipmlu models ViT-B-32' .*--random-weights",
        ),
        ("ViT-S-32", ExportOptions(), "'ViT-S-32' has no pretrained weights"),
        (
            "ViT-B-32::openai",
            ExportOptions(pretrained="laion2b_e16"),
            "names its weights already; leave out the pretrained weights 'laion2b_e16'",
        ),
        (
            "ViT-B-32::openai",
            ExportOptions(random_weights=True),
            "names its weights already; leave out the random weights",
        ),
        ("ViT-B-32::", ExportOptions(), "expected NAME::TAG"),
        ("demo", ExportOptions(pretrained="openai"), "model 'demo' has its own weights"),
        ("hf-hub:org/name", ExportOptions(pretrained="openai"), "has its own weights"),
        ("hf-hub:name", ExportOptions(), "expected hf-hub:org/name"),
        ("local-dir:", ExportOptions(), "expected local-dir:PATH"),
    ],
)
def test_conflicts_and_gaps_are_named(model: str, options: ExportOptions, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        resolve_source(model, options)


@pytest.mark.parametrize("model", ["VitB32x", "ViT-B-32::opnai"])
def test_unknown_names_stop_the_export_before_torch(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # loading would say that it is missing
    with pytest.raises(UnknownNameError):
        export_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pretrained_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"weights")
    identity, files = identify_source("ViT-B-32", ExportOptions(pretrained=str(file)))
    assert str(identity) == "ViT-B-32::mine.safetensors"
    assert files["mine.safetensors"].size == 7


def test_missing_checkpoint_file_is_named() -> None:
    with pytest.raises(
        ExportError, match=r"There is no checkpoint file 'no/such.pt'. Expected a file of weights for 'RN50'"
    ):
        resolve_source("RN50", ExportOptions(pretrained="no/such.pt"))


def test_local_directory_without_weights_is_never_exported_at_random(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", CONFIGS["vit"])
    with pytest.raises(ExportError, match=r"has no weights: expected 'open_clip_model.safetensors'.*--random-weights"):
        resolve_source(f"local-dir:{folder}", ExportOptions())
    assert resolve_source(f"local-dir:{folder}", ExportOptions(random_weights=True)).random


def test_checkpoints_are_chosen_as_open_clip_chooses(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", CONFIGS["vit"])
    for name in ("a.bin", "z.safetensors", "model.pth", "open_clip_pytorch_model.bin"):
        (folder / name).touch()
        found = resolve_source(f"local-dir:{folder}", ExportOptions()).checkpoint
        assert found is not None
        expected = {"a.bin": "a.bin", "z.safetensors": "z.safetensors", "model.pth": "model.pth"}
        assert found.name == expected.get(name, "open_clip_pytorch_model.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            "has neither .*open_clip_config.json.* nor .*config.json.*, so it is no model of open_clip or transformers",
        ),
        ("{", "Cannot read the model's configuration"),
        ("[]", "describes no model: expected 'model_cfg' with embed_dim"),
        (json.dumps({"model_cfg": {"embed_dim": 4}}), "describes no model"),
    ],
)
def test_unusable_configuration_is_named(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(ExportError, match=message):
        resolve_source(f"local-dir:{tmp_path}", ExportOptions())


def test_missing_local_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"there is no directory '.*nowhere'"):
        resolve_source(f"local-dir:{tmp_path}/nowhere", ExportOptions())


def test_own_tokenizer_belongs_to_the_identity(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", CONFIGS["vit"])
    options = ExportOptions(random_weights=True, tokenizer=folder)
    _, files = identify_source(f"local-dir:{folder}", options)
    assert files["tokenizer:tokenizer.json"] == files["tokenizer.json"]
    with pytest.raises(InputError, match=r"No tokenizer at '.*none'. Expected a tokenizer.json"):
        identify_source(f"local-dir:{folder}", ExportOptions(random_weights=True, tokenizer=tmp_path / "none"))


def test_identifying_a_model_imports_nothing_heavy() -> None:
    code = (
        "import sys; from clipmlu.export.exporter import ExportOptions, identify_source;"
        "identify_source('ViT-B-32::openai', ExportOptions());"
        "heavy = ('torch', 'open_clip', 'onnx', 'onnxruntime', 'transformers', 'huggingface_hub');"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_file_of_weights_as_the_model_is_told_how_to_be_given(tmp_path: Path) -> None:
    file = tmp_path / "ViT-B-32.pt"
    file.write_bytes(b"\x02" + bytes(7) + b"{}")  # safetensors without a tensor
    with pytest.raises(OptionError, match=rf"is a file of weights.* clipmlu export ViT-B-32::{file}$"):
        resolve_source(str(file), ExportOptions())
    file = file.rename(tmp_path / "best.onnx")
    file.write_bytes(b"\x08\x07\x12\x07pytorch")
    with pytest.raises(ExportError, match="an ONNX graph"):
        resolve_source(str(file), ExportOptions())
