"""Wrong configurations and damaged files (api 7.8)."""

from __future__ import annotations

import contextlib
import os

import numpy as np

from .bench import Bench
from .calls import CallLog
from .findings import Finding
from .probe import probe

_JSON_CASES = {
    "an unknown key": '{"no_such_key": true}',
    "an unknown nested key": '{"opt_config": {"no_such_key": true}}',
    "an unknown precision": '{"precision_config": {"precision_mode": "force_float8"}}',
    "a value of a wrong type": '{"graph_shape_mutable": "perhaps"}',
    "an unknown architecture": '{"archs": ["mtp_999"]}',
    "not JSON": '{"archs": [',
    "no object": "[1, 2]",
    "a range without graph_shape_mutable": '{"graph_shape_mutable": false, "dim_range": {"0": {"min": [1, 8], "max": [4, 8]}}}',
    "a range of another rank": '{"graph_shape_mutable": true, "dim_range": {"0": {"min": [1], "max": [4]}}}',
    "a range upside down": '{"graph_shape_mutable": true, "dim_range": {"0": {"min": [4, 8], "max": [1, 8]}}}',
    "an empty object": "{}",
}


@probe("json", "7.8", "What happens to a configuration that is wrong?", cases=(*_JSON_CASES, "mlu_archs"), card=False)
def _json(bench: Bench, case: str) -> Finding:
    network = bench.network("base")
    config = bench.sdk.BuilderConfig()
    log = CallLog()
    if case == "mlu_archs":
        log.call("mlu_archs = ['mtp_999']", setattr, config, "mlu_archs", ["mtp_999"])
    else:
        if case != "an unknown architecture":
            config = bench.config()
        log.call("parse_from_string", config.parse_from_string, _JSON_CASES[case])
    log.make("build_model", bench.sdk.Builder().build_model, "probe", network, config)
    return log.finding()


_FILE_CASES = ("missing", "a directory", "empty", "random bytes", "cut short", "one byte changed", "the ONNX file")


@probe("model-file", "7.8", "What happens to a model file that is missing or damaged?", cases=_FILE_CASES, card=False)
def _model_file(bench: Bench, case: str) -> Finding:
    with open(bench.model_file("static"), "rb") as stream:
        content = stream.read()
    middle = len(content) // 2
    contents = {
        "empty": b"",
        "random bytes": np.random.RandomState(0).bytes(len(content)),
        "cut short": content[:middle],
        "one byte changed": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    }
    path = os.path.join(bench.scratch, f"damaged-{os.getpid()}.mm")
    if case in contents:
        with open(path, "wb") as stream:
            stream.write(contents[case])
    target = {"a directory": bench.scratch, "the ONNX file": bench.path("base")}.get(case, path)
    log = CallLog()
    model = bench.sdk.Model()
    log.call("deserialize_from_file", model.deserialize_from_file, target)
    if bench.has_card():
        log.make("create_i_engine", model.create_i_engine)
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    return log.finding()


@probe(
    "onnx-file",
    "7.8",
    "What happens to an ONNX file that is missing or damaged?",
    cases=("missing", "a directory", "empty", "random bytes", "cut short"),
    card=False,
)
def _onnx_file(bench: Bench, case: str) -> Finding:
    with open(bench.path("base"), "rb") as stream:
        content = stream.read()
    contents = {
        "empty": b"",
        "random bytes": np.random.RandomState(0).bytes(256),
        "cut short": content[: len(content) // 2],
    }
    path = os.path.join(bench.scratch, f"damaged-{os.getpid()}.onnx")
    if case in contents:
        with open(path, "wb") as stream:
            stream.write(contents[case])
    log = CallLog()
    network = bench.sdk.Network()
    parser = bench.sdk.Parser(bench.sdk.ModelKind.kOnnx)
    log.call("parse", parser.parse, network, bench.scratch if case == "a directory" else path)
    log.make("build_model", bench.sdk.Builder().build_model, "probe", network, bench.config(*bench.usual()))
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    return log.finding()
