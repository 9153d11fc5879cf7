"""The gate of a compilation: compares the compiled graphs with the exported ones, on calibration or drawn images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipmlu.backends import Session, SessionOptions
from clipmlu.backends.onnxruntime import OnnxRuntimeSession
from clipmlu.bundle.directory import ExportedBundle
from clipmlu.bundle.manifest import Manifest, ParityRecord
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.data.calibration_set import CalibrationSet, cut_batches
from clipmlu.data.datasets import open_dataset
from clipmlu.data.feeds import Array
from clipmlu.data.preprocess import Preprocessor
from clipmlu.data.prompts import fill_template
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import BundleCorruptError, GateError
from clipmlu.graph.parity import (
    FLOAT32_TOLERANCE,
    MIN_AGREEMENT,
    MIN_COSINE,
    allowed_embedding_difference,
    allowed_logit_difference,
    compare_outputs,
    is_within,
)
from clipmlu.graph.pixels import PIXELS, takes_uint8
from clipmlu.specs import Precision, TowerName
from clipmlu.steps import StartStep, Step, counted, no_steps

_IMAGES = 64
_TEMPLATE = "a photo of a {}."
_TIE = 1e-3  # classes with cosine similarities this close in float32 count as equally good

OpenSession = Callable[[TowerName], Session]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The required agreement; None for the precision's default, ``parity.MIN_COSINE`` and ``parity.MIN_AGREEMENT``.

    Attributes:
        min_cosine: smallest cosine similarity of a compiled embedding and its float32 reference.
        min_agreement: smallest share of images with the same best class as in float32.
    """

    min_cosine: float | None = None
    min_agreement: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """The measured agreement.

    Attributes:
        parity: one record per output.
        agreement: share of images with the same best class as in float32, or one as good there: within 0.001 of the
            cosine similarity; for the joint layout, by its logits for the texts of one batch.
    """

    parity: tuple[ParityRecord, ...]
    agreement: float


def check_agreement(
    exported: ExportedBundle,
    compiled: RunnableModel,
    open_session: OpenSession,
    precisions: Mapping[TowerName, Precision],
    calibration: CalibrationSet | None,
    thresholds: Thresholds,
    on_step: StartStep = no_steps,
) -> Agreement:
    """Run the exported and the compiled graphs on the same images and texts; raise if the results disagree.

    Images and texts are those of the calibration if there is one, else images of the demo dataset and the names of its
    classes. With random weights the best class is a matter of chance, so it is not compared by default.

    Args:
        exported: the exported bundle.
        compiled: the compiled graphs.
        open_session: opens a compiled tower.
        precisions: maps each tower to its precision.
        calibration: the calibration data, or None.
        thresholds: the required agreement.
        on_step: shows the batches of each tower.

    Raises:
        GateError: the results disagree.
        BundleCorruptError: the exported graphs' results cannot be right.
    """
    with on_step("preparing images for the check"):
        pixels, input_ids = _rows(exported, calibration)
        normalised = Preprocessor(exported.manifest.preprocess).normalise_batch(pixels)
    records: list[ParityRecord] = []
    results: dict[TowerName, tuple[Array, Array]] = {}
    for name in exported.manifest.towers:
        precision = precisions[name]
        floor = _floor(precision, thresholds)
        taken = pixels if takes_uint8(compiled.tower(name)) else normalised
        batches = list(_batches(compiled, name, {PIXELS: normalised, "input_ids": input_ids}))
        with on_step(f"checking the {name} tower", total=2 * len(batches), unit="batches") as step:
            with _open_reference(exported, name) as session:
                reference = _run(session, batches, step)
            _check_reference(exported, name, reference)
            with open_session(name) as session:
                measured = _run(session, _batches(compiled, name, {PIXELS: taken, "input_ids": input_ids}), step)
        allowed = _allowed_difference(exported.manifest, name, precision, floor)
        found = [
            compare_outputs(name, output, rows, measured[output], batch_size=len(rows), allowed=allowed)
            for output, rows in reference.items()
        ]
        failed = [record for record in found if not is_within(record, floor)]
        if failed:
            raise GateError(_disagreement(max(failed, key=lambda record: record.max_abs_diff), floor))
        records += found
        results[name] = (next(iter(reference.values())), next(iter(measured.values())))
    agreement = _same_best_class(*_similarities(results, exported.manifest.logit_scale))
    required = _required_agreement(exported.manifest, precisions[exported.image_graph], thresholds)
    if agreement < required:
        raise GateError(
            f"The compiled graphs choose the same class as the exported ones for {agreement:.3f} of the checked images; "
            f"required: {required:g} (--min-agreement). No bundle was written."
        )
    return Agreement(parity=tuple(records), agreement=agreement)


def _check_reference(exported: ExportedBundle, name: TowerName, results: Mapping[str, Array]) -> None:
    """Check that the results of an exported graph are possible ones.

    Raises:
        BundleCorruptError: a result is not finite, or logits are all equal or beyond the logit scale.
    """
    manifest, where = exported.manifest, f"Graph '{exported.tower(name).file}' of bundle '{exported.path}'"
    for output, values in results.items():
        if not np.isfinite(values).all():
            raise BundleCorruptError(
                f"{where} gives '{output}' with NaN or infinity for ordinary inputs. Export it again."
            )
        if name != "joint" or not output.startswith("logits"):
            continue
        logits = np.asarray(values, np.float64) - (manifest.logit_bias or 0.0)
        if (values.size > 1 and not np.ptp(logits)) or np.abs(logits).max() > manifest.logit_scale * (1 + _TIE):
            raise BundleCorruptError(
                f"{where} gives logits from {values.min():g} to {values.max():g}; the logit scale {manifest.logit_scale:g} and "
                f"bias {manifest.logit_bias or 0:g} of its manifest allow others. Export it again."
            )


def _floor(precision: Precision, thresholds: Thresholds) -> float:
    """Return the smallest allowed cosine similarity."""
    return MIN_COSINE[precision] if thresholds.min_cosine is None else thresholds.min_cosine


def _required_agreement(manifest: Manifest, precision: Precision, thresholds: Thresholds) -> float:
    """Return the smallest allowed share of images with the same best class; 0 by default for random weights."""
    if thresholds.min_agreement is not None:
        return thresholds.min_agreement
    return MIN_AGREEMENT[precision] if manifest.model.random_seed is None else 0.0


def _allowed_difference(manifest: Manifest, tower: TowerName, precision: Precision, floor: float) -> float:
    """Return the largest allowed difference of an element of a tower's output."""
    allowed = allowed_embedding_difference(precision, floor)
    if tower != "joint":
        return allowed
    # In float32 the error of a logit is that of one element; otherwise both embeddings may differ by the allowed
    # amount.
    per_logit = FLOAT32_TOLERANCE if allowed == FLOAT32_TOLERANCE else 2 * allowed
    return allowed_logit_difference(per_logit, manifest.logit_scale)


def _similarities(
    results: Mapping[TowerName, tuple[Array, Array]], logit_scale: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return cosine similarities of images and texts, shape (N, M), of both sides; a logit bias is included in both."""
    if "joint" in results:
        reference, measured = results["joint"]
        return np.asarray(reference, np.float32) / logit_scale, np.asarray(measured, np.float32) / logit_scale
    images, texts = results["image"], results["text"]
    reference, measured = (
        np.asarray(image, np.float32) @ np.asarray(text, np.float32).T
        for image, text in zip(images, texts, strict=True)
    )
    return reference, measured


def _same_best_class(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    rows = np.arange(len(expected))
    lead = expected.max(axis=1) - expected[rows, found.argmax(axis=1)]
    return float(np.mean(lead <= _TIE))


def _rows(
    exported: ExportedBundle, calibration: CalibrationSet | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the inputs of the comparison: pixels, uint8, shape (N, 3, height, width), and token ids."""
    preprocess = Preprocessor(exported.manifest.preprocess)
    if calibration is not None:
        pixels = calibration.pixels[:_IMAGES]
        prompts = list(calibration.prompts[:_IMAGES])
    else:
        images, class_names = _drawn_images()
        pixels = np.stack([preprocess.pixels(image) for image in images])
        prompts = ["", *(fill_template(_TEMPLATE, name) for name in class_names)]
    tokenizer = Tokenizer.load(exported.tokenizer_path, exported.manifest.tokenizer)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), tokenizer(prompts)


@functools.cache
def _drawn_images() -> tuple[tuple[Image.Image, ...], tuple[str, ...]]:
    """Return images of the demo dataset and the names of its classes; small models are checked faster than these are drawn."""
    drawn = open_dataset("demo", size=_IMAGES)
    return tuple(drawn.image(index) for index in range(len(drawn))), tuple(drawn.class_names)


def _batches(compiled: RunnableModel, tower: TowerName, rows: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Yield the rows in batches of the compiled tower's size; texts of the joint layout are the same each time."""
    facts = compiled.compilation
    inputs = compiled.tower(tower).inputs
    cut = {}
    for tensor in inputs:
        free = min(facts.batch_size, facts.max_batch) if isinstance(tensor.shape[0], str) else tensor.shape[0]
        cut[tensor.name] = cut_batches(rows[tensor.name], free)
    steps = len(cut[inputs[0].name])
    for step in range(steps):
        yield {name: batches[step if len(batches) == steps else 0] for name, batches in cut.items()}


def _run(session: Session, batches: Iterable[dict[str, Array]], step: Step) -> dict[str, Array]:
    results = [session.run(feeds) for feeds in counted(batches, step)]
    return {name: np.concatenate([result[name] for result in results]) for name in session.outputs}


def _open_reference(exported: ExportedBundle, tower: TowerName) -> Session:
    label = f"Bundle '{exported.path}' ({exported.tower(tower).file})"
    options = SessionOptions(busy_wait=False)
    return OnnxRuntimeSession(exported.tower(tower), exported.tower_path(tower), label, options)


def _disagreement(record: ParityRecord, floor: float) -> str:
    cosine = "" if record.min_cosine is None else f" (smallest cosine {record.min_cosine:.6f}, allowed {floor:g})"
    return (
        f"Compiled {record.tower} tower differs from the exported one by {record.max_abs_diff:.3g} in '{record.output}'; "
        f"allowed: {record.allowed_abs_diff:.3g}{cosine}. No bundle was written."
    )
