"""Types, shapes and names that a model reports (api 7.3, 7.4 and 7.14)."""

from __future__ import annotations

from typing import Any

from .bench import Bench, names_of, shapes_of
from .calls import CallLog, need
from .findings import Finding
from .probe import probe


@probe(
    "int64-type",
    "7.3",
    "Which type has an int64 input after type64to32_conversion?",
    cases=("converted", "INT64 set by hand, converted", "INT32 set by hand, converted", "not converted"),
    card=False,
)
def _int64_type(bench: Bench, case: str) -> Finding:
    network = bench.network("integers")
    for name in ("INT64", "INT32"):
        if case.startswith(name):
            need("set_data_type", network.get_input(0).set_data_type, getattr(bench.sdk.DataType, name))
    config = bench.config(*bench.usual(narrow=case != "not converted"))
    log = CallLog()
    model = log.make("build_model", bench.sdk.Builder().build_model, "probe", network, config)
    if not log.good:
        return log.finding()
    return Finding(" ".join(names_of(model.get_input_data_types())), good=True)


_DIM_CASES: dict[str, tuple[bool, Any]] = {
    "range with min = max on all axes": (True, {"0": ([2, 8], [2, 8])}),
    "range on the rows": (True, {"0": ([1, 8], [4, 8])}),
    "mutable without a range": (True, None),
    "static": (False, None),
}


@probe("dims", "7.4", "Which dims does a model report?", cases=tuple(_DIM_CASES), card=False)
def _dims(bench: Bench, case: str) -> Finding:
    mutable, ranges = _DIM_CASES[case]
    model = bench.build("base", *bench.usual(ranges=ranges, mutable=mutable))
    inputs, outputs = shapes_of(model.get_input_dimensions()), shapes_of(model.get_output_dimensions())
    return Finding(f"inputs {inputs}, outputs {outputs}", inputs=inputs, outputs=outputs)


@probe(
    "names",
    "7.14",
    "What are inputs, outputs and nodes called after parsing and building?",
    cases=("ports", "a node without a name", "two nodes of one name"),
    card=False,
)
def _names(bench: Bench, case: str) -> Finding:
    log = CallLog()
    graph = "twins" if case.startswith("two") else "names"
    network = bench.network(graph)
    nodes = [
        f"{node.get_node_name()} ({node.get_node_type()})"
        for node in log.call("get_all_nodes_in_network", network.get_all_nodes_in_network) or []
    ]
    model = bench.build(graph)
    if case != "ports":
        return Finding(", ".join(nodes) if log.good else log.text, nodes=nodes)
    inputs = log.call("get_input_names", model.get_input_names) or []
    outputs = log.call("get_output_names", model.get_output_names) or []
    text = f"in the file 'in/put:0' and 'out/put.1'; in the model {inputs} and {outputs}"
    return Finding(text if log.good else log.text, inputs=list(inputs), outputs=list(outputs), nodes=nodes)
