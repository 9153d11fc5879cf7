"""A tiny model whose towers are written by hand, with the same arithmetic in NumPy as the reference.

Image tower: mean over each of the 2 x 2 quarters of the picture, a linear layer, unit norm.
Text tower: sum of token embeddings, unit norm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import AnyStr

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from clipmlu.api.pipeline import kept_name
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled, open_exported, stage_bundle
from clipmlu.bundle.manifest import (
    TOKENIZER_NAME,
    Export,
    Manifest,
    ParityRecord,
    Tower,
    current_tool_versions,
    text_id_of,
)
from clipmlu.chain import export_key
from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.data.tokenizer import write_stand_in_tokenizer
from clipmlu.errors import InputError
from clipmlu.export.exporter import ExportOptions
from clipmlu.specs import Layout, ModelId, PreprocessSpec, TensorSpec, TokenizerSpec, TowerName
from clipmlu.steps import Step
from clipmlu.tune.resume import ResultStore

SIDE = 8
DIM = 12
CONTEXT = 32
VOCAB = 300
LOGIT_SCALE = 20.0
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

FloatArray = npt.NDArray[np.float32]

_ELEMENTS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
TOWERS: dict[TowerName, Tower] = {
    "image": Tower(
        file="image.onnx",
        inputs=(TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 3, SIDE, SIDE)),),
        outputs=(TensorSpec(name="image_embeds", dtype="float32", shape=("batch", DIM)),),
    ),
    "text": Tower(
        file="text.onnx",
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("batch", CONTEXT)),),
        outputs=(TensorSpec(name="text_embeds", dtype="float32", shape=("batch", DIM)),),
    ),
}
JOINT: dict[TowerName, Tower] = {
    "joint": Tower(
        file="joint.onnx",
        inputs=(
            TensorSpec(name="pixel_values", dtype="float32", shape=("image_batch", 3, SIDE, SIDE)),
            TensorSpec(name="input_ids", dtype="int64", shape=("text_batch", CONTEXT)),
        ),
        outputs=(
            TensorSpec(name="logits_per_image", dtype="float32", shape=("image_batch", "text_batch")),
            TensorSpec(name="logits_per_text", dtype="float32", shape=("text_batch", "image_batch")),
        ),
    )
}


def weights(seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """The image tower's (12, DIM) matrix and the text tower's (VOCAB, DIM) table."""
    generator = np.random.default_rng(seed)
    return (
        generator.standard_normal((12, DIM), dtype=np.float32),
        generator.standard_normal((VOCAB, DIM), dtype=np.float32),
    )


def embed_images(pixel_values: FloatArray, seed: int = 0) -> FloatArray:
    """The image tower in NumPy, float64 inside."""
    half = SIDE // 2
    quarters = pixel_values.astype(np.float64).reshape(-1, 3, 2, half, 2, half).mean(axis=(3, 5)).reshape(-1, 12)
    return _unit(quarters @ weights(seed)[0])


def embed_tokens(input_ids: npt.NDArray[np.int64]) -> FloatArray:
    """The text tower in NumPy, float64 inside."""
    return _unit(weights()[1].astype(np.float64)[input_ids].sum(axis=1))


def preprocess(image: Image.Image) -> FloatArray:
    """What the tiny model's manifest says, for square RGB pictures of the right size: scale to 0..1, then (x - 0.5) / 0.25."""
    assert image.size == (SIDE, SIDE)
    assert image.mode == "RGB"
    pixels = np.asarray(image, np.float32) / np.float32(255)
    return ((pixels - np.float32(0.5)) / np.float32(0.25)).transpose(2, 0, 1)


def normalise_as_clip(pixels: npt.NDArray[np.uint8]) -> FloatArray:
    """uint8 pixels of shape (N, 3, H, W) as torchvision's ToTensor and Normalize make them, in float32."""
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def with_clips_normalisation(bundle: ExportedBundle) -> ExportedBundle:
    """The bundle, changed in place, with CLIP's mean and standard deviation, which no float type holds exactly."""
    spec = PreprocessSpec(height=SIDE, width=SIDE, mean=CLIP_MEAN, std=CLIP_STD)
    edit_manifest(bundle.path, preprocess=msgspec.to_builtins(spec))
    return open_exported(bundle.path)


def picture(seed: int) -> Image.Image:
    """A noise picture of the tiny model's size."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8))


@dataclasses.dataclass
class Pictures:
    """Noise pictures with drawn labels; those in ``broken`` cannot be read."""

    size: int
    broken: frozenset[int] = frozenset()
    class_names: tuple[str, ...] = NAMES
    max_pixels: int = DEFAULT_MAX_PIXELS
    name: str = "pictures"
    split: str = "test"

    def __post_init__(self) -> None:
        self.original_names = tuple(name.upper() for name in self.class_names)
        self.labels = np.random.default_rng(7).integers(
            0, len(self.class_names) - 1, self.size
        )  # the last class stays empty

    def __len__(self) -> int:
        return self.size

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def image(self, index: int) -> Image.Image:
        if index in self.broken:
            raise InputError(f"Image '{index}' is broken")
        return picture(index)

    def source(self, index: int) -> Image.Image:
        return self.image(index)

    def key(self, index: int) -> str:
        return f"pictures/{index}"


def joint_logits(
    pixel_values: FloatArray, input_ids: npt.NDArray[np.int64], logit_bias: float | None = None
) -> npt.NDArray[np.float64]:
    """The fused graph in NumPy: scaled and shifted similarities of every image with every text."""
    similarities = embed_images(pixel_values).astype(np.float64) @ embed_tokens(input_ids).astype(np.float64).T
    return LOGIT_SCALE * similarities + (logit_bias or 0.0)


def write_exported(
    path: Path,
    *,
    seed: int = 0,
    logit_bias: float | None = None,
    layout: Layout = "towers",
    needs_tokenizers: bool = False,
) -> ExportedBundle:
    """Publish the tiny model as an exported bundle, if wanted with a tokenizer that only the library ``tokenizers`` reads."""
    towers = JOINT if layout == "joint" else TOWERS
    with stage_bundle(path) as staging:
        if layout == "joint":
            onnx.save(_joint_graph(seed, logit_bias), staging.path / "joint.onnx")
        else:
            onnx.save(_image_graph(seed), staging.path / "image.onnx")
            onnx.save(_text_graph(seed), staging.path / "text.onnx")
        write_stand_in_tokenizer(staging.path / TOKENIZER_NAME, VOCAB)
        if needs_tokenizers:
            file = msgspec.json.decode((staging.path / TOKENIZER_NAME).read_bytes())
            (staging.path / TOKENIZER_NAME).write_bytes(msgspec.json.encode({**file, "normalizer": {"type": "NFKC"}}))
        tokenizer = TokenizerSpec(kind="huggingface", clean="lower", context_length=CONTEXT)
        files = staging.records()
        staging.finish(
            Manifest(
                kind="exported",
                model=ModelId(name="tiny", random_seed=seed),
                layout=layout,
                towers=towers,
                preprocess=PreprocessSpec(height=SIDE, width=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
                tokenizer=tokenizer,
                embedding_dim=DIM,
                logit_scale=LOGIT_SCALE,
                logit_bias=logit_bias,
                activation="none",
                text_id=text_id_of(files, [list(towers.values())[-1].file], tokenizer),
                export=Export(
                    opset=18,
                    exporter="by hand",
                    weights_digest="0" * 64,
                    source_files={},
                    parity=(
                        ParityRecord(
                            tower=next(iter(towers)),
                            output=next(iter(towers.values())).outputs[0].name,
                            batch_size=1,
                            max_abs_diff=0.0,
                            min_cosine=1.0,
                            allowed_abs_diff=1e-5,
                        ),
                    ),
                ),
                files=files,
                tool_versions=current_tool_versions("onnx"),
            )
        )
    return open_exported(path)


def edit_manifest(bundle: Path, **changes: object) -> None:
    """Replace top-level fields of a bundle's manifest, as somebody tampering with it would."""
    path = bundle / "manifest.json"
    content = msgspec.json.decode(path.read_bytes())
    content.update(changes)
    path.write_bytes(msgspec.json.encode(content))


def with_compilation(bundle: CompiledBundle, output: Path, **changes: object) -> CompiledBundle:
    """A copy of a compiled bundle whose record of the compilation says something else."""
    shutil.copytree(bundle.path, output)
    compilation = msgspec.structs.replace(bundle.compilation, **changes)
    edit_manifest(output, compilation=msgspec.to_builtins(compilation))
    return open_compiled(output)


def _unit(rows: npt.NDArray[np.float64]) -> FloatArray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _image_nodes() -> list[onnx.NodeProto]:
    half = SIDE // 2
    return [
        helper.make_node("AveragePool", ["pixel_values"], ["pooled"], kernel_shape=[half, half], strides=[half, half]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["raw"]),
        helper.make_node("LpNormalization", ["raw"], ["image_embeds"], axis=1, p=2),
    ]


def _text_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("ReduceSum", ["tokens", "axes"], ["raw_texts"], keepdims=0),
        helper.make_node("LpNormalization", ["raw_texts"], ["text_embeds"], axis=1, p=2),
    ]


def _image_graph(seed: int) -> onnx.ModelProto:
    return _model(_image_nodes(), TOWERS["image"], {"weight": weights(seed)[0]})


def _text_graph(seed: int) -> onnx.ModelProto:
    constants = {"table": weights(seed)[1], "axes": np.array([1], np.int64)}
    return _model(_text_nodes(), TOWERS["text"], constants)


def _joint_graph(seed: int, logit_bias: float | None) -> onnx.ModelProto:
    image, text = weights(seed)
    constants = {
        "weight": image,
        "table": text,
        "axes": np.array([1], np.int64),
        "scale": np.array(LOGIT_SCALE, np.float32),
        "bias": np.array(logit_bias or 0.0, np.float32),
    }
    nodes = [
        *_image_nodes(),
        *_text_nodes(),
        helper.make_node("Mul", ["image_embeds", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["text_embeds"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["scaled", "turned"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["logits_per_image"]),
        helper.make_node("Transpose", ["logits_per_image"], ["logits_per_text"], perm=[1, 0]),
    ]
    return _model(nodes, JOINT["joint"], constants)


def _model(
    nodes: list[onnx.NodeProto], tower: Tower, constants: Mapping[str, npt.NDArray[np.generic]]
) -> onnx.ModelProto:
    given, results = (
        [helper.make_tensor_value_info(each.name, _ELEMENTS[each.dtype], list(each.shape)) for each in tensors]
        for tensors in (tower.inputs, tower.outputs)
    )
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", given, results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def put_export(bundle: ExportedBundle, folder: Path) -> ResultStore:
    """Put an export of the demo model where a run of its makes one."""
    shutil.copytree(bundle.path, folder / "exported")
    store = ResultStore(folder / "results", lambda _note: None)
    store.save("exported", export_key("demo", ExportOptions()), bundle.digest)
    return store


def keep_export(bundle: ExportedBundle, cache: Path) -> Path:
    """Put an export of the demo model where ``clipmlu.pipeline`` keeps one; return the folder of its bundles."""
    folder = cache / "models" / kept_name("demo", ExportOptions())
    put_export(bundle, folder)
    return folder


def assert_one_line(text: str, pattern: str) -> None:
    """A message is one line that matches the pattern, and no traceback."""
    assert re.search(pattern, text), text
    assert text.count("\n") == 1, text
    assert "Traceback" not in text


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something is true. The limit is long: the machines that run the tests stand still for seconds at times."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not true within {seconds:g} s"
        time.sleep(0.005)


def end_by_signal(process: subprocess.Popen[AnyStr], number: int) -> tuple[AnyStr, AnyStr]:
    """Send a signal to a process until it ends, and return what it wrote to its pipes.

    A signal that arrives between the interpreter's check for signals and a wait of its main thread is not seen before that
    wait ends.
    """
    while True:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=10)


@contextlib.contextmanager
def interrupted_when(true: Callable[[], bool]) -> Iterator[None]:
    """Interrupt the main thread, which runs the block, when something is true.

    The signal is sent until it is seen, as in ``end_by_signal``; ``KeyboardInterrupt`` is raised once.
    """
    main, seen = threading.main_thread().ident, threading.Event()
    assert main is not None

    def raise_once(_number: int, _frame: object) -> None:
        if not seen.is_set():
            seen.set()
            raise KeyboardInterrupt

    def interrupt() -> None:
        wait_until(lambda: seen.is_set() or true())
        while not seen.is_set():
            signal.pthread_kill(main, signal.SIGINT)
            seen.wait(0.2)

    before = signal.signal(signal.SIGINT, raise_once)
    sender = threading.Thread(target=interrupt)
    sender.start()
    try:
        yield
    finally:
        seen.set()
        sender.join()
        signal.signal(signal.SIGINT, before)


def hold_until_waited_for(folder: Path) -> tuple[list[str], Callable[[str], None]]:
    """Lock a folder of results, as another process does that works with them.

    Returns:
        Collected notes, and a callback for notes that unlocks the folder at the note that somebody waits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    notes: list[str] = []

    def take_note(note: str) -> None:
        notes.append(note)
        if note == f"waiting for another process that works with the results in {folder}":
            os.close(held)

    return notes, take_note


def plant_outliers(model: Path, output: Path) -> int:
    """Write a copy of a model with four outlier channels in each LayerNorm, and return the number of LayerNorms."""
    path = Path(__file__).resolve().parent.parent / "tools" / "plant_outliers.py"
    spec = importlib.util.spec_from_file_location("plant_outliers", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    planted: int = tool.plant_outliers(model, output, channels=4, factor=64.0, seed=0)
    return planted


class StepRecorder:
    """An ``on_step`` that writes down what happens to steps, in order; any thread may use it.

    Attributes:
        events: ``label (total unit)`` for a beginning, ``+count`` for an advance, ``end of label`` for an end without an
            error.
    """

    def __init__(self) -> None:
        self.events: list[str] = []

    @contextlib.contextmanager
    def __call__(self, label: str, *, total: float | None = None, unit: str = "") -> Iterator[Step]:
        self.events.append(label if total is None else f"{label} ({total} {unit})")
        yield self
        self.events.append(f"end of {label}")

    def advance(self, count: int = 1) -> None:
        self.events.append(f"+{count}")

    def labels(self) -> list[str]:
        """Return the beginnings, and check that each advanced to its total and ended before the one around it."""
        running: list[tuple[str, int | None, int]] = []
        begun: list[str] = []
        for event in self.events:
            if event.startswith("+"):
                label, total, done = running.pop()
                running.append((label, total, done + int(event)))
            elif event.startswith("end of "):
                label, total, done = running.pop()
                assert event == f"end of {label}"
                assert total is None or done == total, f"'{label}' advanced by {done} of {total}"
            else:
                begun.append(event)
                label, _, amount = event.partition(" (")
                running.append((label, int(amount.split()[0]) if amount else None, 0))
        assert not running
        return begun
