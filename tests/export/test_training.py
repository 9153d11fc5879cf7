"""What a bare file of weights does not say: taken from beside it, or assumed with a note."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from clipmlu.errors import ClipmluError
from clipmlu.export.catalog import read_config
from clipmlu.export.exporter import ExportOptions, export_model, identify_source
from clipmlu.export.loading import LoadedModel, load_model
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.source import resolve_source
from clipmlu.export.training import learn_training, note_activation
from tiny_models import CONFIGS

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("libraries")]

Tiny = Callable[[str], Path]
SIZES = {key: value for key, value in CONFIGS["quick-gelu"].items() if key != "quick_gelu"}
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)


@pytest.fixture
def weights(tiny_model: Tiny, tmp_path: Path, give_config: Callable[..., None]) -> Path:
    """A checkpoint file alone in a folder; every named model has its tiny architecture, with the name's activation."""
    import torch
    from safetensors.torch import load_file

    def tiny_config(name: str) -> dict[str, Any]:
        quick = {"quick_gelu": True} if name.endswith("-quickgelu") else {}
        return {"embed_dim": 24, **SIZES, **quick}

    give_config(tiny_config)
    path = tmp_path / "run" / "checkpoints" / "mine.pt"
    path.parent.mkdir(parents=True)
    torch.save(
        {"epoch": 1, "state_dict": load_file(str(tiny_model("quick-gelu") / "open_clip_model.safetensors"))}, path
    )
    return path


def load(path: Path, name: str = "ViT-B-32") -> LoadedModel:
    options = ExportOptions(pretrained=str(path))
    with quiet_libraries():
        return load_model(resolve_source(name, options), options)


def about_activation(loaded: LoadedModel) -> list[str]:
    return [line for line in loaded.notes if "GELU" in line]


def add(path: Path, **entries: object) -> None:
    import torch

    torch.save({**torch.load(path), **entries}, path)


def test_plain_name_of_an_architecture_with_quick_gelu_weights_gets_a_note(weights: Path) -> None:
    loaded = load(weights)
    assert loaded.activation == "gelu"
    (line,) = about_activation(loaded)
    assert line.startswith(f"'{weights}' does not say which activation it was trained with, and is loaded with GELU")
    assert "'openai', 'laion400m_e31'" in line
    assert line.endswith("export it as 'ViT-B-32-quickgelu' instead")


def test_name_that_says_it_gets_no_note(weights: Path) -> None:
    loaded = load(weights, "ViT-B-32-quickgelu")
    assert loaded.activation == "quick_gelu"
    assert about_activation(loaded) == []
    assert about_activation(load(weights, "ViT-M-32")) == []  # nobody has such weights with QuickGELU


@pytest.mark.parametrize(
    "entries",
    [
        {"name": "2024-model_ViT-B-32-quickgelu-lr_0.001"},
        {"hyper_parameters": {"model_name": "ViT-B-32-quickgelu"}},
        {"args": {"force_quick_gelu": True}},
        {"input_resolution": 224, "context_length": 77, "vocab_size": 49408},
    ],
)
def test_checkpoint_that_says_quick_gelu_is_loaded_so(entries: dict[str, object], weights: Path) -> None:
    add(weights, **entries)
    loaded = load(weights)
    assert loaded.activation == "quick_gelu"
    (line,) = about_activation(loaded)
    assert line.startswith(f"'{weights}' is loaded with QuickGELU, as 'ViT-B-32-quickgelu' has it")


def test_flag_that_was_not_set_says_nothing(weights: Path) -> None:
    add(weights, args={"force_quick_gelu": False})
    assert "does not say which activation" in about_activation(load(weights))[0]


def write_config_beside(weights: Path, preprocess: Mapping[str, object], **model: object) -> None:
    config = {"model_cfg": {"embed_dim": 24, **SIZES, **model}, "preprocess_cfg": preprocess}
    (weights.parent / "open_clip_config.json").write_text(json.dumps(config))


def test_configuration_beside_decides_activation_and_preprocessing(weights: Path) -> None:
    write_config_beside(weights, {"mean": [0.25] * 3, "std": [0.5] * 3, "resize_mode": "squash"}, quick_gelu=True)
    loaded = load(weights)
    assert loaded.activation == "quick_gelu"
    assert loaded.preprocess.mean == (0.25, 0.25, 0.25)
    assert loaded.preprocess.resize_mode == "squash"
    _, files = identify_source("ViT-B-32", ExportOptions(pretrained=str(weights)))
    assert set(files) == {"mine.pt", "beside:open_clip_config.json"}  # another one there is another export

    write_config_beside(weights, {})
    assert about_activation(load(weights)) == []  # it says GELU
    (line,) = about_activation(load(weights, "ViT-B-32-quickgelu"))
    assert "open_clip_config.json' says that it was trained with GELU" in line

    write_config_beside(weights, {"mean": [0.25] * 3}, quick_gelu=True, embed_dim=25)  # of another model
    loaded = load(weights)
    assert loaded.preprocess.mean == OPENAI_MEAN
    assert "does not say which activation" in about_activation(loaded)[0]


def test_configuration_beside_is_believed_before_parameters_beside(weights: Path) -> None:
    write_config_beside(weights, {"mean": [0.25] * 3}, quick_gelu=True)
    lines = ["model: ViT-B-32", "pretrained: ", "resume: None", "image_mean: [0.5, 0.5, 0.5]"]
    (weights.parent / "params.txt").write_text("\n".join(lines))
    loaded = load(weights)
    assert (loaded.activation, loaded.preprocess.mean) == ("quick_gelu", (0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    ("lines", "quick_gelu"),
    [
        (["model: ViT-B-32-quickgelu", "pretrained: openai", "force_quick_gelu: False"], True),
        (["model: ViT-B-32", "pretrained: ", "force_quick_gelu: True"], True),
        (["model: ViT-B-32", "pretrained: ", "force_quick_gelu: False", "resume: None"], False),
        (["model: ViT-B-32", "pretrained: openai", "force_quick_gelu: False"], None),
        (["nothing", ":", "\x00"], None),
    ],
)
def test_parameters_of_open_clips_training_are_read(lines: list[str], quick_gelu: bool | None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "params.txt").write_text("\n".join([*lines, "image_mean: [0.5, 0.5, 0.5]", "image_std: None"]))
    file = run / "checkpoints" / "epoch_1.pt"
    training = learn_training(file, read_config("ViT-B-32"), {}, {})
    assert training.quick_gelu is quick_gelu
    assert training.preprocess == {"mean": [0.5, 0.5, 0.5]}
    note = note_activation("ViT-B-32", file, training)
    assert (note is None) == (quick_gelu is False)


@pytest.mark.parametrize(
    ("name", "mean", "resize_mode", "words"),
    [
        (
            "ViT-B-32",
            OPENAI_MEAN,
            "shortest",
            "as 'ViT-B-32' with the weights listed for it says: mean 0.4815, 0.4578, 0.4082",
        ),
        (
            "ViT-B-16-SigLIP",
            (0.5, 0.5, 0.5),
            "squash",
            "as 'ViT-B-16-SigLIP' with the weights listed for it says: mean 0.5",
        ),
        ("ViT-L-14", OPENAI_MEAN, "shortest", "the weights listed for the name differ in it, in 2 ways"),
        ("ViT-M-32", OPENAI_MEAN, "shortest", "does not say how its images were prepared"),
    ],
)
def test_preprocessing_is_that_of_the_names_weights_and_said(
    name: str, mean: tuple[float, ...], resize_mode: str, words: str, weights: Path
) -> None:
    loaded = load(weights, name)
    assert loaded.preprocess.mean == pytest.approx(mean)
    assert loaded.preprocess.resize_mode == resize_mode
    assert [line for line in loaded.notes if words in line]


def test_notes_reach_python_callers(weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    broken = ExportOptions(pretrained=str(weights), tokenizer=tmp_path / "tokenizer.json")
    seen: list[str] = []
    with caplog.at_level(logging.WARNING, logger="clipmlu.export"):
        with pytest.raises(ClipmluError, match=r"tokenizer\.json"):  # the notes come first
            export_model("ViT-B-32", tmp_path / "out", broken, on_note=seen.append)
        assert seen[0].endswith("export it as 'ViT-B-32-quickgelu' instead")
        assert logged(caplog) == []
        with pytest.raises(ClipmluError, match=r"tokenizer\.json"):
            export_model("ViT-B-32", tmp_path / "out", broken)
        assert logged(caplog) == seen


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [each for each in caplog.records if each.name == "clipmlu.export" and each.levelname == "WARNING"]
    return [record.getMessage() for record in records]


@pytest.mark.slow
def test_notes_stand_in_the_manifest(weights: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    options = ExportOptions(pretrained=str(weights))
    bundle = export_model("ViT-B-32", tmp_path / "out", options, on_note=seen.append)
    assert bundle.manifest.export.notes == tuple(seen) != ()
