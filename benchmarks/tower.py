"""The towers alone: a clipmlu session, the plain runtime on the same file, torch eager, and the fastest products.

    python benchmarks/tower.py [--compiled BUNDLE...] [--threads N...] [--rounds N] [--json FILE]

"clipmlu / bare" is the speed of clipmlu relative to the plain runtime: the median of the ratios of the rounds, with
quartiles. The arithmetic of a tower is counted from its exported graph, 2 FLOP for each multiply-accumulate of its
convolutions and matrix products. The ceiling of a dtype is the speed of the fastest library for products of the image
tower's shapes (see ``_ceiling.py``).
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _bundles import add_bundle_options, describe_bundle, obtain_compiled, obtain_exported
from _ceiling import best_rates, measure_ceiling
from _progress import note
from _runtimes import open_onnxruntime, open_openvino
from _sides import MODEL, SEED
from _timing import Row, Sample, compare, cores, print_machine, print_table, take_turns, timed, write_json

from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.embed.encoder import Encoder
from clipmlu.graph.roles import find_operators
from clipmlu.specs import Precision, TowerName

TOWERS: tuple[TowerName, ...] = ("image", "text")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_bundle_options(parser)
    parser.add_argument("--threads", type=int, nargs="+", default=[cores()])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--text-batch-size", type=int, nargs="+", default=[32])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    left_out: dict[str, str] = {}
    bundles = obtain_compiled(options, left_out)
    exported = obtain_exported(options)
    gflop = {name: count_gflop(exported.tower_path(name)) for name in TOWERS}
    print_machine()
    print(", ".join(f"{name} tower: {value:.3f} GFLOP per row" for name, value in gflop.items()) + "\n")
    results = [_measure(bundles, threads, gflop, options) for threads in options.threads]
    for name, reason in left_out.items():
        print(f"Left out: {name}: {reason}\n")
    write_json(options.json, {"benchmark": "tower", "gflop": gflop, "left_out": left_out, "results": results})


def count_gflop(graph: Path) -> float:
    """Return the GFLOP of convolutions and matrix products for one row."""
    return 2e-9 * sum(operator.macs for operator in find_operators(onnx.load(str(graph))))


def _measure(
    bundles: list[CompiledBundle], threads: int, gflop: dict[TowerName, float], options: argparse.Namespace
) -> dict[str, Any]:
    """Measure the ceiling, then both towers at each batch size."""
    print(f"### {threads} thread(s)\n")
    note(f"measuring the fastest matrix products with {threads} thread(s)")
    rates, left_out = measure_ceiling(threads, options.rounds)
    best = best_rates(rates)
    print_table(
        ["dtype", "way", "rows x depth x columns", "GFLOP/s", ""],
        [
            (
                row["dtype"],
                row["way"],
                " x ".join(map(str, row["shape"])),
                f"{row['gflops']:.0f}",
                "ceiling" if row is best[row["dtype"]] else "",
            )
            for row in rates
        ],
    )
    for name, reason in left_out.items():
        print(f"\nLeft out: {name}: {reason}")
    ceilings = {dtype: row["gflops"] for dtype, row in best.items()}
    print()
    rows = []
    with ExitStack() as stack:
        session_options = SessionOptions(threads=threads)
        encoders = [stack.enter_context(Encoder(bundle, session_options)) for bundle in bundles]
        for tower in TOWERS:
            note(f"{tower} tower: opening {len(encoders)} bundle(s) and torch")
            sides = [_TowerSide(encoder, tower, threads) for encoder in encoders]
            eager = _torch_eager(tower, threads)
            for batch_size in options.batch_size if tower == "image" else options.text_batch_size:
                rows += _measure_batch(sides, eager, batch_size, options.rounds)
    for row in rows:
        row["gflops"] = row["rate"] * gflop[row["tower"]]
        row["share"] = row["gflops"] / ceilings[row["dtype"]] if row["dtype"] in ceilings else None
    print_table(
        ["tower", "batch", "side", "rows/s", "bare, rows/s", "clipmlu / bare (quartiles)", "GFLOP/s", "of the ceiling"],
        [_cells(row) for row in rows],
    )
    print()
    return {"threads": threads, "ceiling": rates, "ceiling_left_out": left_out, "rows": rows}


def _cells(row: dict[str, Any]) -> list[str]:
    bare = f"{row['bare_rate']:.1f}" if "bare_rate" in row else ""
    ratio = f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})" if "bare_rate" in row else ""
    share = f"{row['share']:.3f} ({row['dtype']})" if row["share"] is not None else ""
    values = [row["tower"], str(row["batch_size"]), row["side"], f"{row['rate']:.1f}", bare, ratio]
    return [*values, f"{row['gflops']:.0f}", share]


def _measure_batch(sides: list[_TowerSide], eager: Callable[[Any], object], batch_size: int, rounds: int) -> list[Any]:
    """Return one row for each bundle, and one for torch."""
    runs: dict[str, Callable[[], Sample]] = {}
    for side in sides:
        feed = side.draw(batch_size)
        runs[f"bare {side.name}"] = timed(functools.partial(side.run_bare, feed), batch_size)
        runs[side.name] = timed(functools.partial(side.run, feed), batch_size)
    tower = sides[0].tower
    feed = np.asarray(sides[0].draw(batch_size), np.float32 if tower == "image" else np.int64)
    runs["torch eager"] = timed(lambda: eager(feed), batch_size)
    times = take_turns(runs, rounds, what=f"{tower} tower, batch {batch_size}, ")
    rows = []
    for side in sides:
        bare, own = compare({key: times[key] for key in (f"bare {side.name}", side.name)})
        facts = {"bare_rate": bare.rate, "ratio": own.ratio, "low": own.low, "high": own.high}
        rows.append({**_facts(own, tower, batch_size, side.dtype), **facts})
    (torch_row,) = compare({"torch eager": times["torch eager"]})
    return [*rows, _facts(torch_row, tower, batch_size, "float32")]


def _facts(row: Row, tower: TowerName, batch_size: int, dtype: str) -> dict[str, Any]:
    return {"tower": tower, "batch_size": batch_size, "side": row.name, "dtype": dtype, "rate": row.rate}


class _TowerSide:
    """One tower of one bundle, run by clipmlu and by its plain runtime.

    Attributes:
        name: name for the table.
        tower: name of the tower.
        dtype: dtype of the ceiling to compare with.
    """

    def __init__(self, encoder: Encoder, tower: TowerName, threads: int) -> None:
        bundle = encoder.bundle
        placement = bundle.compilation.placement(tower)
        self.name = describe_bundle(bundle)
        self.tower = tower
        self.dtype = _dtype(placement.precision)
        self._encoder = encoder
        self._spec = bundle.tower(tower).inputs[0]
        self._run_bare = _open_bare(bundle, tower, threads)

    def draw(self, rows: int) -> Any:
        """Return one random batch of inputs."""
        shape = (rows, *(int(size) for size in self._spec.shape[1:]))
        generator = np.random.default_rng(0)
        if self._spec.dtype == "float32":
            return generator.standard_normal(shape, dtype=np.float32)
        # Pixels, or token ids that every vocabulary has.
        return generator.integers(0, 256, shape).astype(self._spec.dtype)

    def run(self, feed: Any) -> object:
        """Run the batch with clipmlu."""
        return self._encoder.encode_images(feed) if self.tower == "image" else self._encoder.encode_tokens(feed)

    def run_bare(self, feed: Any) -> object:
        """Run the batch with the plain runtime."""
        return self._run_bare({self._spec.name: feed})


def _dtype(precision: Precision) -> str:
    if precision.bits == 8:
        return "int8"
    return "bfloat16" if "bfloat16" in precision.value else precision.float_type


def _open_bare(bundle: CompiledBundle, tower: TowerName, threads: int) -> Callable[[dict[str, Any]], object]:
    placement = bundle.compilation.placement(tower)
    path, int8 = bundle.tower_path(tower), placement.precision is Precision.QINT8_MIXED_FLOAT32
    if placement.backend == "onnxruntime":
        session = open_onnxruntime(path, threads, int8=int8)
        return lambda feeds: session.run(None, feeds)
    if placement.backend == "openvino":
        hint = "bf16" if _dtype(placement.precision) == "bfloat16" else "f32"
        request = open_openvino(path, threads, hint).create_infer_request()
        return lambda feeds: request.infer(feeds, share_inputs=True)
    raise SystemExit(f"Bundle '{bundle.path}' runs on '{placement.backend}', which has no bare side here.")


def _torch_eager(tower: TowerName, threads: int) -> Callable[[Any], object]:
    import open_clip
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    model = open_clip.create_model(MODEL).eval()
    encode = model.encode_image if tower == "image" else model.encode_text

    def run(feed: Any) -> object:
        with torch.inference_mode():
            return encode(torch.from_numpy(feed))

    return run


if __name__ == "__main__":
    main()
