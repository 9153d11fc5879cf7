"""The probes on the emulated SDK, where the answers are known."""

from __future__ import annotations

import functools
import json
import platform
import re
from collections.abc import Callable

import msgspec
import pytest

from clipmlu.graph.lowering import MAGICMIND
from clipmlu.magicmind.probe.operators import OPERATOR_RECIPES
from clipmlu.magicmind.probe.questions.catalogue import LEFT_OUT, PROBES
from clipmlu.magicmind.probe.records import ProbeReport
from clipmlu.magicmind.probe.run import probe_emulated_sdk
from mlu.probe import QUIET, found

FEW = ("casts", "asnumpy", "output-list", "operators", "status")
"""Probes that both emulators are asked in every run of the tests; all of them are asked of the strict one in the slow tests, and those
whose answer differs of the lenient one in the tests of full size."""

OPEN_QUESTIONS = [
    # probe, case, what the strict emulator answers, what the lenient one answers; the switch that decides
    ("shape-outside", "dynamic, more rows than the range", r"enqueue: bad Status 'OUT_OF_RANGE", r"result .*right"),
    ("shape-outside", "dynamic, fewer rows than the range", r"enqueue: bad Status 'OUT_OF_RANGE", r"result .*right"),
    ("shape-outside", "static, more rows", r"^from_numpy: OK; enqueue: bad Status 'OUT_OF_RANGE", r"sync: bad Status"),
    (
        "rank",
        "static, one axis more",
        r"^from_numpy: bad Status",
        r"^from_numpy: OK; enqueue: bad Status",
    ),  # check_rank
    ("casts", "float64 for FLOAT32", r"^cast, result right$", r"^cast, result right$"),
    ("casts", "int64 for INT32", r"^cast, result right$", r"^cast, result right$"),
    ("casts", "uint8 for FLOAT32", r"^cast, result right$", r"^cast, result right$"),
    ("casts", "int32 for FLOAT32", r"^from_numpy: bad Status", r"^cast, result right$"),  # narrow_casts
    ("casts", "float16 for FLOAT32", r"^from_numpy: bad Status", r"^cast, result right$"),
    ("overflow", "2**32 + 5", r"^from_numpy: bad Status 'OUT_OF_RANGE", r"^wraps \(5\)$"),  # refuse_overflow
    ("overflow", "2**31 + 1", r"^from_numpy: bad Status 'OUT_OF_RANGE", r"^wraps \(-2147483648\)$"),
    ("strides", "negative stride", r"^result right$", r"^result right$"),
    ("array-overwritten", "overwritten before enqueue", r"of neither", r"of the old values"),  # inputs_stay_lent
    ("array-overwritten", "overwritten between enqueue and sync", r"of neither", r"of the old values"),
    ("int64-type", "converted", r"^INT32$", r"^INT32$"),
    ("int64-type", "not converted", r"^build_model: None$", r"^INT64$"),  # refuse_64bit
    (
        "dims",
        "range with min = max on all axes",
        r"^inputs \[\[2, 8\]\], outputs \[\[2, 5\]\]$",
        r"^inputs \[\[2, 8\]\]",
    ),
    (
        "dims",
        "range on the rows",
        r"^inputs \[\[-1, 8\]\], outputs \[\[-1, 5\]\]$",
        r"^inputs \[\[-1, 8\]\], outputs \[\[-1, 5\]\]$",
    ),
    ("names", "ports", r"in the model \['in/put:0'\] and \['out/put.1'\]$", r"in the model \['in/put:0'\]"),
    ("asnumpy", "copy or view", r"^a view$", r"^a copy$"),  # asnumpy_is_view
    ("asnumpy", "before sync", r"NaN", r"^right$"),  # poison_before_sync
    ("asnumpy", "after the next run into the same list", r"changes$", r"stays as it was$"),
    ("output-list", "the same list, same shape", r"^result right$", r"^result right$"),
    ("output-list", "the same list, another shape", r"^enqueue: bad Status", r"^result right$"),  # fixed_output_lists
    ("output-list", "cleared, another shape", r"^result right$", r"^result right$"),
    ("input-list", "too few tensors", r"^enqueue: bad Status", r"^enqueue: bad Status"),
    ("input-list", "overwritten between enqueue and sync", r"of neither", r"of the old values"),  # inputs_stay_lent
    ("queueing", "64 runs, one sync", r"^all results right$", r"^all results right$"),
    ("queueing", "two contexts on one queue", r"^all results right$", r"^all results right$"),
    (
        "queueing",
        "one context on two queues",
        r"enqueue 2: bad Status",
        r"^all results right$",
    ),  # one_queue_per_context
    ("threads", "two threads at a time, each with its own context", r"^all results right$", r"^all results right$"),
    ("gil", "sync", r"^other threads run$", r"^other threads run$"),
    ("fork", "objects of the parent, in the child", r"bad Status.*made in process", r"^hangs$"),  # refuse_after_fork
    ("fork", "own objects in the child", r"^result right$", r"^result right$"),
    ("json", "an unknown key", r"^parse_from_string: bad Status", r"^parse_from_string: OK; build_model: Model$"),
    ("json", "not JSON", r"^parse_from_string: bad Status", r"^parse_from_string: bad Status"),
    ("json", "mlu_archs", r"build_model: None$", r"build_model: None$"),
    ("model-file", "missing", r"^deserialize_from_file: bad Status 'NOT_FOUND", r"bad Status 'NOT_FOUND"),
    ("model-file", "one byte changed", r"bad Status 'DATA_LOSS.*digest", r"bad Status 'DATA_LOSS"),
    ("onnx-file", "random bytes", r"^parse: bad Status 'DATA_LOSS", r"^parse: bad Status 'DATA_LOSS"),
    ("defaults", "an empty one", r"^shapes fixed, computes in float32$", r"^shapes mutable,"),  # static_by_default
    ("calibration", "calls, LINEAR", r"1 resets and 4 times next for 3 batches$", r"1 resets and 4 times next"),
    ("calibration", "calls, EQNM", r"2 resets and 8 times next for 3 batches$", r"2 resets and 8 times next"),
    ("calibration", "twice on one network", r"again: bad Status", r"again: OK; build_model: Model$"),  # calibrate_once
    ("calibration", "unequal lengths", r"^calibrate: bad Status", r"^calibrate: OK"),  # equal_calibration_lengths
    ("calibration", "an input of integers", r"^calibrate: OK; build_model: Model$", r"^calibrate: OK"),
    ("float16", "rounding", r"^to nearest, ties to even$", r"^to nearest, ties to even$"),
    ("float16", "overflow", r"^infinity$", r"^infinity$"),
    ("float16", "sum of 4096 ones", r"^4096: accumulated in float32", r"^4096: accumulated in float32"),
    ("float16", "matrix product", r"^inputs rounded, accumulated in float32, result rounded$", r"^inputs rounded, acc"),
    ("node-types", "inputs and output FLOAT32", r"float32$", r"float32$"),
    ("node-types", "output of the model FLOAT16", r"float16$", r"float16$"),
    ("opsets", "opset 11", r"^right$", r"^right$"),
    ("opsets", "opset 12", r"^parse: bad Status", r"^right$"),  # limit_opset
    ("opsets", "opset 18", r"^parse: bad Status", r"^right$"),
    ("newer-operators", "LayerNormalization at 17", r"^parse: bad Status", r"^right$"),  # closed_operators, limit_opset
    ("newer-operators", "weights outside", r"^parse: bad Status", r"^right$"),  # refuse_external_data
    ("newer-operators", "attention at 11", r"^right$", r"^right$"),
    ("operators", "MatMul", r"^right$", r"^right$"),
    ("other-arch", "mtp_592", r"create_i_engine: None$", r"create_i_engine: None$"),
    ("devices", "neither System nor active()", r"^result right$", r"^result right$"),
    ("devices", "id beyond the last: active()", r"^active: bad Status", r"^active: bad Status"),
    ("set-dimension", "after calibrate", r"^set_dimension: bad Status", r"^set_dimension: OK; build_model: Model"),
    ("set-dimension", "-1, then a static build", r"set_dimension: OK; build_model: None", r"build_model: None"),
    ("returns", "to(device)", r"^None$", r"^Tensor$"),  # silent_returns
    ("returns", "resize", r"^None$", r"^OK$"),
    ("status", "good", r"is true, code\(\): raises AttributeError", r"is true, code\(\): Code$"),  # opaque_status
    ("status", "bad", r"is true, code\(\): raises", r"is false, code\(\): Code$"),
    ("enums", "DataType", r"int\(\) raises TypeError$", r"int\(\) raises TypeError$"),
    ("contexts", "", r"^16 or more$", r"^16 or more$"),
    ("latency", "", r"^emulated: first .* ms, then .* ms$", r"^emulated: "),
    ("added-names", "", r"^input main/arg-0, nodes \['main/mm.relu', 'main/mm.relu-1'\]", r"^input main/arg-0, nodes"),
    ("detection-defaults", "without set_scale", r"^build_model: None$", r"^build_model: None$"),
    ("box-order", "four boxes of two classes", r"^0:0.70 0:0.50 1:0.90 1:0.60$", r"^0:0.70 0:0.50 1:0.90 1:0.60$"),
    ("box-order", "the same with a limit of two", r"^0:0.70 1:0.90$", r"^0:0.70 1:0.90$"),
    ("box-order", "one box of two classes", r"^0:0.80 1:0.60$", r"^0:0.80 1:0.60$"),
    ("absent-boxes", "", r"^NaN$", r"^zeros$"),  # absent_boxes_are_undefined
    ("image-shape", "16, 32", r"^build_model: None$", r"^height first$"),  # square_detections
    ("image-shape", "-1, -1", r"^build_model: None$", r"^build_model: None$"),
    ("index-arguments", "slice from 1, third argument 3", r"build_model: None$", r"build_model: None$"),
    ("index-arguments", "axes of INT64", r"build_model: None$", r"dims \[\[3, 2\]\]$"),  # refuse_64bit
    ("index-arguments", "pad 1, 0, 0, 0", r"dims \[\[1, 5, 4, 1\]\]$", r"dims \[\[1, 5, 4, 1\]\]$"),
    ("reduce-arguments", "False", r"dims \[\[1\]\]$", r"dims \[\[1\]\]$"),
    ("reduce-arguments", "True", r"^reduce: None$", r"^reduce: None$"),
]
"""Probe, case, what the strict emulator answers, what the lenient one answers; the switch that decides."""
DIFFERENT = [(name, case, mild) for name, case, harsh, mild in OPEN_QUESTIONS if mild != harsh]

Ask = Callable[[str, bool], ProbeReport]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """``ask(mode, more)``: the report on the strict or lenient emulator, of ``FEW`` or of many probes; asked once."""
    many = {"strict": (), "lenient": tuple(dict.fromkeys(name for name, _, _ in DIFFERENT))}

    @functools.cache
    def answers(mode: str, more: bool) -> ProbeReport:
        only = many[mode] if more else FEW
        return probe_emulated_sdk(tmp_path_factory.mktemp(mode), timeout_seconds=16, only=only, mode=mode, **QUIET)

    return answers


def marked(rows: list[tuple[str, str, str]], mark: pytest.MarkDecorator) -> list[object]:
    return [pytest.param(*row, marks=() if row[0] in FEW else mark, id=f"{row[0]}, {row[1]}") for row in rows]


@pytest.mark.parametrize(("name", "case", "answer"), marked([each[:3] for each in OPEN_QUESTIONS], pytest.mark.slow))
def test_strict_emulator_takes_the_harshest_reading(ask: Ask, name: str, case: str, answer: str) -> None:
    assert re.search(answer, found(ask("strict", name not in FEW), name, case))


@pytest.mark.parametrize(("name", "case", "answer"), marked(DIFFERENT, pytest.mark.full_size))
def test_lenient_emulator_takes_the_mildest_reading(ask: Ask, name: str, case: str, answer: str) -> None:
    assert re.search(answer, found(ask("lenient", name not in FEW), name, case))


def test_every_question_of_section_7_has_a_probe() -> None:
    issues = {probe.issue for probe in PROBES.values()} | {issue for _, issue, _, _ in LEFT_OUT}
    assert issues == {f"7.{number}" for number in range(1, 30)}


@pytest.mark.slow
def test_every_probe_is_answered_or_left_out_for_a_reason(ask: Ask) -> None:
    records = ask("strict", True).records
    assert {record.issue for record in records} == {f"7.{number}" for number in range(1, 30)}
    left_out = {record.name for record in records if record.outcome == "not tried"}
    assert left_out == {"two-cards", "throughput", "memory", "torch-mlu", "foreign-memory"}
    assert all(record.answer for record in records)
    assert {record.outcome for record in records} == {"answered", "not tried"}


def test_operators_are_those_of_the_lowering_and_all_compute_rightly_but_one(ask: Ask) -> None:
    assert set(OPERATOR_RECIPES) == set(MAGICMIND.operators)
    assert wrong_operators(ask("strict", False)) == {"IsNaN"}  # closed_operators
    assert wrong_operators(ask("lenient", False)) == set()


def wrong_operators(report: ProbeReport) -> set[str]:
    record = next(each for each in report.records if each.name == "operators")
    return {name for name, case in record.details.items() if case.found != "right"}


def test_report_says_that_it_is_emulated_and_names_no_host(ask: Ask) -> None:
    strict = ask("strict", False)
    assert strict.emulated
    assert strict.title.startswith("Emulated")
    assert strict.arch == "mtp_372"
    text = json.dumps(msgspec.to_builtins(strict))
    assert "/tmp/" not in text.replace(strict.host.sdk_path or "", "")
    host = platform.node()
    assert not host or not re.search(rf"\b{re.escape(host)}\b", text)
