"""Accuracy of each mode and each step of quantisation: an exported bundle, a labelled dataset, one table.

    python benchmarks/quantisation_accuracy.py BUNDLE --data-dir DIR [--part modes|ladder] [--samples N]

``modes`` compiles the six modes for the CPU and for the emulated card with the vendor's recipe (per_tensor, linear,
symmetric). ``ladder`` improves on that recipe step by step in the two 8-bit modes: the one with float32 on the CPU's
integer kernels, the one with float16 on the emulated card. Agreement is the share of images with the same best class as
in float32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _progress import Progress, note

from clipmlu import CompileOptions, EvalOptions, Precision, compile_bundle, evaluate, open_dataset
from clipmlu.bundle.directory import ExportedBundle, open_exported
from clipmlu.bundle.manifest import emulated_mark
from clipmlu.data.calibration import CalibrationOptions, obtain_calibration
from clipmlu.data.calibration_set import CalibrationSet
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import PrecisionError
from clipmlu.measure.accuracy.tally import ImageResult
from clipmlu.specs import SMOOTHED_ROLES, QuantisationOptions

_NOTED = 1000
Run = tuple[str, str, Precision, QuantisationOptions | None]
AXIS = QuantisationOptions(granularity="per_axis")
LADDER = {
    "vendor recipe": QuantisationOptions(),
    "per_axis": AXIS,
    "per_axis, asymmetric": QuantisationOptions(granularity="per_axis", activation="asymmetric"),
    "per_axis, eqnm": QuantisationOptions(granularity="per_axis", algorithm="eqnm"),
    "per_axis, percentile": QuantisationOptions(granularity="per_axis", algorithm="percentile"),
    "per_axis, entropy": QuantisationOptions(granularity="per_axis", algorithm="entropy"),
    "per_axis, smoothing 0.5": QuantisationOptions(
        granularity="per_axis", smooth_alpha=dict.fromkeys(SMOOTHED_ROLES, 0.5)
    ),
    "per_axis, smoothing 0.5, float mlp_out": QuantisationOptions(
        granularity="per_axis", smooth_alpha=dict.fromkeys(SMOOTHED_ROLES, 0.5), keep_float=("mlp_out",)
    ),
    "per_axis, smoothing 0.75": QuantisationOptions(
        granularity="per_axis", smooth_alpha=dict.fromkeys(SMOOTHED_ROLES, 0.75)
    ),
    "per_axis, asymmetric, smoothing 0.75": QuantisationOptions(
        granularity="per_axis", activation="asymmetric", smooth_alpha=dict.fromkeys(SMOOTHED_ROLES, 0.75)
    ),
    "per_axis, asymmetric, smoothing 0.75, float attention and projection": QuantisationOptions(
        granularity="per_axis",
        activation="asymmetric",
        smooth_alpha=dict.fromkeys(SMOOTHED_ROLES, 0.75),
        keep_float=("attention_scores", "attention_values", "projection"),
    ),
}


class Measurement:
    """Compiles and evaluates one configuration after the other, and prints a row for each."""

    def __init__(self, exported: ExportedBundle, arguments: argparse.Namespace) -> None:
        self._exported = exported
        self._dataset = open_dataset(arguments.dataset, "test", data_dir=arguments.data_dir, download=False)
        self._samples = arguments.samples
        options = CalibrationOptions(
            dataset=arguments.dataset, samples=arguments.calib_samples, data_dir=arguments.data_dir, download=False
        )
        self._calibration: CalibrationSet = obtain_calibration(exported, options)
        self._reference: np.ndarray | None = None
        self._reference_top1 = 0.0
        self._log = arguments.log
        print("| what | target | top1 | top5 | drop, points | agreement | quantised work | images/s |", flush=True)
        print("|---|---|---|---|---|---|---|---|", flush=True)

    def run(self, label: str, target: str, precision: Precision, how: QuantisationOptions | None) -> None:
        """Measure and print one row."""
        quantises = precision.bits is not None
        options = CompileOptions(
            target=target,
            precision=precision,
            quantisation=how if quantises else None,
            calibration=self._calibration if quantises else None,
            min_cosine=-1.0 if quantises else None,
            min_agreement=0.0 if quantises else None,
        )
        results: list[ImageResult] = []
        with tempfile.TemporaryDirectory() as folder:
            compiled = compile_bundle(self._exported, Path(folder) / "bundle", options)
            with Encoder(compiled) as encoder:
                start = time.perf_counter()
                total = len(self._dataset) if self._samples is None else self._samples
                how_many = EvalOptions(samples=self._samples, cache=False)
                report = evaluate(
                    encoder, self._dataset, how_many, on_result=_keep_and_report(results, f"{label}, {target}", total)
                )
                elapsed = time.perf_counter() - start
            records = compiled.compilation.quantised.values()
        predicted = np.array([result.ranked[0] for result in results])
        if self._reference is None:
            self._reference, self._reference_top1 = predicted, report.top1
        macs = sum(record.macs for record in records)
        row: dict[str, Any] = {
            "what": label,
            "target": f"{target}{emulated_mark(report.provenance.emulated)}",
            "top1": report.top1,
            "top5": report.top5,
            "drop": 100 * (self._reference_top1 - report.top1),
            "agreement": float(np.mean(predicted == self._reference)),
            "quantised": sum(record.quantised_macs for record in records) / macs if macs else 0.0,
            "images_per_second": len(results) / elapsed,
        }
        shown = [f"{row[key]:.4f}" for key in ("top1", "top5")] + [f"{row['drop']:+.2f}", f"{row['agreement']:.4f}"]
        print(
            f"| {row['what']} | {row['target']} | {' | '.join(shown)} | {row['quantised']:.3f} "
            f"| {row['images_per_second']:.0f} |",
            flush=True,
        )
        if self._log is not None:
            with self._log.open("a") as stream:
                stream.write(json.dumps(row) + "\n")


def _keep_and_report(results: list[ImageResult], name: str, total: int) -> Callable[[ImageResult], None]:
    """Return a function that appends to ``results`` and prints a line on stderr for every thousand images."""
    start = time.perf_counter()

    def keep(result: ImageResult) -> None:
        results.append(result)
        if len(results) % _NOTED == 0:
            rate = len(results) / (time.perf_counter() - start)
            note(f"{name}: {len(results)} of {total} images, {rate:.0f}/s, {(total - len(results)) / rate:.0f} s left")

    return keep


def _plan(part: str) -> Iterator[Run]:
    """Yield label, target, precision and quantisation of each row."""
    yield "force_float32", "cpu", Precision.FORCE_FLOAT32, None
    if part in ("modes", "all"):
        for precision, target in itertools.product(Precision, ("cpu", "emulated-mlu")):
            if (precision, target) != (Precision.FORCE_FLOAT32, "cpu"):
                yield precision.value, target, precision, QuantisationOptions()
    if part in ("ladder", "all"):
        for label, how in LADDER.items():
            yield f"int8/float32, {label}", "cpu", Precision.QINT8_MIXED_FLOAT32, how
            yield f"int8/float16, {label}", "emulated-mlu", Precision.QINT8_MIXED_FLOAT16, how


def main() -> int:
    """Run the requested part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="an exported bundle")
    parser.add_argument("--dataset", default="cifar100")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--part", choices=["modes", "ladder", "all"], default="all")
    parser.add_argument("--samples", type=int, help="test images; all by default")
    parser.add_argument("--calib-samples", type=int, default=512)
    parser.add_argument("--log", type=Path, help="also append each row as JSON to this file")
    arguments = parser.parse_args()
    measurement = Measurement(open_exported(arguments.bundle), arguments)
    plan, left_out = list(_plan(arguments.part)), {}
    progress = Progress(f"{label}, {target}" for label, target, _, _ in plan)
    for label, target, precision, how in plan:
        name = f"{label}, {target}"
        try:
            measurement.run(label, target, precision, how)
        except PrecisionError as error:
            left_out[name] = str(error)
            progress.drop(name, str(error))
        else:
            progress.step(name, "measured")
    for name, reason in left_out.items():
        print(f"\nLeft out: {name}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
