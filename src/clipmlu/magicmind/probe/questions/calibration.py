"""How the calibrator reads its data (api 7.10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .bench import Bench
from .calls import CallLog, need
from .findings import Array, Fields, Finding
from .probe import probe


class Recorder:
    """Calibration data that records which of its methods the SDK calls.

    Args:
        bench: gives the SDK.
        batches: one array each.
        calls: gets an entry for each call, such as ``0.next``.
        number: index of the network's input.
    """

    def __init__(self, bench: Bench, batches: Sequence[Array], calls: list[str], number: int) -> None:
        sdk: Any = bench.sdk
        step = [0]
        held = list(batches) or [np.zeros((2, 8), np.float32)]  # asked for too early, or where there are none

        class Data(sdk.CalibDataInterface):  # type: ignore[misc]
            def next(self) -> Any:
                calls.append(f"{number}.next")
                if step[0] >= len(batches):
                    return sdk.Status(sdk.Code.OUT_OF_RANGE, "no more data")
                step[0] += 1
                return sdk.Status.OK()

            def reset(self) -> Any:
                calls.append(f"{number}.reset")
                step[0] = 0
                return sdk.Status.OK()

            def get_sample(self) -> Array:
                calls.append(f"{number}.get_sample")
                return held[max(0, step[0] - 1)]

            def get_shape(self) -> Any:
                calls.append(f"{number}.get_shape")
                return sdk.Dims(list(held[max(0, step[0] - 1)].shape))

            def get_data_type(self) -> Any:
                calls.append(f"{number}.get_data_type")
                return getattr(sdk.DataType, "FLOAT32" if held[0].dtype == np.float32 else "INT32")

        self.data = Data()


def make_batches(count: int) -> list[Array]:
    """A number of batches for the graph "base": float32, shape (2, 8) each."""
    return [np.full((2, 8), 0.5 + number, np.float32) for number in range(count)]


def _quantised(bench: Bench, *parts: Fields) -> Any:
    return bench.config(*bench.usual(precision="qint8_mixed_float32"), *parts)


_CALIBRATIONS = (
    "calls, LINEAR",
    "calls, EQNM",
    "twice on one network",
    "unequal lengths",
    "no data at all",
    "an input of integers",
    "a mode that quantises nothing",
    "another batch size than the network's",
)


@probe("calibration", "7.10", "How does the calibrator go through its data?", cases=_CALIBRATIONS)
def _calibration(bench: Bench, case: str) -> Finding:
    need("active", bench.device().active)
    sdk = bench.sdk
    calls: list[str] = []
    graph = {"unequal lengths": "two", "an input of integers": "tokens"}.get(case, "base")
    lengths = {"unequal lengths": (3, 2), "no data at all": (0,)}.get(case, (3,))
    sources = [make_batches(length) for length in lengths]
    if graph == "tokens":
        sources = [[np.arange(6, dtype=np.int32).reshape(2, 3)] * 3]
    if case.startswith("another batch"):
        sources = [[np.ones((3, 8), np.float32)] * 3]
    network = bench.network(graph)
    config = bench.config(*bench.usual()) if "nothing" in case else _quantised(bench)

    def calibrate() -> Any:
        data = [Recorder(bench, batches, calls, number).data for number, batches in enumerate(sources)]
        calibrator = sdk.Calibrator(data)
        algorithm = sdk.QuantizationAlgorithm
        chosen = algorithm.EQNM_ALGORITHM if "EQNM" in case else algorithm.LINEAR_ALGORITHM
        need("set_quantization_algorithm", calibrator.set_quantization_algorithm, chosen)
        return calibrator.calibrate(network, config)

    log = CallLog()
    log.call("calibrate", calibrate)
    if case == "twice on one network":
        log.call("again", calibrate)
    if log.good:
        log.make("build_model", sdk.Builder().build_model, "probe", network, config)
    raw = {"calls": calls[:80], "next": calls.count("0.next"), "reset": calls.count("0.reset")}
    if case.startswith("calls") and log.good:
        return Finding(_describe_calls(calls), good=True, **raw)
    return log.finding(**raw)


def _describe_calls(calls: Sequence[str]) -> str:
    first = next((number for number, call in enumerate(calls) if call == "0.next"), len(calls))
    second = next((number for number, call in enumerate(calls) if call == "0.next" and number > first), len(calls))
    before = [call.partition(".")[2] for call in calls[:first]]
    step = [call.partition(".")[2] for call in calls[first:second]]
    passes = calls.count("0.reset")
    return (
        f"before the first next: {', '.join(before) or 'nothing'}; one step: {', '.join(step)}; "
        f"{passes} resets and {calls.count('0.next')} times next for 3 batches"
    )
