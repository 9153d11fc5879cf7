"""Bundles for the scripts: given on the command line, or created once in the working directory."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _progress import note

from clipmlu import CompileOptions, ExportOptions, Precision, compile_bundle, export_model
from clipmlu.backends import TARGETS, get_backend
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled, open_exported
from clipmlu.bundle.manifest import emulated_mark
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.errors import ClipmluError
from clipmlu.specs import Layout

MODEL = "ViT-B-32"
_DEMO_BATCH_SIZE = 32
DEFAULT_WORK = Path(tempfile.gettempdir()) / "clipmlu-benchmarks"


def add_bundle_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that locate bundles."""
    parser.add_argument(
        "--work", type=Path, default=DEFAULT_WORK, help="where things are made and kept for the next run"
    )
    parser.add_argument("--exported", type=Path, help=f"exported {MODEL} with random weights; made if left out")
    parser.add_argument(
        "--compiled", type=Path, nargs="*", default=[], help="bundles compiled from it, besides --target"
    )
    parser.add_argument("--target", nargs="*", default=None, help="targets to compile for; all real CPU targets here")
    parser.add_argument("--calib", help="calibrate an int8 bundle per target with this folder, dataset or set")


def obtain_exported(options: argparse.Namespace, layout: Layout = "towers") -> ExportedBundle:
    """Return the exported bundle, given or created."""
    if layout == "towers" and options.exported is not None:
        return open_exported(options.exported, verify=False)
    path: Path = options.work / f"{MODEL}-{layout}"
    if not path.exists():
        note(f"exporting {MODEL} as {layout}")
        export_model(MODEL, path, ExportOptions(random_weights=True, layout=layout))
    return open_exported(path, verify=False)


def obtain_compiled(options: argparse.Namespace, left_out: dict[str, str]) -> list[CompiledBundle]:
    """Return the given bundles and one for each target and precision of this machine; fill ``left_out`` with reasons."""
    bundles = [open_compiled(path, verify=False) for path in options.compiled]
    exported = obtain_exported(options)
    for target in options.target if options.target is not None else cpu_targets():
        backend = get_backend(TARGETS[target])
        availability = backend.probe()
        if not availability.ok:
            left_out[f"clipmlu {target}"] = availability.reason
            continue
        for precision in filter(_is_fast, Precision):
            if precision not in backend.precisions:
                if reason := backend.why_not(precision):
                    left_out[f"clipmlu {target} {precision.value}"] = reason
                continue
            note(f"opening or compiling: clipmlu {target} {precision.value}")
            try:
                bundles.append(_compile(exported, target, precision, options))
            except ClipmluError as error:
                left_out[f"clipmlu {target} {precision.value}"] = str(error)
    return bundles


def cpu_targets() -> list[str]:
    """Return the targets that run on the CPU and are not emulated."""
    backends = {target: get_backend(name) for target, name in TARGETS.items()}
    return [target for target, backend in backends.items() if not backend.has_cards and not backend.emulated]


def describe_bundle(bundle: CompiledBundle) -> str:
    """Return the bundle's name for tables."""
    facts = bundle.compilation
    mark = emulated_mark(facts.emulated)
    pixels = bundle.tower("image").inputs[0].dtype
    return f"clipmlu {facts.target} {facts.precision.value}{' uint8' if pixels == 'uint8' else ''}{mark}"


def _is_fast(precision: Precision) -> bool:
    """Return whether a CPU computes the mode natively; it simulates the other modes of a card."""
    names = (Precision.FORCE_FLOAT32, Precision.QINT8_MIXED_FLOAT32)
    return precision in names or "bfloat16" in precision.value


def _compile(
    exported: ExportedBundle, target: str, precision: Precision, options: argparse.Namespace
) -> CompiledBundle:
    source = json.loads((exported.path / "manifest.json").read_text())["export"]["weights_digest"][:8]
    quantises = precision.bits is not None
    name = f"{MODEL}-{source}-{target}-{precision.value}{'-recommended' if quantises else ''}"
    path: Path = options.work / name
    if path.exists():
        return open_compiled(path, verify=False)
    if quantises and options.calib is None:
        raise ClipmluError("needs calibration images: give --calib, or a compiled bundle as --compiled")
    how = CompileOptions(
        target=target,
        precision=precision,
        calibration=CalibrationOptions(dataset=options.calib, samples=128, download=False) if quantises else None,
        # With random weights all images have nearly the same result, so agreement has no meaning.
        min_cosine=-1.0,
        min_agreement=0.0,
    )
    return compile_bundle(exported, path, how)


def obtain_demo(work: Path) -> Path:
    """Return the demo model, compiled for the CPU; made if it is not there."""
    compiled = work / "demo-cpu"
    if not compiled.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        for command in (
            ["export", "demo", "-o", str(work / "demo"), "--overwrite"],
            [
                "compile",
                str(work / "demo"),
                "-o",
                str(compiled),
                "--target",
                "cpu",
                "--batch-size",
                str(_DEMO_BATCH_SIZE),
                "--dynamic-shape",
            ],
        ):
            subprocess.run([sys.executable, "-m", "clipmlu", *command], check=True, stdout=subprocess.DEVNULL)
    return compiled
