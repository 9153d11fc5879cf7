"""Classes, return values, enumerations and statuses of the binding (api 7.17 and 7.18)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from .bench import Bench
from .calls import Attempt, need
from .findings import Fields, Finding
from .probe import probe

_RETURNS = (
    "set_model_param",
    "unmark_output",
    "mark_output",
    "to(device)",
    "to(DataType)",
    "resize",
    "reshape",
    "step_begin",
)


@probe("returns", "7.17", "What do the calls return whose answer no public script looks at?", cases=_RETURNS)
def _returns(bench: Bench, case: str) -> Finding:
    sdk = bench.sdk
    if case == "set_model_param":
        return Finding(Attempt(sdk.Parser(sdk.ModelKind.kOnnx).set_model_param, "no-such-parameter", True).text)
    if case in ("unmark_output", "mark_output"):
        network = bench.network("base")
        unmarked = Attempt(network.unmark_output, network.get_output(0))
        if case == "unmark_output":
            return Finding(unmarked.text)
        return Finding(Attempt(network.mark_output, network.find_tensor_by_name("r")).text)
    if case == "step_begin":
        options = sdk.ProfilerOptions(sdk.HostTracerLevel.kCritical, sdk.DeviceTracerLevel.kOn)
        profiler = sdk.Profiler(options, tempfile.mkdtemp(dir=bench.scratch))
        need("start", profiler.start)
        answers = [Attempt(profiler.step_begin, 0).text, Attempt(profiler.step_end).text, Attempt(profiler.stop).text]
        return Finding(answers[0], step_end=answers[1], stop=answers[2])
    session = bench.session("static")
    tensor = session.inputs[0]
    need("from_numpy", tensor.from_numpy, bench.rows(2)[0])
    calls: dict[str, Callable[[], Any]] = {
        "to(device)": lambda: tensor.to(session.device),
        "to(DataType)": lambda: tensor.to(sdk.DataType.FLOAT16),
        "resize": lambda: tensor.resize([1, 8]),
        "reshape": lambda: tensor.reshape((1, 16)),
    }
    attempt = Attempt(calls[case])
    return Finding(attempt.text, same_object=attempt.value is tensor, shape=str(Attempt(lambda: tensor.shape).value))


@probe("surface", "7.17", "Which classes, methods and keywords has the binding?", card=False)
def _surface(bench: Bench, _case: str) -> Finding:
    classes: Fields = {}
    others: Fields = {}
    for name in dir(bench.sdk):
        value = getattr(bench.sdk, name)
        if name.startswith("_"):
            continue
        if not isinstance(value, type):
            others[name] = type(value).__name__
            continue
        members = [each for each in dir(value) if not each.startswith("_") or each == "__init__"]
        classes[name] = {each: _first_lines(getattr(value, each, None)) for each in members}
    count = sum(len(members) for members in classes.values())
    return Finding(
        f"{len(classes)} classes with {count} members; listed in the JSON file", classes=classes, others=others
    )


def _first_lines(value: Any) -> str:
    """The signature lines of a docstring, at most 300 characters; pybind11 writes keywords there."""
    text = getattr(value, "__doc__", None) if callable(value) else None
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    signatures = [line for line in lines if "(" in line and "->" in line] or lines[:1]
    return " | ".join(signatures)[:300]


_ENUMS = ("DataType", "ModelKind", "QuantizationAlgorithm", "Code", "Layout", "TensorLocation")


@probe("enums", "7.18", "What kind of enumerations are these?", cases=_ENUMS, card=False)
def _enums(bench: Bench, case: str) -> Finding:
    kind = getattr(bench.sdk, case)
    members = [name for name in dir(kind) if not name.startswith("_") and type(getattr(kind, name)) is kind]
    if not members:
        return Finding(f"{type(kind).__name__} without members of its own type", names=dir(kind))
    first = getattr(kind, members[0])
    values = {name: str(Attempt(int, getattr(kind, name)).value) for name in members}
    number = Attempt(int, first)
    text = f"{type(kind).__name__}, {'int() works' if number.good else 'int() ' + number.text.split(':')[0]}"
    return Finding(
        text,
        repr=repr(first),
        str=str(first),
        int=None if not number.good else number.value,
        values=values if number.good else members,
        hashable=Attempt(hash, first).good,
        same_object=getattr(kind, members[0]) is first,
        pybind="__members__" in dir(kind) and type(kind).__name__ != "EnumMeta" and type(kind).__name__ != "EnumType",
    )


@probe("status", "7.8", "What can be learnt from a Status?", cases=("good", "bad"), card=False)
def _status(bench: Bench, case: str) -> Finding:
    sdk = bench.sdk
    status = sdk.Status.OK() if case == "good" else sdk.Status(sdk.Code.OUT_OF_RANGE, "a text")
    code = Attempt(lambda: status.code())  # noqa: PLW0108 - where there is no such method, that is the finding
    text = f"prints as '{status}', is {'true' if bool(status) else 'false'}, code(): {code.text}"
    return Finding(
        text, repr=repr(status), error_message=status.error_message(), names=[n for n in dir(status) if n[0] != "_"]
    )
