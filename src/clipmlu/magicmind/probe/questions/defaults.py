"""What a build does where the configuration says nothing (api 7.9)."""

from __future__ import annotations

import os

from .bench import Bench, Session, names_of, shapes_of
from .calls import CallLog, need
from .findings import Finding
from .probe import probe
from .results import largest_difference


@probe("defaults", "7.9", "What does a build come to when keys are absent?", cases=("no configuration", "an empty one"))
def _defaults(bench: Bench, case: str) -> Finding:
    arguments = [] if case == "no configuration" else [bench.sdk.BuilderConfig()]
    model = need("build_model", bench.sdk.Builder().build_model, "probe", bench.network("half"), *arguments)
    path = os.path.join(bench.scratch, f"defaults-{os.getpid()}.mm")
    need("serialize_to_file", model.serialize_to_file, path)
    size = os.path.getsize(path)
    os.remove(path)
    inputs = shapes_of(model.get_input_dimensions())
    log = CallLog()
    log.note(f"dims {inputs}")
    session = log.make("open", lambda: Session(bench, model, bench.device()))
    result = log.call("run", lambda: session.run(*bench.arrays("half", "in")))
    if not log.good:
        return log.finding(inputs=inputs, bytes=size)
    error = largest_difference(result[0], bench.arrays("half", "out")[0])
    kind = "float32" if error < 1e-4 else "float16 or less"
    shape = "fixed" if all(size > 0 for each in inputs for size in each) else "mutable"
    return Finding(f"shapes {shape}, computes in {kind}", inputs=inputs, bytes=size, error=error)


@probe("int64-default", "7.9", "Is type64to32_conversion on when the key is absent?", card=False)
def _int64_default(bench: Bench, _case: str) -> Finding:
    config = bench.config({"precision_config": {"precision_mode": "force_float32"}}, {"graph_shape_mutable": False})
    log = CallLog()
    model = log.make("build_model", bench.sdk.Builder().build_model, "probe", bench.network("integers"), config)
    return Finding(" ".join(names_of(model.get_input_data_types()))) if log.good else log.finding()
