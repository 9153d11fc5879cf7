"""``clipmlu doctor --probe-sdk``: the graphs for ``probes.py``, running it, and its report.

``probes.py`` asks the vendor's SDK the questions of section 7 of docs/magicmind-api.md; it runs where the SDK lives and
knows nothing of clipmlu. What needs ``onnx`` is done here: the graphs, and what they compute.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from clipmlu.errors import BackendUnavailableError, UnknownNameError
from clipmlu.files.publish import check_files_free, scratch_directory, write_files
from clipmlu.magicmind.backend import emulated_worker, real_sdk_is_importable
from clipmlu.magicmind.client.options import PYTHON_VARIABLE, WORKER_VARIABLE
from clipmlu.specs import Spec

Array = npt.NDArray[Any]
Outcome = Literal["answered", "crashed", "timed out", "not tried"]
PROBES_FILE = Path(__file__).with_name("probes.py")
GRAPHS_FOLDER = "graphs"
JSON_NAME = "magicmind-probe.json"
MARKDOWN_NAME = "magicmind-probe.md"
_REPORT_NAMES = (JSON_NAME, MARKDOWN_NAME)
_INDEX_NAME = "graphs.json"


# ---- the report ---------------------------------------------------------------------------------------------------------


class ProbeCase(Spec, frozen=True, kw_only=True):
    """One thing tried.

    Attributes:
        outcome: as a probe's, or ``not reached`` when something else had failed before.
        found: what came of it, in words.
        raw: the facts behind it.
        seconds: how long it took.
    """

    outcome: Literal["answered", "crashed", "timed out", "not tried", "not reached"]
    found: str
    raw: dict[str, Any]
    seconds: float


class ProbeRecord(Spec, frozen=True, kw_only=True):
    """One question and its answer.

    Attributes:
        name: the probe's name.
        issue: number of the question in section 7 of docs/magicmind-api.md.
        question: in one sentence.
        outcome: ``crashed`` or ``timed out`` when any of its cases did.
        answer: what was found, in words.
        details: case -> what it showed.
        log: the end of what the processes printed, the vendor's log among it.
        seconds: how long it took.
    """

    name: str
    issue: str
    question: str
    outcome: Outcome
    answer: str
    details: dict[str, ProbeCase]
    log: str
    seconds: float


class ProbeHost(Spec, frozen=True, kw_only=True):
    """Where the SDK was found.

    Attributes:
        python: version of the interpreter that has it.
        numpy: version of its NumPy.
        platform: operating system.
        machine: processor architecture.
        neuware_home: the variable NEUWARE_HOME.
        sdk_path: the package's file; None when it cannot be imported.
        sdk_version: what the package says of its version, if anything.
        emulated: it is clipmlu's emulated SDK.
        cards: number of cards; None when that could not be asked.
        cnmon: the vendor's monitor on its version.
        problem: what stood in the way.
        log: what importing printed.
    """

    python: str
    numpy: str
    platform: str
    machine: str
    neuware_home: str | None
    sdk_path: str | None
    sdk_version: str | None
    emulated: bool
    cards: int | None
    cnmon: str | None
    problem: str | None
    log: str


class ProbeReport(Spec, frozen=True, kw_only=True):
    """What an SDK does where public sources leave it open.

    Attributes:
        format: version of this format.
        title: says whether the SDK was the emulated one.
        emulated: nothing here says anything about a card.
        host: where it was found.
        arch: the architecture that graphs were built for; None when none worked.
        records: the questions and answers.
    """

    format: Literal[1]
    title: str
    emulated: bool
    host: ProbeHost
    arch: str | None
    records: tuple[ProbeRecord, ...]


# ---- running ------------------------------------------------------------------------------------------------------------


def probe_names() -> tuple[str, ...]:
    """Names of all probes."""
    from clipmlu.magicmind import probes

    return tuple(probes.PROBES)


def probe_sdk(
    output: Path,
    *,
    python: str | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 120.0,
    only: Sequence[str] = (),
    jobs: int = 1,
    overwrite: bool = False,
) -> ProbeReport:
    """Ask the SDK that is found here; takes minutes on a card.

    Args:
        output: folder for ``magicmind-probe.json`` and ``magicmind-probe.md``; made when it is not there.
        python: the interpreter that has the SDK; None for what CLIPMLU_MLU_PYTHON names, else this one.
        environment: the variables of the probes' processes; None for this process's own.
        timeout_seconds: longest wait for one case.
        only: names of the probes to run; all when empty.
        jobs: probes at a time.
        overwrite: replace files of these names.

    Returns:
        The report, as it was written.

    Raises:
        BackendUnavailableError: there is no SDK to ask.
        UnknownNameError: there is no such probe.
        OutputExistsError: there is a report already, and ``overwrite`` is off.
        OutputError: the files cannot be written.
    """
    check_files_free([output / name for name in _REPORT_NAMES], overwrite=overwrite)
    for name in only:
        if name not in probe_names():
            raise UnknownNameError("probe", name, probe_names())
    interpreter = python or _find_interpreter()
    with scratch_directory() as folder:
        graphs = folder / GRAPHS_FOLDER
        write_files({graphs / name: content for name, content in make_graphs().items()}, overwrite=False)
        command = [interpreter, str(PROBES_FILE), "--called", "--graphs", str(graphs), "--output", str(folder)]
        command += ["--timeout", str(timeout_seconds), "--jobs", str(jobs)]
        if only:
            command += ["--only", *only]
        try:
            code = _run(command, environment)
        except KeyboardInterrupt:
            if _has_records(folder / JSON_NAME):
                _copy_report(folder, output, overwrite=overwrite)
            raise
        except OSError as error:
            raise BackendUnavailableError(f"Cannot run '{interpreter}': {error.strerror}.") from error
        report = _read_report(folder / JSON_NAME, interpreter, code)
        _copy_report(folder, output, overwrite=overwrite)
    return report


def probe_emulated_sdk(
    output: Path,
    *,
    timeout_seconds: float = 120.0,
    only: Sequence[str] = (),
    jobs: int = 2,
    overwrite: bool = False,
    **settings: Any,
) -> ProbeReport:
    """Ask the emulated SDK; see ``probe_sdk``.

    Args:
        output: folder for the files.
        timeout_seconds: longest wait for one case.
        only: names of the probes to run; all when empty.
        jobs: probes at a time.
        overwrite: replace files of these names.
        settings: of the emulator, such as ``mode="lenient"``; see ``emulated_environment``.
    """
    environment = emulated_worker(**settings).environment
    return probe_sdk(
        output,
        python=sys.executable,
        environment=environment,
        timeout_seconds=timeout_seconds,
        only=only,
        jobs=jobs,
        overwrite=overwrite,
    )


def write_probe(directory: Path, *, overwrite: bool = False) -> Path:
    """Write ``probes.py`` and its graphs into a folder, to be copied to where the SDK is and clipmlu is not.

    Args:
        directory: the folder; made when it is not there.
        overwrite: replace files of these names.

    Returns:
        The program's path.

    Raises:
        OutputExistsError: one is there, and ``overwrite`` is off.
        OutputError: it cannot be written.
    """
    program = directory / PROBES_FILE.name
    contents = {directory / GRAPHS_FOLDER / name: content for name, content in make_graphs().items()}
    write_files({**contents, program: PROBES_FILE.read_bytes()}, overwrite=overwrite)
    return program


def _find_interpreter() -> str:
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        return named
    if real_sdk_is_importable():
        return sys.executable
    raise BackendUnavailableError(
        f"There is no MagicMind SDK to probe here: set {PYTHON_VARIABLE} to the interpreter that has it"
        f"{f' ({WORKER_VARIABLE} alone does not do)' if os.environ.get(WORKER_VARIABLE) else ''}, "
        "or run where it is what this writes: clipmlu doctor --write-probe DIR"
    )


def _run(command: Sequence[str], environment: Mapping[str, str] | None) -> int:
    """Run a program; when this process is interrupted, it gets time to end its own children."""
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as process:  # noqa: S603
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def _has_records(path: Path) -> bool:
    try:
        return bool(msgspec.json.decode(path.read_bytes(), type=ProbeReport).records)
    except (OSError, msgspec.MsgspecError):
        return False


def _copy_report(folder: Path, output: Path, *, overwrite: bool) -> None:
    write_files({output / name: (folder / name).read_bytes() for name in _REPORT_NAMES}, overwrite=overwrite)


def _read_report(path: Path, interpreter: str, code: int) -> ProbeReport:
    try:
        report = msgspec.json.decode(path.read_bytes(), type=ProbeReport)
    except (OSError, msgspec.MsgspecError) as error:
        raise BackendUnavailableError(
            f"'{interpreter}' gave no report (exit code {code}); it must be Python 3.7 or newer with NumPy: {error}"
        ) from error
    if report.host.sdk_path is None:
        raise BackendUnavailableError(f"There is no MagicMind SDK for '{interpreter}': {report.host.problem}.")
    return report


# ---- graphs -------------------------------------------------------------------------------------------------------------


class _Draft:
    """An ONNX graph in the making; tensors get names as they come.

    Args:
        kind: what ``probes.py`` finds it by: ``base``, ``opset``, ``newer`` or ``operator``.
        opset: the ONNX opset.
        tolerance: of its results, relative to the largest.
    """

    def __init__(self, kind: str = "base", opset: int = 11, tolerance: float = 1e-3) -> None:
        self.kind = kind
        self.opset = opset
        self.tolerance = tolerance
        self.expected: list[Array] | None = None  # where ONNX's reference is not to be asked
        self.external: dict[str, str] = {}
        self.inputs: dict[str, Array] = {}
        self.weights: dict[str, Array] = {}
        self._nodes: list[Any] = []
        self._results: tuple[str, ...] = ()

    def feed(self, values: Array, name: str | None = None) -> str:
        """An input."""
        name = name or "xabcd"[len(self.inputs)]
        self.inputs[name] = values
        return name

    def weight(self, values: Any, name: str | None = None) -> str:
        """An initializer."""
        name = name or f"w{len(self.weights)}"
        self.weights[name] = np.asarray(values)
        return name

    def node(
        self, op: str, *inputs: str, count: int = 1, output: str | None = None, domain: str = "", **more: Any
    ) -> str:
        """A node; the name of its (first) output."""
        from onnx import helper

        number = len(self._nodes)
        outputs = [output or f"t{number}", *(f"t{number}_{extra}" for extra in range(1, count))]
        attributes = {key: value for key, value in more.items() if value is not None}
        label = attributes.pop("label", f"probe/{op}_{number}")
        self._nodes.append(helper.make_node(op, list(inputs), outputs, name=label, domain=domain, **attributes))
        self._results = tuple(outputs)
        return outputs[0]

    def results(self, *names: str) -> None:
        """Say which tensors are outputs; those of the last node unless said."""
        self._results = names

    def finish(self) -> tuple[bytes, list[Array], list[Array]]:
        """The ONNX file, its inputs and its outputs."""
        from onnx import helper, numpy_helper
        from onnx.reference import ReferenceEvaluator

        domains = {node.domain for node in self._nodes} - {""}
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(each, 1) for each in sorted(domains))]
        weights = [numpy_helper.from_array(values, name) for name, values in self.weights.items()]
        ends = [helper.make_empty_tensor_value_info(name) for name in self._results]
        graph = helper.make_graph(
            self._nodes, "probe", [_declare(*item) for item in self.inputs.items()], ends, weights
        )
        model = helper.make_model(graph, opset_imports=opsets, ir_version=6 if self.opset <= 11 else 8)
        outputs = self.expected
        if outputs is None:
            outputs = [np.asarray(value) for value in ReferenceEvaluator(model).run(None, dict(self.inputs))]
        del model.graph.output[:]
        model.graph.output.extend(_declare(*item) for item in zip(self._results, outputs, strict=True))
        for tensor in model.graph.initializer:
            if tensor.name in self.external:
                _keep_outside(tensor, self.external[tensor.name])
        return model.SerializeToString(), list(self.inputs.values()), outputs


def _declare(name: str, values: Array) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), list(values.shape))


def _keep_outside(tensor: Any, location: str) -> None:
    """Weights in a file of their own, as ONNX keeps those of more than 2 GB."""
    from onnx import TensorProto

    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-2, 2, shape).astype(np.float32)


WEIGHT = _values(8, 5, seed=1)


def make_graphs() -> dict[str, bytes]:
    """All graphs, their inputs and expected outputs, and the index of them: file name -> contents."""
    drafts = {**_base_graphs(), **_opset_graphs(), **_newer_graphs()}
    for op, recipe in OPERATOR_RECIPES.items():
        drafts[op] = _Draft("operator", tolerance=1e-2)
        recipe(drafts[op])
    files: dict[str, bytes] = {}
    index: dict[str, Any] = {}
    for name, draft in drafts.items():
        content, inputs, outputs = draft.finish()
        files[f"{name}.onnx"] = content
        for side, arrays in (("in", inputs), ("out", outputs)):
            files.update({f"{name}.{side}{number}.npy": _npy(array) for number, array in enumerate(arrays)})
        for tensor, location in draft.external.items():
            files[location] = draft.weights[tensor].tobytes()
        index[name] = {"kind": draft.kind, "inputs": len(inputs), "outputs": len(outputs), "tolerance": draft.tolerance}
    files["base.weight.npy"] = _npy(WEIGHT)
    files["half.weight.npy"] = _npy(drafts["half"].weights["w"])
    files[_INDEX_NAME] = msgspec.json.format(msgspec.json.encode(index), indent=1)
    return files


def _npy(values: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()


def _base(draft: _Draft) -> _Draft:
    """``relu(x) @ w`` of two rows."""
    weight = draft.weight(WEIGHT, "w")
    draft.node("MatMul", draft.node("Relu", draft.feed(_values(2, 8)), output="r"), weight, output="y")
    return draft


def _base_graphs() -> dict[str, _Draft]:
    names = ("two", "passing", "integers", "tokens", "slow", "double", "ones", "half", "names", "twins")
    drafts = {"base": _base(_Draft()), **{name: _Draft() for name in names}}

    draft = drafts["two"]
    total = draft.node("Add", draft.feed(_values(2, 8)), draft.feed(_values(2, 8, seed=2)))
    draft.node("MatMul", total, draft.weight(WEIGHT), output="y")

    draft = drafts["passing"]
    draft.node("Relu", draft.feed(_values(2, 8)), output="y")

    draft = drafts["integers"]
    floats = draft.node("Cast", draft.feed(np.arange(6, dtype=np.int64).reshape(2, 3)), to=1)
    draft.node("Mul", floats, draft.weight(np.array([2.0], np.float32)), output="y")

    draft = drafts["tokens"]
    ids = draft.feed(np.arange(6, dtype=np.int64).reshape(2, 3))
    rows = draft.node("Gather", draft.weight(_values(10, 8)), ids, axis=0)
    draft.node("MatMul", rows, draft.weight(WEIGHT), output="y")

    draft = drafts["slow"]  # sixteen rotations: values stay as large as they are
    rotation = draft.weight(np.linalg.qr(_values(256, 256))[0].astype(np.float32))
    current = draft.feed(_values(256, 256, seed=3))
    for _ in range(16):
        current = draft.node("MatMul", current, rotation)

    draft = drafts["double"]  # twice, not once: a product by one may be optimised away
    draft.node("Mul", draft.feed(_values(1, 8)), draft.weight(np.array([2.0], np.float32)), output="y")

    draft = drafts["ones"]
    draft.node("MatMul", draft.feed(np.ones((1, 4096), np.float32)), draft.weight(np.ones((4096, 1), np.float32)))

    draft = drafts["half"]
    draft.node("MatMul", draft.feed(_values(8, 512, seed=4)), draft.weight(_values(512, 16, seed=5), "w"), output="y")

    draft = drafts["names"]
    middle = draft.node("Relu", draft.feed(_values(2, 8), "in/put:0"), label="")
    middle = draft.node("MatMul", middle, draft.weight(WEIGHT), label="blocks.0/attn/MatMul:1")
    draft.node("Relu", middle, output="out/put.1")

    draft = drafts["twins"]
    middle = draft.node("Relu", draft.feed(_values(2, 8)), label="twin")
    draft.node("MatMul", middle, draft.weight(WEIGHT), output="y", label="twin")
    return drafts


def _opset_graphs() -> dict[str, _Draft]:
    return {f"opset {number}": _base(_Draft("opset", opset=number)) for number in range(10, 19)}


def _newer_graphs() -> dict[str, _Draft]:
    einsum = _Draft("newer", opset=12)
    einsum.node("Einsum", einsum.feed(_values(2, 8)), einsum.weight(WEIGHT), equation="bi,io->bo")
    norm = _Draft("newer", opset=17)
    norm.node("LayerNormalization", norm.feed(_values(2, 8)), norm.weight(_values(8)), norm.weight(_values(8, seed=6)))
    outside = _base(_Draft("newer"))
    outside.external["w"] = "outside.bin"
    foreign = _Draft("newer")
    foreign.node("NoSuchOperator", foreign.feed(_values(2, 8)), domain="clipmlu.probe")
    foreign.expected = [_values(2, 8)]
    attention = _Draft("newer")  # softmax(q k') v, as the towers have it, in one graph
    q, k, v = (attention.feed(_values(2, 4, 8, seed=seed)) for seed in (7, 8, 9))
    scores = attention.node("MatMul", q, attention.node("Transpose", k, perm=[0, 2, 1]))
    attention.node("MatMul", attention.node("Softmax", scores, axis=2), v)
    return {
        "Einsum at 12": einsum,
        "LayerNormalization at 17": norm,
        "weights outside": outside,
        "foreign domain": foreign,
        "attention at 11": attention,
    }


# ---- one graph for each operator of the lowered graphs ------------------------------------------------------------------

Recipe = Callable[[_Draft], None]


def _simple(op: str, positive: bool = False, **attributes: Any) -> Recipe:
    def recipe(draft: _Draft) -> None:
        values = _values(2, 8)
        draft.node(op, draft.feed(np.abs(values) + np.float32(0.1) if positive else values), **attributes)

    return recipe


def _pair(op: str, positive: bool = False) -> Recipe:
    def recipe(draft: _Draft) -> None:
        second = _values(1, 8, seed=2)
        draft.node(
            op, draft.feed(_values(2, 8)), draft.weight(np.abs(second) + np.float32(0.5) if positive else second)
        )

    return recipe


def _picture(op: str, **attributes: Any) -> Recipe:
    def recipe(draft: _Draft) -> None:
        draft.node(op, draft.feed(_values(1, 2, 6, 6)), **attributes)

    return recipe


def _compared(op: str) -> Recipe:
    """A comparison, whose result leaves the graph as a number."""

    def recipe(draft: _Draft) -> None:
        second = _values(2, 8, seed=2)
        second[0, :3] = _values(2, 8)[0, :3]  # some are equal
        draft.node("Cast", draft.node(op, draft.feed(_values(2, 8)), draft.weight(second)), to=1)

    return recipe


def _logical(op: str) -> Recipe:
    def recipe(draft: _Draft) -> None:
        x = draft.feed(_values(2, 8))
        sides = [draft.node("Less", x, draft.weight(np.float32(0.5)))]
        if op != "Not":
            sides.append(draft.node("Less", draft.weight(np.float32(-0.5)), x))
        draft.node("Cast", draft.node(op, *sides), to=1)

    return recipe


def _batch_normalization(draft: _Draft) -> None:
    values = _values(1, 2, 6, 6)
    scale, bias, mean = (_values(2, seed=seed) for seed in (2, 3, 4))
    variance = np.abs(_values(2, seed=5)) + np.float32(0.5)
    draft.node("BatchNormalization", draft.feed(values), *map(draft.weight, (scale, bias, mean, variance)))
    a, b, m, v = (each.reshape(1, 2, 1, 1) for each in (scale, bias, mean, variance))
    # onnx.reference mixes the batch's own mean into this operator's before opset 14, as in training.
    draft.expected = [(a * (values - m) / np.sqrt(v + np.float32(1e-5)) + b).astype(np.float32)]


def _cast(draft: _Draft) -> None:
    draft.node("Cast", draft.node("Cast", draft.feed(_values(2, 8)), to=6), to=1)


def _clip(draft: _Draft) -> None:
    draft.node("Clip", draft.feed(_values(2, 8)), draft.weight(np.float32(-0.5)), draft.weight(np.float32(1.0)))


def _concat(draft: _Draft) -> None:
    draft.node("Concat", draft.feed(_values(2, 8)), draft.weight(_values(2, 3, seed=2)), axis=1)


def _constant_of_shape(draft: _Draft) -> None:
    x = draft.feed(_values(2, 8))
    draft.node("Add", x, draft.node("ConstantOfShape", draft.node("Shape", x)))


def _conv(draft: _Draft) -> None:
    weights = [draft.weight(_values(3, 2, 3, 3, seed=2)), draft.weight(_values(3, seed=3))]
    draft.node("Conv", draft.feed(_values(1, 2, 6, 6)), *weights, kernel_shape=[3, 3], strides=[3, 3])


def _expand(draft: _Draft) -> None:
    draft.node("Expand", draft.feed(_values(2, 1)), draft.weight(np.array([2, 8])))


def _gather(draft: _Draft) -> None:
    draft.node("Gather", draft.feed(_values(2, 8)), draft.weight(np.array([[0, 7], [3, 3]])), axis=1)


def _gather_nd(draft: _Draft) -> None:
    draft.node("GatherND", draft.feed(_values(2, 8)), draft.weight(np.array([[0, 7], [1, 3]])))


def _gemm(draft: _Draft) -> None:
    weights = [draft.weight(_values(5, 8, seed=2)), draft.weight(_values(5, seed=3))]
    draft.node("Gemm", draft.feed(_values(2, 8)), *weights, transB=1, alpha=0.5, beta=2.0)


def _is_nan(draft: _Draft) -> None:
    x = draft.feed(_values(2, 8))
    draft.node("Cast", draft.node("IsNaN", x), to=1)


def _matmul(draft: _Draft) -> None:
    draft.node("MatMul", draft.feed(_values(2, 3, 8)), draft.weight(WEIGHT))


def _pad(draft: _Draft) -> None:
    draft.node("Pad", draft.feed(_values(2, 8)), draft.weight(np.array([0, 1, 1, 2])), mode="constant")


def _power(draft: _Draft) -> None:
    draft.node("Pow", draft.feed(_values(2, 8)), draft.weight(np.float32(2.0)))


def _range(draft: _Draft) -> None:
    x = draft.feed(_values(2, 8))
    size = draft.node("Gather", draft.node("Shape", x), draft.weight(np.array(1)), axis=0)
    numbers = draft.node("Range", draft.weight(np.array(0)), size, draft.weight(np.array(1)))
    draft.node("Add", x, draft.node("Cast", numbers, to=1))


def _reshape(draft: _Draft) -> None:
    draft.node("Reshape", draft.feed(_values(2, 8)), draft.weight(np.array([2, 2, -1])))


def _resize(draft: _Draft) -> None:
    empty = draft.weight(np.zeros(0, np.float32))
    scales = draft.weight(np.array([1, 1, 2, 2], np.float32))
    how: dict[str, Any] = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    draft.node("Resize", draft.feed(_values(1, 2, 3, 3)), empty, scales, **how)


def _shape(draft: _Draft) -> None:
    draft.node("Shape", draft.feed(_values(2, 8)))


def _slice(draft: _Draft) -> None:
    ends = [draft.weight(np.array(each)) for each in ([1], [7], [1], [2])]
    draft.node("Slice", draft.feed(_values(2, 8)), *ends)


def _split(draft: _Draft) -> None:
    draft.node("Split", draft.feed(_values(2, 8)), count=2, axis=1, split=[3, 5])


def _squeeze(draft: _Draft) -> None:
    draft.node("Squeeze", draft.feed(_values(2, 1, 8)), axes=[1])


def _tile(draft: _Draft) -> None:
    draft.node("Tile", draft.feed(_values(2, 8)), draft.weight(np.array([2, 3])))


def _where(draft: _Draft) -> None:
    x = draft.feed(_values(2, 8))
    draft.node("Where", draft.node("Less", x, draft.weight(np.float32(0.0))), draft.weight(_values(2, 8, seed=2)), x)


OPERATOR_RECIPES: dict[str, Recipe] = {
    "Abs": _simple("Abs"),
    "Add": _pair("Add"),
    "And": _logical("And"),
    "ArgMax": _simple("ArgMax", axis=1, keepdims=0),
    "AveragePool": _picture("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Div": _pair("Div", positive=True),
    "Equal": _compared("Equal"),
    "Erf": _simple("Erf"),
    "Exp": _simple("Exp"),
    "Expand": _expand,
    "Flatten": _picture("Flatten"),
    "Floor": _simple("Floor"),
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "GlobalAveragePool": _picture("GlobalAveragePool"),
    "Greater": _compared("Greater"),
    "Identity": _simple("Identity"),
    "IsNaN": _is_nan,
    "LeakyRelu": _simple("LeakyRelu", alpha=0.2),
    "Less": _compared("Less"),
    "Log": _simple("Log", positive=True),
    "LogSoftmax": _simple("LogSoftmax", axis=1),
    "MatMul": _matmul,
    "Max": _pair("Max"),
    "MaxPool": _picture("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    "Min": _pair("Min"),
    "Mul": _pair("Mul"),
    "Neg": _simple("Neg"),
    "Not": _logical("Not"),
    "Or": _logical("Or"),
    "Pad": _pad,
    "Pow": _power,
    "Range": _range,
    "Reciprocal": _simple("Reciprocal", positive=True),
    "ReduceL2": _simple("ReduceL2", axes=[1], keepdims=1),
    "ReduceMax": _simple("ReduceMax", axes=[1], keepdims=0),
    "ReduceMean": _simple("ReduceMean", axes=[1], keepdims=1),
    "ReduceMin": _simple("ReduceMin", axes=[1], keepdims=0),
    "ReduceSum": _simple("ReduceSum", axes=[1], keepdims=1),
    "Relu": _simple("Relu"),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _simple("Sigmoid"),
    "Slice": _slice,
    "Softmax": _simple("Softmax", axis=1),
    "Softplus": _simple("Softplus"),
    "Split": _split,
    "Sqrt": _simple("Sqrt", positive=True),
    "Squeeze": _squeeze,
    "Sub": _pair("Sub"),
    "Tanh": _simple("Tanh"),
    "Tile": _tile,
    "Transpose": _simple("Transpose", perm=[1, 0]),
    "Unsqueeze": _simple("Unsqueeze", axes=[1]),
    "Where": _where,
}
"""Operator -> how to draw its graph; the operators of ``clipmlu.graph.lowering.MAGICMIND``, which a test compares."""
