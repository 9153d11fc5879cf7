"""Selecting a card, valid or not, and setting dimensions of inputs (api 7.15 and 7.16)."""

from __future__ import annotations

from .bench import Bench, Session, shapes_of
from .calibration import Recorder, make_batches
from .calls import CallLog, need
from .findings import Finding
from .probe import probe
from .results import compare

_DEVICE_CASES = (
    "neither System nor active()",
    "engine before active()",
    "id beyond the last: active()",
    "id beyond the last: create_queue()",
    "negative id: active()",
    "after System.destory()",
)


@probe(
    "devices",
    "7.15",
    "What do System and Device.active() matter, and what of a card that is not there?",
    cases=_DEVICE_CASES,
)
def _devices(bench: Bench, case: str) -> Finding:
    feed, expected = bench.rows(2)
    log = CallLog()
    if case == "neither System nor active()":
        device = bench.device()
    elif case == "engine before active()":
        model = bench.load("static")
        log.make("create_i_engine", model.create_i_engine)
        device = bench.device()
        log.call("active", device.active)
    elif case == "after System.destory()":
        system = bench.sdk.System()
        log.call("initialize", system.initialize)
        log.call("destory", system.destory)
        device = bench.device()
        log.call("active", device.active)
    else:
        device = bench.device(-1 if "negative" in case else 99)
        if "create_queue" in case:
            log.make("create_queue", device.create_queue)
        else:
            log.call("active", device.active)
        return log.finding()
    session = log.make("open", lambda: Session(bench, bench.load("static"), device))
    results = log.call("run", lambda: session.run(feed))
    return Finding(f"result {compare(results[0], expected)}", good=True) if log.good else log.finding()


_DIMENSION_CASES = (
    "after calibrate",
    "-1, then a static build",
    "-1, then a mutable build",
    "rows outside dim_range",
    "another rank",
    "twice",
)


@probe("set-dimension", "7.16", "When may set_dimension be called, and with what?", cases=_DIMENSION_CASES, card=False)
def _set_dimension(bench: Bench, case: str) -> Finding:
    sdk = bench.sdk
    network = bench.network("base")
    tensor = network.get_input(0)
    parts = bench.usual()
    if case == "after calibrate":
        parts = bench.usual(precision="qint8_mixed_float32")
        calibrator = sdk.Calibrator([Recorder(bench, make_batches(2), [], 0).data])
        need("calibrate", calibrator.calibrate, network, bench.config(*parts))
    elif case == "-1, then a mutable build":
        parts = bench.usual(mutable=True)
    elif case == "rows outside dim_range":
        parts = bench.usual(ranges={"0": ([1, 8], [4, 8])})
    shape = {"rows outside dim_range": [9, 8], "another rank": [2, 2, 4]}.get(case, [-1, 8] if "-1" in case else [3, 8])
    log = CallLog()
    log.call("set_dimension", tensor.set_dimension, sdk.Dims(shape))
    if case == "twice":
        log.call("again", tensor.set_dimension, sdk.Dims([4, 8]))
    model = log.make("build_model", sdk.Builder().build_model, "probe", network, bench.config(*parts))
    if log.good:
        log.note(f"dims {shapes_of(model.get_input_dimensions())}")
    return log.finding()
