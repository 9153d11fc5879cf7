"""Which graphs are parsed, built and computed correctly, and which models load (api 7.12 and 7.13)."""

from __future__ import annotations

import collections
import os

from .bench import Bench, Session, graphs_of_kind
from .calls import CallLog, need
from .findings import Details, Finding, list_findings
from .foundation import ARCHS
from .probe import probe
from .results import compare


def _try_graph(bench: Bench, graph: str) -> Finding:
    """Parse, build and run one graph, up to the first step that fails, and compare its results."""
    facts = bench.index[graph]
    log = CallLog()
    network = bench.sdk.Network()
    parser = bench.sdk.Parser(bench.sdk.ModelKind.kOnnx)
    log.call("parse", parser.parse, network, bench.path(graph))
    config = bench.config(*bench.usual())
    model = log.make("build", bench.sdk.Builder().build_model, "probe", network, config)
    if log.good and not bench.has_card():
        return Finding("parses and builds; not run, for there is no card", good=True)
    session = log.make("open", lambda: Session(bench, model, bench.device()))
    results = log.call("run", lambda: session.run(*bench.arrays(graph, "in")))
    if not log.good:
        return Finding(log.steps[-1], good=False, steps=log.steps)
    expected = bench.arrays(graph, "out")
    verdicts = [compare(got, want, facts["tolerance"]) for got, want in zip(results, expected)]
    wrong = [verdict for verdict in verdicts if verdict != "right"]
    text = f"runs: {wrong[0]}" if wrong else "right"
    return Finding(text, good=not wrong, types=[str(each.dtype) for each in results])


def _sum_up_graphs(details: Details) -> str:
    right = [name for name, fields in details.items() if fields["found"] == "right"]
    others = collections.OrderedDict((name, fields) for name, fields in details.items() if name not in right)
    text = f"{len(right)} of {len(details)} parse, build and compute rightly"
    return f"{text}; not: {list_findings(others)}" if others else text


@probe(
    "opsets",
    "7.12",
    "Which ONNX opsets are taken?",
    cases=graphs_of_kind("opset"),
    card=False,
)
def _opsets(bench: Bench, case: str) -> Finding:
    return _try_graph(bench, case)


@probe(
    "newer-operators",
    "7.12",
    "Are operators after opset 11, weights outside the file and foreign operators taken?",
    cases=graphs_of_kind("newer"),
    card=False,
)
def _newer(bench: Bench, case: str) -> Finding:
    return _try_graph(bench, case)


@probe(
    "operators",
    "7.12",
    "Which operators of the lowered graphs are parsed, built and computed rightly?",
    cases=graphs_of_kind("operator"),
    card=False,
    sum_up=_sum_up_graphs,
)
def _operators(bench: Bench, case: str) -> Finding:
    return _try_graph(bench, case)


@probe("other-arch", "7.13", "Does a model that was built for another architecture load here?", cases=ARCHS, fresh=True)
def _other_arch(bench: Bench, case: str) -> Finding:
    if case == bench.arch:
        return Finding("this card's own")
    model = bench.build("base", archs=[case])
    path = os.path.join(bench.scratch, f"other-{case}.mm")
    need("serialize_to_file", model.serialize_to_file, path)
    loaded = bench.sdk.Model()
    log = CallLog()
    log.call("deserialize_from_file", loaded.deserialize_from_file, path)
    need("active", bench.device().active)
    log.make("create_i_engine", loaded.create_i_engine)
    return log.finding()
