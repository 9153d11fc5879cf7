"""Names that do not exist: the answer has the right ones, and the one that was probably meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clipmlu.bundle.directory import ExportedBundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.data.prompts import resolve_templates
from clipmlu.errors import OptionError, UnknownNameError
from clipmlu.specs import MluBuild, Precision, QuantisationOptions

Run = Callable[..., tuple[int, str]]

COMMANDS = [
    ("compile B --precision fp8 -o O", "'fp8' is not one of fp32, fp16, bf16, int8,", "Did you mean 'fp16' or 'int8'?"),
    ("compile B --precision int-8 -o O", "'int-8' is not one of", "Did you mean 'int8'?"),
    ("compile B --target opnvino -o O", "'opnvino' is not one of auto, cpu, openvino, mlu", "Did you mean 'openvino'?"),
    ("compile B --target magicmind -o O", "'magicmind' is not one of", "Did you mean 'mlu'?"),
    ("compile B --granularity per_channel -o O", "not one of per_tensor, per_axis", "Did you mean 'per_axis'?"),
    ("compile B --calib-algo minmax -o O", "not one of linear, eqnm, percentile", "Did you mean 'linear'?"),
    ("compile B --mlu-arch mlu370 -o O", "not one of mtp_372, mtp_592", "Did you mean 'mtp_372'?"),
    ("export demo --layout tower -o O", "'tower' is not one of towers, joint", "Did you mean 'towers'?"),
    ("sweep B --precision fp32,fp61 -o O", "precision is 'fp61'; expected one of", "Did you mean 'fp16'"),
    ("embed B x.png --shard-format parket -o O", "is not one of parquet, npy, csv, jsonl", "Did you mean 'parquet'?"),
    ("compile B --precison fp16 -o O", "'--precison'", "Did you mean '--precision'?"),
    ("compile B --dtype fp16 -o O", "No such option '--dtype'", "Did you mean '--precision'?"),
    ("comple B", "'comple'", "'compile'"),
    ("run demo --dataset cifar-1000 -o O", "Unknown dataset 'cifar-1000'", "Did you mean 'cifar100'"),
]
MODELS = [
    ("export ViT-B-32 -o O", "clipmlu export ViT-B-32::openai -o vit-b-32", "clipmlu models ViT-B-32"),
    ("export vit_b32 --pretrained openai -o O", "Unknown model 'vit_b32'", "Did you mean 'ViT-B-32::openai'?"),
    ("export ViT-B-32-openai -o O", "Unknown model", "Did you mean 'ViT-B-32::openai'?"),
    ("run ViT-B-32::opnai --dataset demo -o O", "Unknown pretrained tag 'opnai'", "Did you mean 'openai'?"),
    ("export ViT-B-32::best -o O", "Recommended: openai, datacomp_xl", "'clipmlu models ViT-B-32' lists all"),
    (
        "export ./demo -o O",
        "Unknown model './demo'",
        "hf-hub:org/name for a repository in open_clip's format, hf:org/name for one of transformers, ms:org/name for one of ModelScope, or local-dir:./demo.",
    ),
    ("export somebody/clip -o O", "Unknown model 'somebody/clip'", "hf:somebody/clip for one of transformers"),
    ("export hf:clip -o O", "model is 'hf:clip'", "expected hf:org/name"),
    ("export hf:a/b--c -o O", "model is 'hf:a/b--c'", "expected hf:org/name"),
    ("export hf-hub:a/.b -o O", "model is 'hf-hub:a/.b'", "expected hf-hub:org/name"),
    ("export ms:foo -o O", "model is 'ms:foo'", "expected ms:org/name, or ms:org/name@revision"),
    (
        "export ms:a/b --pretrained openai -o O",
        "model 'ms:a/b' has its own weights",
        "leave out the pretrained weights",
    ),
    (
        "export ms:a/b --offline -o O",
        "'ms:a/b@master' is not in the cache '",
        "give a directory with its files as local-dir:PATH",
    ),
    ("export https://modelscope.cn/models/a/b -o O", "Unknown model", "Did you mean 'ms:a/b'?"),
    ("models siglip-so400m", "Unknown model", "Did you mean 'ViT-SO400M-14-SigLIP'?"),
]
PYTHON: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: CompileOptions(precision="fp8"), OptionError, "precision is 'fp8'; .* Did you mean 'fp16' or 'int8'"),  # type: ignore[arg-type]
    (lambda: CompileOptions(target="cpuu"), OptionError, "target is 'cpuu'; expected one of auto, cpu, .*mean 'cpu'"),  # type: ignore[arg-type]
    (
        lambda: QuantisationOptions(granularity="per_channel"),  # type: ignore[arg-type]
        OptionError,
        "granularity is 'per_channel'; expected one of per_tensor, per_axis. Did you mean 'per_axis'?",
    ),
    (lambda: resolve_templates("imagenet"), UnknownNameError, "Unknown template set 'imagenet'. .*'openai-imagenet'"),
    (lambda: MluBuild(archs={"mtp_373": (6,)}), OptionError, "architecture is 'mtp_373'; .*Did you mean 'mtp_372'"),
]


@pytest.mark.parametrize(("command", "told", "meant"), COMMANDS)
def test_the_command_line_names_the_right_ones(
    run: Run, exported: ExportedBundle, tmp_path: Path, command: str, told: str, meant: str
) -> None:
    paths = {"B": exported.path, "O": tmp_path / "out"}
    code, line = run(*(paths.get(word, word) for word in command.split()))
    assert code in {1, 2}
    assert told in line
    assert meant in line
    assert not (tmp_path / "out").exists()


@pytest.mark.torch
@pytest.mark.parametrize(("command", "told", "next_step"), MODELS)
def test_the_command_line_names_the_right_models(
    run: Run, tmp_path: Path, command: str, told: str, next_step: str
) -> None:
    pytest.importorskip("open_clip", reason="needs the export extra (open_clip)", exc_type=ImportError)
    code, line = run(*(tmp_path / "out" if word == "O" else word for word in command.split()))
    assert code in {1, 2}
    assert told in line
    assert next_step in line


@pytest.mark.parametrize(("call", "error", "told"), PYTHON)
def test_python_names_the_right_ones(call: Callable[[], object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ("fp32", "force_float32"),
        ("FLOAT32", "force_float32"),
        ("fp16", "force_float16"),
        ("Float16", "force_float16"),
        ("bf16", "force_bfloat16"),
        ("bfloat16", "force_bfloat16"),
        ("int8", "qint8_mixed_float32"),
        ("INT16", "qint16_mixed_float32"),
        ("Force_Float16", "force_float16"),
    ],
)
def test_a_precision_has_short_names(given: str, mode: str) -> None:
    assert Precision(given).value == mode
    assert CompileOptions(precision=given).precision.value == mode  # type: ignore[arg-type]
