"""What an install without extras can do, and what it says about the rest: all other packages are hidden from a subprocess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.specs import Precision
from conftest import REPOSITORY
from only_base import base_packages, modules_of

Result = tuple[int, str, str]

COMMANDS = {
    "classify": "classify tiny-cpu photos --labels cat,dog --format json",
    "classify in 8 bits": "classify tiny-int8 photos --labels cat,dog --format json",
    "classify with uint8 pixels": "classify tiny-uint8 photos --labels cat,dog --format json",
    "embed": "embed tiny-cpu photos -o rows.npy",
    "embed as a job": "embed tiny-cpu photos -o job --shard-format npy",
    "job": "job job",
    "index": "index job",
    "search": "search job cat --json",
    "eval": "eval tiny-cpu --dataset imagefolder:sorted --output eval.json",
    "bench": "bench tiny-int8 --tower image --scenario offline --duration 100 --warmup 0 --no-stages --output bench.json",
    "calibrate": "calibrate tiny --calib imagefolder:sorted --calib-samples 4 -o calibration-set",
    "info": "info tiny-cpu",
    "doctor": "doctor",
    "datasets": "datasets",
    "worker": "worker --write worker.pyz",
    "classify on the emulator": "classify tiny-mlu photos --labels cat,dog",
    "classify on OpenVINO": "classify tiny-openvino photos --labels cat,dog",
    "classify with another tokenizer": "classify words-cpu photos --labels cat,dog",
    "embed images with another tokenizer": "embed words-cpu photos -o words.npy",
    "embed on OpenVINO": "embed tiny-openvino photos -o openvino --shard-format npy",
    "emulate": "emulate -- python -c pass",
    "compile": "compile tiny --target cpu -o again",
    "compile for the emulator": "compile tiny --target emulated-mlu -o emulated",
    "compile in 8 bits": "compile tiny --target cpu --precision int8 --calib imagefolder:sorted -o int8",
    "compile with a search": "compile tiny --target cpu --max-drop 0.1 --calib imagefolder:sorted -o searched",
    "sweep": "sweep tiny --precision force_float32 -o swept",
    "lower": "lower tiny --for mlu -o lowered",
    "compare": "compare tiny-cpu tiny --dataset imagefolder:sorted",
    "import": "import tiny/image.onnx tiny/text.onnx -o imported",
    "probe": "doctor --write-probe probes",
    "export": "export ViT-B-32 -o exported",
    "embed on Ray": "embed tiny-cpu photos -o rays --shard-format npy --engine ray",
    "serve": "serve tiny-cpu --port 0",
}
NEEDS_COMPILE = {
    "emulate": "The emulated SDK",
    "compile": "Compiling a bundle",
    "compile for the emulator": "Compiling a bundle",
    "compile in 8 bits": "Compiling a bundle",
    "compile with a search": "Searching quantisation options",
    "sweep": "A sweep",
    "lower": "Lowering a bundle",
    "compare": "Comparing nodes",
    "import": "Importing ONNX files",
    "probe": "Making the probes' graphs",
}
"""Maps a command to what its message says about why it needs the extra."""
NEEDS_OTHERS = (
    "classify with another tokenizer",
    "classify on the emulator",
    "classify on OpenVINO",
    "embed on OpenVINO",
    "export",
    "embed on Ray",
    "serve",
)
WORKS = [name for name in COMMANDS if name not in (*NEEDS_COMPILE, *NEEDS_OTHERS)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """What each of ``COMMANDS`` gave, in one process that finds the packages of the base install only."""
    folder = tmp_path_factory.mktemp("base")
    _write_pictures(folder)
    exported = support.write_exported(folder / "tiny")
    compiled = _compile(exported, "cpu", Precision.FORCE_FLOAT32)
    _compile(support.write_exported(folder / "words", needs_tokenizers=True), "cpu", Precision.FORCE_FLOAT32)
    support.with_compilation(compiled, folder / "tiny-openvino", backend="openvino", target="openvino")
    _compile(exported, "mlu", Precision.FORCE_FLOAT16, target="emulated-mlu")
    _compile(exported, "int8", Precision.QINT8_MIXED_FLOAT32)
    _compile(exported, "uint8", Precision.FORCE_FLOAT32, uint8_input=True)
    program = REPOSITORY / "tests" / "only_base.py"
    commands = json.dumps([command.split() for command in COMMANDS.values()])
    environment = {**os.environ, "CLIPMLU_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, program, commands], capture_output=True, text=True, check=False, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(COMMANDS, map(tuple, json.loads(done.stdout)), strict=True))


def _write_pictures(folder: Path) -> None:
    for number in range(8):
        for place in ("photos", f"sorted/{support.NAMES[number % 2]}"):
            _save_picture(number, folder / place)
    for number in range(8, 12):  # others, since images of a calibration are no test of it
        _save_picture(number, folder / "calibration")


def _save_picture(number: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    support.picture(number).save(folder / f"{number}.png")


def _compile(
    exported: ExportedBundle, name: str, precision: Precision, target: str = "cpu", **options: Any
) -> CompiledBundle:
    photos = exported.path.with_name("calibration")
    calibration = None if precision.bits is None else CalibrationOptions(dataset=str(photos), samples=4)
    wanted = CompileOptions(
        target=target, precision=precision, batch_size=4, max_batch=8, calibration=calibration, **options
    )
    return compile_bundle(exported, exported.path.with_name(f"{exported.path.name}-{name}"), wanted)


@pytest.mark.parametrize("name", WORKS)
def test_command_needs_no_extra(results: dict[str, Result], name: str) -> None:
    code, _out, err = results[name]
    assert code == 0, err


@pytest.mark.parametrize("name", NEEDS_COMPILE)
def test_command_that_reads_graphs_names_the_extra_at_once(results: dict[str, Result], name: str) -> None:
    code, out, err = results[name]
    assert (code, out) == (1, "")
    extras = "compile,tokenizers" if name == "import" else "compile"
    assert err.splitlines() == [
        f"clipmlu: {NEEDS_COMPILE[name]} needs 'onnx', which is not installed. "
        f"Install it with: pip install 'clipmlu[{extras}]'"
    ]


def test_bundle_of_the_emulator_names_the_extra(results: dict[str, Result]) -> None:
    code, out, err = results["classify on the emulator"]
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "clipmlu: The emulated MagicMind SDK cannot be used here: the package 'onnx' is not installed; "
        "pip install 'clipmlu[compile]'."
    )


def test_export_names_its_extra(results: dict[str, Result]) -> None:
    code, out, err = results["export"]
    assert (code, out) == (1, "")
    assert "pip install 'clipmlu[export]'" in err


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("serve", "serve"),
        ("embed on Ray", "ray"),
        ("classify with another tokenizer", "tokenizers"),
        ("classify on OpenVINO", "openvino"),
        ("embed on OpenVINO", "openvino"),
    ],
)
def test_command_names_its_extra_in_one_line(results: dict[str, Result], name: str, extra: str) -> None:
    code, out, err = results[name]
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert f"pip install 'clipmlu[{extra}]'" in err


def test_doctor_names_the_extra_that_compiles(results: dict[str, Result]) -> None:
    code, out, _err = results["doctor"]
    assert code == 0
    assert "pip install 'clipmlu[compile]'" in out


def test_base_install_has_no_large_package_of_an_extra() -> None:
    large = {
        "onnx",
        "tokenizers",
        "huggingface_hub",
        "onnx-ir",
        "sympy",
        "torch",
        "open_clip_torch",
        "onnxscript",
        "transformers",
        "pyarrow",
        "pandas",
        "matplotlib",
    }
    assert base_packages() & large == set()
    assert {"onnxruntime", "numpy", "PIL", "regex"} <= modules_of(base_packages())
