"""Rounding and accumulation in half precision (api 7.11)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from .bench import Bench, Session
from .calls import CallLog
from .findings import Array, Fields, Finding
from .probe import probe
from .results import largest_difference


def _half_model(bench: Bench, graph: str, *more: Fields, precision: str = "force_float16") -> Session:
    return Session(bench, bench.build(graph, *bench.usual(precision=precision), *more), bench.device())


_HALF_CASES = ("rounding", "overflow", "subnormal numbers", "sum of 4096 ones", "matrix product")


@probe("float16", "7.11", "How does force_float16 round, and how does it accumulate?", cases=_HALF_CASES)
def _float16(bench: Bench, case: str) -> Finding:
    if case == "matrix product":
        return _half_product(bench)
    if case.startswith("sum"):
        total = float(_half_model(bench, "ones").run(np.ones((1, 4096), np.float32))[0].flat[0])
        kinds = {4096.0: "float32 (or wider)", 2048.0: "float16, one after the other"}
        return Finding(f"{total:g}: accumulated in {kinds.get(total, 'another way')}", total=total)
    numbers = {
        "rounding": [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 1.25 * 2.0**-10, 1 + 1.75 * 2.0**-10, -1 - 2.0**-11, 0, 0, 0],
        "overflow": [40000.0, -40000.0, 32752.0, 32760.0, 100000.0, 0, 0, 0],
        "subnormal numbers": [2.0**-15, 2.0**-20, 2.0**-24, 2.0**-25, 2.0**-30, 0, 0, 0],
    }[case]
    values = np.array([numbers], np.float32)
    result = _half_model(bench, "double").run(values)[0].astype(np.float64).reshape(-1)
    seen = [float(each) for each in result[:5]]
    return Finding({"rounding": _name_rounding, "overflow": _name_overflow}.get(case, _name_subnormal)(seen), seen=seen)


def _name_rounding(seen: Sequence[float]) -> str:
    ulps = tuple(round((abs(value) / 2 - 1) * 2**11, 3) for value in seen)
    known: dict[tuple[float, ...], str] = {
        (0, 4, 2, 4, 0): "to nearest, ties to even",
        (2, 4, 2, 4, 2): "to nearest, ties away from zero",
        (0, 2, 2, 2, 0): "towards zero",
        (1, 3, 2.5, 3.5, 1): "not at all",
    }
    return known.get(ulps, f"in another way: {list(ulps)} half ulps above 1")


def _name_overflow(seen: Sequence[float]) -> str:
    value = seen[0]
    if value == float("inf"):
        return "infinity"
    return (
        "saturates at 65504" if value == 65504 else "float32 range" if abs(value - 80000) < 64 else f"becomes {value:g}"
    )


def _name_subnormal(seen: Sequence[float]) -> str:
    kept = [abs(seen[number] / 2 - power) <= power / 8 for number, power in enumerate((2.0**-15, 2.0**-20, 2.0**-24))]
    if all(kept):
        return "kept"
    return "flushed to zero" if not any(seen[:3]) else f"become {seen[:3]}"


def _half_product(bench: Bench) -> Finding:
    feed, weight = bench.arrays("half", "in")[0], np.load(os.path.join(bench.graphs, "half.weight.npy"))
    result = _half_model(bench, "half").run(feed)[0].astype(np.float64)
    fits = {name: largest_difference(result, value) for name, value in half_candidates(feed, weight).items()}
    best = min(fits, key=lambda name: fits[name])
    return Finding(best, differences=fits, error=largest_difference(result, bench.arrays("half", "out")[0]))


def half_candidates(feed: Array, weight: Array) -> dict[str, Array]:
    """The product of two matrices in each way in which ``force_float16`` may compute it: description -> float values."""
    exact = feed.astype(np.float64) @ weight.astype(np.float64)
    rounded = feed.astype(np.float16), weight.astype(np.float16)
    wide = rounded[0].astype(np.float64) @ rounded[1].astype(np.float64)
    narrow = np.zeros(exact.shape, np.float16)
    for number in range(feed.shape[1]):  # each product and each sum rounded to float16
        narrow = (narrow + rounded[0][:, number : number + 1] * rounded[1][number]).astype(np.float16)
    return {
        "inputs rounded, accumulated in float32, result rounded": wide.astype(np.float16),
        "inputs rounded, accumulated in float32, result not rounded": wide,
        "inputs rounded, accumulated in float16": narrow,
        "inputs not rounded, result rounded": exact.astype(np.float16),
        "nothing rounded": exact,
    }


@probe(
    "preference",
    "7.11",
    "What does computation_preference change? Largest error of a product of 512 terms.",
    cases=("force_float32", *(f"force_float16, {name}" for name in ("auto", "fast", "high_precision"))),
)
def _preference(bench: Bench, case: str) -> Finding:
    precision, _, preference = case.partition(", ")
    more = [{"computation_preference": preference}] if preference else []
    result = _half_model(bench, "half", *more, precision=precision).run(*bench.arrays("half", "in"))[0]
    error = largest_difference(result, bench.arrays("half", "out")[0])
    return Finding(f"{error:.2g}", error=error)


@probe(
    "node-types",
    "7.11",
    "Does set_precision on a node change what force_float16 computes? Largest error of a product of 512 terms.",
    cases=("as built", "inputs FLOAT32", "inputs and output FLOAT32", "output of the model FLOAT16"),
)
def _node_types(bench: Bench, case: str) -> Finding:
    network = bench.network("half")
    log = CallLog()
    if "inputs" in case:
        node = next(each for each in network.get_all_nodes_in_network() if "MatMul" in each.get_node_name())
        for number in (0, 1):
            log.call(f"set_precision {number}", node.set_precision, number, bench.sdk.DataType.FLOAT32)
        if "output" in case:
            log.call("set_output_type", node.set_output_type, 0, bench.sdk.DataType.FLOAT32)
    elif "FLOAT16" in case:
        log.call("set_data_type", network.get_output(0).set_data_type, bench.sdk.DataType.FLOAT16)
    config = bench.config(*bench.usual(precision="force_float16"))
    model = log.make("build_model", bench.sdk.Builder().build_model, "probe", network, config)
    session = log.make("open", lambda: Session(bench, model, bench.device()))
    result = log.call("run", lambda: session.run(*bench.arrays("half", "in"))[0])
    if not log.good:
        return log.finding()
    error = largest_difference(result, bench.arrays("half", "out")[0])
    return Finding(f"{error:.2g}, {result.dtype}", error=error)
