"""The parity gate of an export: torch against ONNX Runtime, on several batch sizes, before publication."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from clipmlu.backends import Session, SessionOptions
from clipmlu.backends.onnxruntime import OnnxRuntimeSession
from clipmlu.bundle.manifest import ParityRecord, Tower
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import ClipmluError, ExportError, ParityError
from clipmlu.export.loading import LoadedModel
from clipmlu.export.options import PURPOSE, ExportOptions
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.tokenizers import TokenSampler
from clipmlu.export.towers import TowerProgram
from clipmlu.graph.parity import allowed_logit_difference, compare_outputs, is_within
from clipmlu.host import require
from clipmlu.specs import PreprocessSpec, TowerName
from clipmlu.steps import StartStep, counted, no_steps

_Array = npt.NDArray[Any]

# Batch sizes 1 and a prime reveal a graph with a fixed batch; the number of texts of the joint graph is the next size.
_BATCH_SIZES = (1, 2, 5, 8)
_BATCH_SIZES_LARGE = (1, 3)
_LARGE_PARAMETERS = 300_000_000  # larger models take seconds per image


def check_parity(
    program: TowerProgram,
    tower: Tower,
    folder: Path,
    model: LoadedModel,
    tokenizer: Tokenizer,
    options: ExportOptions,
    on_step: StartStep = no_steps,
) -> tuple[ParityRecord, ...]:
    """Compare an exported graph with its torch module.

    Embeddings: every element within ``max_abs_diff``, every row's cosine at least ``min_cosine``. Logits of the joint
    graph: every element within ``max_abs_diff`` times the logit scale (or times 1, if the scale is less).

    Args:
        program: the torch module.
        tower: the graph, as returned by ``export_graph``.
        folder: folder of the graph's file.
        model: the model of the module.
        tokenizer: the bundle's tokenizer, used for the token ids.
        options: the bounds.
        on_step: shows the batches.

    Returns:
        One record for each output and batch size.

    Raises:
        ParityError: a difference is out of bounds.
        ExportError: the graph does not run, or torch itself gives values that are not finite.
    """
    label = f"The exported {program.tower} graph"
    allowed = allowed_difference(program.tower, model.logit_scale, options)
    records: list[ParityRecord] = []
    sizes = _batch_sizes(model)
    with (
        on_step(f"checking the {program.tower} tower against torch", total=len(sizes), unit="batches") as step,
        open_tower(tower, folder, label) as session,
    ):
        for batch_size, feeds in counted(_draw_batches(program, model, tokenizer, sizes), step):
            expected = _run_torch(program, feeds)
            found = run_graph(session, feeds, label)
            for output in program.outputs:
                record = compare_outputs(
                    program.tower, output, expected[output], found[output], batch_size=batch_size, allowed=allowed
                )
                records.append(record)
    refuse_differences(records, options.min_cosine)
    return tuple(records)


def _batch_sizes(model: LoadedModel) -> tuple[int, ...]:
    return _BATCH_SIZES_LARGE if model.parameter_count > _LARGE_PARAMETERS else _BATCH_SIZES


def _draw_batches(
    program: TowerProgram, model: LoadedModel, tokenizer: Tokenizer, sizes: Sequence[int]
) -> Iterator[tuple[int, dict[str, _Array]]]:
    generator = np.random.default_rng(0)
    texts = TokenSampler(tokenizer)
    for index, size in enumerate(sizes):
        feeds: dict[str, _Array] = {}
        if "pixel_values" in program.inputs:
            feeds["pixel_values"] = draw_images(size, model.preprocess, generator)
        if "input_ids" in program.inputs:
            rows = sizes[(index + 1) % len(sizes)] if program.tower == "joint" else size
            feeds["input_ids"] = texts.draw(rows, generator)
        yield size, feeds


def draw_images(count: int, spec: PreprocessSpec, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return normalised images, float32, shape (count, 3, height, width): alternately fine and coarse noise."""
    pixels = generator.integers(0, 256, (count, 3, spec.height, spec.width)).astype(np.float32) / np.float32(255)
    coarse = generator.random((count, 3, 8, 8), dtype=np.float32)
    rows, columns = np.arange(spec.height) * 8 // spec.height, np.arange(spec.width) * 8 // spec.width
    pixels[1::2] = coarse[1::2][:, :, rows][:, :, :, columns]
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    return (pixels - mean[:, None, None]) / std[:, None, None]


def _run_torch(program: TowerProgram, feeds: Mapping[str, _Array]) -> dict[str, _Array]:
    torch = require("torch", "export", PURPOSE)
    with quiet_libraries(), torch.no_grad():
        results = program.module(*(torch.from_numpy(feeds[name]) for name in program.inputs))
    tensors = results if isinstance(results, tuple) else (results,)
    arrays = {name: tensor.numpy() for name, tensor in zip(program.outputs, tensors, strict=True)}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ExportError(
                f"The torch model itself gives values in '{name}' that are not finite. Check its weights."
            )
    return arrays


def open_tower(tower: Tower, folder: Path, label: str) -> Session:
    """Open a graph of a bundle that is being written, for the checks before it is published."""
    return OnnxRuntimeSession(tower, folder / tower.file, label, SessionOptions(busy_wait=False))


def run_graph(session: Session, feeds: Mapping[str, _Array], label: str) -> Mapping[str, _Array]:
    """Run such a graph.

    Raises:
        ExportError: it does not run.
    """
    try:
        return session.run(feeds)
    except ClipmluError as error:  # typically a size that the exporter made constant
        rows = len(next(iter(feeds.values())))
        raise ExportError(f"{label} does not run with a batch of {rows}: {error}") from error


def allowed_difference(tower: TowerName, logit_scale: float, options: ExportOptions) -> float:
    """Return the largest allowed difference of an element of a tower's output."""
    tolerance = options.max_abs_diff
    return allowed_logit_difference(tolerance, logit_scale) if tower == "joint" else tolerance


def refuse_differences(
    records: Sequence[ParityRecord],
    min_cosine: float,
    *,
    made: str = "exported",
    reference: str = "torch",
    reason: str = "",
) -> None:
    """Raise if a difference is out of bounds; the message gives the first one and how many more there are.

    Args:
        records: the measured differences.
        min_cosine: smallest allowed cosine similarity.
        made: how the graphs were made, for the message.
        reference: what they were compared with.
        reason: further sentences of the message.

    Raises:
        ParityError: a difference is out of bounds.
    """
    failed = [record for record in records if not is_within(record, min_cosine)]
    if not failed:
        return
    first = failed[0]
    cosine = "" if first.min_cosine is None else f", cosine {first.min_cosine:.6f} (at least {min_cosine})"
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    raise ParityError(
        f"The {made} {first.tower} graph differs from {reference} in '{first.output}' at batch size {first.batch_size}: "
        f"{first.max_abs_diff:.3g} (allowed {first.allowed_abs_diff:.3g}){cosine}{more}. No bundle was written.{reason}",
        map(msgspec.structs.asdict, failed),
    )
