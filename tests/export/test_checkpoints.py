"""Checkpoints in the shapes that people have: taken as they are, or refused with one line that says what they are."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmlu.errors import ExportError
from clipmlu.export.checkpoint import read_checkpoint
from clipmlu.export.exporter import ExportOptions
from clipmlu.export.loading import LoadedModel, load_model
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.source import resolve_source
from tiny_models import CONFIGS, write_config

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("libraries")]

Tiny = Callable[[str], Path]
State = dict[str, Any]
NAME = "open_clip_pytorch_model.bin"
FOREIGN_ADVICE = ("weights_only=False", "add_safe_globals", "torch.load", "huggingface.co", "pip install")


@pytest.fixture
def state(tiny_model: Tiny) -> State:
    """The weights of the tiny ViT."""
    from safetensors.torch import load_file

    return load_file(str(tiny_model("vit") / "open_clip_model.safetensors"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The directory of the tiny ViT, without weights."""
    return write_config(tmp_path / "model", CONFIGS["vit"])


def load(folder: Path, model: str = "") -> LoadedModel:
    options = ExportOptions(pretrained=str(folder / NAME)) if model else ExportOptions()
    with quiet_libraries():
        return load_model(resolve_source(model or f"local-dir:{folder}", options), options)


def refusal(folder: Path, model: str = "") -> str:
    with pytest.raises(ExportError) as caught:
        load(folder, model)
    message = str(caught.value)
    assert "\n" not in message
    assert not [advice for advice in FOREIGN_ADVICE if advice in message], message
    return message


def check_equal(loaded: LoadedModel, state: State) -> None:
    """Every weight is the given one, as float32."""
    import torch

    found = loaded.module.state_dict()
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor.float()), name


def prefixed(state: State, *prefixes: str) -> State:
    return {"".join(prefixes) + name: tensor for name, tensor in state.items()}


def wrapped_inside(state: State) -> State:
    """A tower compiled, blocks wrapped by FSDP and by activation checkpointing, in the middle of names."""
    return {
        name.replace("visual.", "visual._orig_mod.").replace(
            "resblocks.1.", "resblocks.1._fsdp_wrapped_module._checkpoint_wrapped_module."
        ): tensor
        for name, tensor in state.items()
    }


SHAPES: dict[str, Callable[[State], object]] = {
    "bare": lambda state: state,
    "open_clip": lambda state: {
        "epoch": 3,
        "name": "run",
        "state_dict": prefixed(state, "module."),
        "optimizer": {"state": {}},
    },
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "ddp-of-compiled": lambda state: prefixed(state, "module.", "_orig_mod."),
    "compiled-ddp": lambda state: prefixed(state, "_orig_mod.", "module."),
    "three": lambda state: prefixed(state, "model.", "module.", "_orig_mod.", "clip."),
    "fsdp": lambda state: prefixed(state, "_fsdp_wrapped_module."),
    "inside": wrapped_inside,
    "fabric": lambda state: {"model": prefixed(state, "_forward_module.")},
    "nested": lambda state: {"model": {"state_dict": prefixed(state, "clip_model.")}},
    "openais-recipe": lambda state: {"epoch": 1, "model_state_dict": state, "loss": 0.25},
    "deepspeed": lambda state: {"module": state, "buffer_names": [], "optimizer": None, "ds_version": "0.14"},
    "average-alone": lambda state: {"ema": prefixed(state, "module.")},
    "swa": lambda state: {"n_averaged": state["logit_scale"], **prefixed(state, "module.")},
    "lightning": lambda state: {
        "state_dict": prefixed(state, "model."),
        "hyper_parameters": {"lr": 1e-4, "arguments": argparse.Namespace(path=Path("runs"), best=np.float64(0.5))},
        "pytorch-lightning_version": "2.2.0",
        "callbacks": {"ModelCheckpoint": {"best_model_score": state["logit_scale"]}},
        "optimizer_states": [{"state": {0: {"exp_avg": state["visual.proj"]}}}],
    },
}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_wrappers_and_nests_are_taken_off(shape: str, state: State, folder: Path) -> None:
    import torch

    torch.save(SHAPES[shape](state), folder / NAME)
    loaded = load(folder)
    check_equal(loaded, state)
    assert loaded.notes == ()


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("safe", [False, True])
def test_other_float_types_become_float32(kind: str, safe: bool, state: State, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    cast = {name: tensor.to(getattr(torch, kind)) for name, tensor in state.items()}
    # The name says nothing: the content decides which form it is.
    if safe:
        save_file(cast, str(folder / NAME))
    else:
        torch.save(cast, folder / NAME)
    check_equal(load(folder), cast)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not show what is mapped")
def test_large_files_are_mapped_and_not_read(state: State, folder: Path) -> None:
    """The state of an optimizer, twice the size of the weights, costs no memory."""
    import torch

    torch.save({"state_dict": state, "optimizer": {"state": {0: {"exp_avg": state["visual.proj"]}}}}, folder / NAME)
    read = read_checkpoint(folder / NAME, "torch")
    assert "optimizer.state.0.exp_avg" in read.tensors
    assert str(folder / NAME) in Path("/proc/self/maps").read_text()


def test_counters_of_batch_normalisation_may_be_missing(tiny_model: Tiny, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = write_config(tmp_path / "model", CONFIGS["resnet"])
    whole = load_file(str(tiny_model("resnet") / "open_clip_model.safetensors"))
    kept = {name: tensor for name, tensor in whole.items() if not name.endswith("num_batches_tracked")}
    assert len(kept) < len(whole)
    torch.save(kept, folder / NAME)
    loaded = load(folder)
    assert loaded.notes == ()
    assert torch.equal(loaded.module.visual.bn1.running_var, kept["visual.bn1.running_var"])


def test_average_beside_the_weights_is_left_out_with_a_note(state: State, folder: Path) -> None:
    import torch

    average = {name: tensor * 2 for name, tensor in state.items()}
    for content in (
        {"model": state, "model_ema": average},
        {"state_dict_ema": prefixed(average, "module."), "state_dict": prefixed(state, "module.")},
        {"state_dict": {**prefixed(average, "ema_model."), **prefixed(state, "model.")}},
    ):
        torch.save(content, folder / NAME)
        loaded = load(folder)
        check_equal(loaded, state)
        (line,) = loaded.notes
        assert "(an average) were left out" in line


def test_dictionaries_that_hold_themselves_or_one_another_without_end_are_left(state: State, folder: Path) -> None:
    import torch

    content: dict[str, object] = {"state_dict": state}
    content["again"] = content
    deep: dict[str, object] = {}
    for _ in range(50):
        deep = {"deeper": deep, "weight": torch.zeros(1)}
    torch.save({**content, "deep": deep}, folder / NAME)
    assert torch.equal(load(folder).module.state_dict()["visual.proj"], state["visual.proj"])


def test_dictionaries_stored_under_two_names_are_read_under_both(state: State, folder: Path) -> None:
    import torch

    shared = {"weight": torch.zeros(1)}
    torch.save({"a": {"c": shared}, "b": shared}, folder / NAME)
    read = read_checkpoint(folder / NAME, "torch")
    assert (list(read.tensors), read.nests) == (["a.c.weight", "b.weight"], {"a.c.weight": "a.c.", "b.weight": "b."})


def doubling() -> dict[str, object]:
    """2**40 dictionaries, all of them the same 40."""
    content: dict[str, object] = {}
    for _ in range(40):
        content = {"left": content, "right": content}
    return content


def far_below() -> dict[str, object]:
    content: dict[str, object] = {}
    for _ in range(10_000):
        content = {"deeper": content}
    return content


@pytest.mark.parametrize("make", [doubling, far_below])
def test_more_names_than_any_file_has_are_refused(
    make: Callable[[], dict[str, object]], state: State, folder: Path
) -> None:
    """By a file of a few kilobytes beside the weights: in seconds, not in years."""
    import torch

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)  # of Python's pickler, which writes the file
    try:
        torch.save({"state_dict": state, "more": make()}, folder / NAME)
    finally:
        sys.setrecursionlimit(limit)
    assert "the names in it take more than 16,777,216 characters. Save model.state_dict() alone." in refusal(folder)


def test_name_of_many_parts_and_keys_without_a_name_do_not_delay(state: State, folder: Path) -> None:
    import torch

    content = {**state, "a." * 500_000: torch.zeros(1), (1, 2): torch.zeros(1)}
    torch.save(content, folder / NAME)
    assert torch.equal(load(folder).module.state_dict()["visual.proj"], state["visual.proj"])


def test_two_models_in_one_file_are_not_chosen_from(state: State, folder: Path) -> None:
    import torch

    torch.save({"a": state, "b": {name: tensor + 1 for name, tensor in state.items()}}, folder / NAME)
    assert "it holds 2 models, under 'a', 'b'. Save the intended one" in refusal(folder)
    torch.save({"a": state, "b": state}, folder / NAME)
    check_equal(load(folder), state)


def test_parts_that_are_not_the_models_are_left_out_with_a_note(state: State, folder: Path) -> None:
    import torch

    head = {"head.weight": torch.zeros(2), "head.bias": torch.zeros(2)}
    torch.save({"state_dict": {**prefixed(state, "clipmodel."), **head}}, folder / NAME)
    loaded = load(folder)
    check_equal(loaded, state)
    assert loaded.notes == (
        "2 tensors ('state_dict.head.weight', 'state_dict.head.bias') were left out: they belong to no part of the model",
    )


def test_logit_bias_is_taken_where_the_architecture_has_none(state: State, folder: Path) -> None:
    import torch

    torch.save({**state, "logit_bias": torch.tensor([-9.5])}, folder / NAME)
    loaded = load(folder)
    assert loaded.logit_bias == -9.5
    assert loaded.logit_scale == pytest.approx(float(np.exp(float(state["logit_scale"]))))


@pytest.mark.parametrize("logarithm", [100.0, -20.0, float("nan")])
def test_logit_scale_that_no_model_has_is_refused(logarithm: float, state: State, folder: Path) -> None:
    import torch

    torch.save({**state, "logit_scale": torch.tensor(logarithm)}, folder / NAME)
    assert re.search(
        r"has the logit scale \S+ and the logit bias 0; trained models have a scale of some 100", refusal(folder)
    )


def test_missing_logit_bias_is_said(tiny_model: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_config(tmp_path / "model", CONFIGS["siglip"])
    state = load_file(str(tiny_model("siglip") / "open_clip_model.safetensors"))
    del state["logit_bias"]
    save_file(state, str(folder / "model.safetensors"))
    loaded = load(folder)
    assert loaded.logit_bias == 0
    assert loaded.notes == ("the checkpoint has no 'logit_bias': 0 is used",)


def without(state: State, *starts: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(starts)}


def renamed(state: State) -> State:
    return {name.replace("visual.transformer", "visual.blocks"): tensor for name, tensor in state.items()}


MISFITS: dict[str, tuple[Callable[[State], object], str]] = {
    "missing": (
        lambda state: without(state, "ln_final"),
        r"2 of the model's \d+ are missing \('ln_final.weight', 'ln_final.bias'\)\.",
    ),
    "missing-under-prefix": (
        lambda state: {"model": prefixed(without(state, "ln_final"), "module.")},
        r"2 of the model's \d+ are missing \('ln_final.weight', 'ln_final.bias'\)\.",
    ),
    "renamed": (
        renamed,
        r"24 of the model's \d+ are missing \('visual.transformer.resblocks.0[^)]*, \.\.\.\), and "
        r"24 are not the model's \('visual.blocks.resblocks.0",
    ),
    "deeper": (
        lambda state: {
            **state,
            **{n.replace("resblocks.1", "resblocks.2"): t for n, t in state.items() if "resblocks.1" in n},
        },
        r"24 are not the model's \('(visual.)?transformer.resblocks.2",
    ),
    "no-scale": (lambda state: without(state, "logit_scale"), r"1 of .* missing \('logit_scale'\).*Add the logarithm"),
    "transformers": (
        lambda state: {f"vision_model.encoder.{name}": tensor for name, tensor in state.items() if "weight" in name},
        r"names of the transformers library\. Take open_clip's file of the same model",
    ),
    "lora": (
        lambda state: {f"base_model.model.{name}.lora_A": tensor for name, tensor in state.items()},
        r"LoRA adapters: merge them",
    ),
    "text-only": (lambda state: without(state, "visual"), r"There is no image tower in it"),
    "nothing": (lambda state: {"epoch": 1, "lr": 0.5}, r"it has no weights by name: it holds 'epoch', 'lr'"),
    "list": (lambda state: list(state.values()), r"it has no weights by name\. Save model.state_dict\(\)"),
    "shape": (
        lambda state: {**state, "visual.proj": state["visual.proj"][:, :8]},
        r"'visual.proj' has the shape \(64, 8\) there and \(64, 24\) in 'local-dir:[^']*'\. The checkpoint has "
        r"embeddings of 8, an image tower of width 64 with patches of 16, a text tower of width 32 with 300 tokens",
    ),
    "no-square": (
        lambda state: {**state, "visual.positional_embedding": state["visual.positional_embedding"][[0, 1, 1, 1]]},
        r"'visual.positional_embedding' has the shape \(4, 64\) there and \(5, 64\)",
    ),
    "wrapped-beside": (
        lambda state: {**state, **prefixed({name: tensor + 1 for name, tensor in state.items()}, "module.")},
        r"it holds 2 models",
    ),
    "zero-3": (lambda state: {name: tensor[:0] if tensor.ndim else tensor for name, tensor in state.items()}, "ZeRO 3"),
    "int8": (
        lambda state: {**state, "visual.proj": state["visual.proj"].char()},
        r"'visual.proj' holds int8; expected float32, float16 or bfloat16",
    ),
    "meta": (
        lambda state: {**state, "visual.proj": state["visual.proj"].to("meta")},
        r"'visual.proj' is stored in a form",
    ),
}


@pytest.mark.parametrize("case", list(MISFITS))
def test_what_does_not_fit_is_named(case: str, state: State, folder: Path) -> None:
    import re

    import torch

    make, expected = MISFITS[case]
    torch.save(make(state), folder / NAME)
    message = refusal(folder)
    assert re.search(expected, message), message


def test_other_lengths_of_position_embeddings_are_interpolated_with_a_note(state: State, folder: Path) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    longer = torch.randn((20, 32), generator=generator)
    larger = torch.randn((10, 64), generator=generator)
    torch.save(
        {**state, "positional_embedding": longer.half(), "visual.positional_embedding": larger.half()}, folder / NAME
    )
    loaded = load(folder)
    image, text = loaded.notes
    assert "'visual.positional_embedding' has 10 positions in the checkpoint and 5 in" in image
    assert "trained with another image size or patch size" in image
    assert "'positional_embedding' has 20 positions in the checkpoint and 12 in" in text
    assert "trained with another context length" in text
    expected = torch.nn.functional.interpolate(longer.half().float().T[None], size=12, mode="linear")[0].T
    assert torch.allclose(loaded.module.positional_embedding, expected, atol=1e-6)


def write_module(path: Path) -> None:
    import torch

    torch.save(torch.nn.Linear(2, 2), path)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "weights.pt")


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/weights.pt", b"x")


def write_cut(path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(1000)}, path)
    os.truncate(path, 2000)


def write_legacy_cut(path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    os.truncate(path, 600)


def write_array(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


def write_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))


FILES: dict[str, tuple[bytes | Callable[[Path], object], str]] = {
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "a Git LFS pointer.*'git lfs pull'",
    ),
    "annex": (b"/annex/objects/SHA256E-s1--0.pt\n", "a git-annex pointer"),
    "html": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page"),
    "xml": (b"<?xml version='1.0'?><net/>", "an XML file"),
    "text": (b"Entry not found", "it is text, beginning with 'Entry not found'"),
    "json": (b'{"error": "Repository not found"}', "a JSON file"),
    "index": (b'{"metadata": {}, "weight_map": {}}', "the index of weights in several files"),
    "empty": (b"", "the file is empty"),
    "gzip": (gzip.compress(b"weights"), "compressed with gzip. Unpack it"),
    "tar": (write_tar, "a tar archive. Unpack it"),
    "zip": (write_zip, "a ZIP archive of other files, which begins with 'model/weights.pt'"),
    "bomb": (write_bomb, "would unpack to"),
    "module": (
        write_module,
        "it holds the Python object 'torch.nn.modules.linear.Linear', and making that could run any code",
    ),
    "pickle": (pickle.dumps({"a": 1}), "a Python pickle that torch.save did not write"),
    "cut": (write_cut, "a ZIP archive that is damaged or not complete. Download"),
    "legacy-cut": (write_legacy_cut, "it is damaged or not complete"),
    "array": (write_array, "a single NumPy array"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x032.0", "an ONNX graph, exported already"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
    "noise": (b"\xde\xad\xbe\xef" * 64, "it begins with the bytes de ad be ef"),
    "safetensors-header": (b"\xff\xff\xff\xff\xff\xff\xff\x7f{" + b" " * 64, "whose header is damaged or cut off"),
    "safetensors-cut": (
        b'\x3a\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}       ',
        "damaged",
    ),
}


@pytest.mark.parametrize("kind", list(FILES))
def test_what_a_file_is_instead_of_weights_is_named(kind: str, folder: Path) -> None:
    import re

    content, expected = FILES[kind]
    file = folder / NAME
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        content(file)
    message = refusal(folder)
    assert message.startswith(f"Cannot load the weights '{file}': ")
    assert re.search(expected, message), message
    assert refusal(folder, "ViT-B-32") == message


def make_deepspeed(path: Path) -> None:
    path.mkdir()
    (path / "zero_to_fp32.py").touch()
    (path / "latest").touch()


def make_distributed(path: Path) -> None:
    path.mkdir()
    (path / "__0_0.distcp").touch()


def make_transformers(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "clip"}')
    (path / "pytorch_model.bin").touch()


def make_open_clip(path: Path) -> None:
    write_config(path, CONFIGS["vit"])


def make_files(path: Path) -> None:
    path.mkdir()
    (path / "epoch_1.pt").touch()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (make_deepspeed, "a checkpoint directory of DeepSpeed. .*python zero_to_fp32.py"),
        (make_distributed, "a distributed checkpoint of torch.*dcp_to_torch"),
        (make_transformers, "a directory of the transformers library. Give it as the model: local-dir:"),
        (make_open_clip, "a directory in open_clip's format. Give it as the model: local-dir:"),
        (make_files, "it is a directory. Give a file of weights such as 'epoch_1.pt'"),
        (os.mkfifo, "a pipe or a device"),
        (lambda path: path.symlink_to("/dev/zero"), "a pipe or a device"),
    ],
)
def test_what_is_no_file_is_named_without_waiting(
    make: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "given"
    make(path)
    with pytest.raises(ExportError, match=rf"^Cannot load the weights '{path}': .*{expected}"):
        resolve_source("ViT-B-32", ExportOptions(pretrained=str(path)))


def test_a_directory_is_of_transformers_unless_it_is_of_open_clip(tmp_path: Path) -> None:
    make_transformers(tmp_path / "clip")
    assert resolve_source(f"local-dir:{tmp_path / 'clip'}", ExportOptions()).format == "transformers"
    make_open_clip(tmp_path / "both")
    make_transformers(tmp_path / "other")
    (tmp_path / "other" / "config.json").rename(tmp_path / "both" / "config.json")
    with pytest.raises(ExportError, match=r"expected 'open_clip_model\.safetensors'"):
        resolve_source(f"local-dir:{tmp_path / 'both'}", ExportOptions())
    with pytest.raises(
        ExportError, match=r"config.json' is a file. Give its directory, or the file as: NAME --pretrained"
    ):
        resolve_source(f"local-dir:{tmp_path / 'clip' / 'config.json'}", ExportOptions())


@pytest.mark.parametrize("given", ["RN50", pytest.param("ViT-B-16", marks=pytest.mark.slow)])
def test_architecture_is_told_by_the_shapes(tmp_path: Path, given: str) -> None:
    import open_clip
    import torch

    with torch.device("meta"), quiet_libraries():
        weights = open_clip.create_model(given, device="meta").state_dict()
    # One number each, stretched: a checkpoint of the right shapes that takes no space.
    torch.save({name: torch.zeros(()).expand(weight.shape) for name, weight in weights.items()}, tmp_path / NAME)
    message = refusal(tmp_path, "ViT-B-32")
    assert f"those of {given} or {given}-quickgelu: give that name as MODEL." in message, message


def test_damaged_checkpoints_load_or_are_one_line(state: State, folder: Path) -> None:
    import torch

    file = folder / NAME
    for legacy in (False, True):
        torch.save({"state_dict": state}, file, _use_new_zipfile_serialization=not legacy)
        content = file.read_bytes()
        generator = np.random.default_rng(int(legacy))
        for _ in range(20):
            damaged = bytearray(content)
            for position in generator.integers(0, 3000, 8):
                damaged[position] = int(generator.integers(256))
            file.write_bytes(damaged)
            refused = outcome(folder)
            assert "\n" not in refused
            assert not [advice for advice in FOREIGN_ADVICE if advice in refused], refused


def outcome(folder: Path) -> str:
    """What is said about a checkpoint; empty if it loads."""
    try:
        load(folder)
    except ExportError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("part", "key", "value", "expected"),
    [
        ("text_cfg", "layers", 10**9, "layers 1000000000; expected a whole number from 1 to 1024"),
        ("vision_cfg", "layers", -1, "layers -1"),
        ("vision_cfg", "width", "768", "width '768'"),
        ("vision_cfg", "image_size", [224, 10**8], "image_size 100000000"),
        ("text_cfg", "vocab_size", True, "vocab_size True"),
        ("vision_cfg", "patch_size", 1.5, "patch_size 1.5"),
        ("text_cfg", "hf_tokenizer_name", 3, "hf_tokenizer_name 3; expected a name"),
        ("text_cfg", "tokenizer_kwargs", [], None),
        ("text_cfg", "tokenizer_kwargs", [1], r"tokenizer_kwargs \[1\]; expected an object"),
        (
            "text_cfg",
            "tokenizer_kwargs",
            {"trust_remote_code": True},
            "'trust_remote_code', which a model's configuration must not",
        ),
        ("vision_cfg", "timm_model_name", "hf_hub:somebody/model", "expected the name of a model in timm"),
    ],
)
def test_absurd_configuration_is_refused_before_anything_is_built(
    part: str, key: str, value: object, expected: str | None, tmp_path: Path
) -> None:
    folder = write_config(tmp_path / "model", {**CONFIGS["vit"], part: {**CONFIGS["vit"][part], key: value}})
    options = ExportOptions(random_weights=True)
    if expected is None:
        resolve_source(f"local-dir:{folder}", options)
        return
    with pytest.raises(ExportError, match=rf"open_clip_config.json': [^\n]*{expected}"):
        resolve_source(f"local-dir:{folder}", options)


def test_model_larger_than_the_machine_is_refused(tmp_path: Path) -> None:
    sizes = {"width": 65536, "layers": 1024}
    folder = write_config(tmp_path / "model", {**CONFIGS["vit"], "text_cfg": {**CONFIGS["vit"]["text_cfg"], **sizes}})
    with pytest.raises(ExportError, match=r"describes a model of 70,3\d\d GB or more; this machine has"):
        resolve_source(f"local-dir:{folder}", ExportOptions(random_weights=True))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "a pipe or a device"),
        (lambda path: path.symlink_to("/dev/zero"), "a pipe or a device"),
        (lambda path: path.write_text("[" * 100_000), "nested too deeply|JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe{"), "JSON|UTF-8"),
        (
            lambda path: path.write_text('{"model_cfg": {"embed_dim": 4, "vision_cfg": [], "text_cfg": {}}}'),
            "'vision_cfg' that is no object",
        ),
        (
            lambda path: path.write_text('{"model_cfg": {"embed_dim": 0, "vision_cfg": {}, "text_cfg": {}}}'),
            "embed_dim 0",
        ),
    ],
)
def test_unreadable_configuration_is_one_line(make: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    make(tmp_path / "open_clip_config.json")
    with pytest.raises(ExportError, match=rf"^[^\n]*open_clip_config.json'[^\n]*({reason})[^\n]*$"):
        resolve_source(f"local-dir:{tmp_path}", ExportOptions())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "its own Python code"),
        ({"hidden_size": "x"}, "hidden_size 'x'"),
    ],
)
def test_configuration_of_a_text_tower_is_checked(changes: dict[str, object], expected: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", CONFIGS["hf-text"])
    file = folder / "text-tower" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    options = ExportOptions(random_weights=True)
    with pytest.raises(ExportError, match=expected):
        load_model(resolve_source(f"local-dir:{folder}", options), options)
