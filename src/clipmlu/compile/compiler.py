"""Compiling: every graph of an exported bundle through one backend, checked against the graphs it came from."""

from __future__ import annotations

import dataclasses
import os
import shutil

import msgspec
import numpy as np

from clipmlu.backends import Backend, Session, SessionOptions, backend_for_target
from clipmlu.backends.base import Array, GraphOptions
from clipmlu.backends.onnxruntime import OnnxRuntimeSession
from clipmlu.bundle import (
    TOKENIZER_NAME,
    Bundle,
    Compilation,
    CompiledBundle,
    ExportedBundle,
    Manifest,
    ParityRecord,
    current_tool_versions,
    open_compiled,
    open_exported,
    stage_bundle,
)
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import GateError, OptionError, PrecisionError
from clipmlu.parity import FLOAT32_MIN_COSINE, FLOAT32_TOLERANCE, allowed_logit_difference, measure_difference
from clipmlu.specs import Precision, TowerName

DEFAULT_BATCH_SIZE = 32
DEFAULT_MAX_BATCH = 64
_PROBE_TEXTS = ("a photo of a cat.", "a red circle", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """How to compile; validated on construction.

    Attributes:
        target: ``cpu``, or ``auto`` for the first target that can be used here.
        precision: arithmetic of the compiled graphs.
        batch_size: rows of a batch; the fixed size when static, the preferred one when dynamic.
        dynamic_shape: take any batch of 1..``max_batch`` rows; otherwise partial batches are padded and trimmed.
        max_batch: the largest batch when dynamic; None stands for 64, or ``batch_size`` if that is larger.
        overwrite: replace a bundle at the output path.
    """

    target: str = "auto"
    precision: Precision = Precision.FORCE_FLOAT32
    batch_size: int = DEFAULT_BATCH_SIZE
    dynamic_shape: bool = True
    max_batch: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise OptionError(f"batch size is {self.batch_size}; expected 1 or more")
        if self.max_batch is not None and self.max_batch < 1:
            raise OptionError(f"max batch is {self.max_batch}; expected 1 or more")
        if self.max_batch is not None and not self.dynamic_shape and self.max_batch != self.batch_size:
            raise OptionError(
                f"max batch is {self.max_batch}, but a static shape takes exactly {self.batch_size}; leave one of them out"
            )
        if self.batch_size > self.largest_batch:
            raise OptionError(
                f"batch size {self.batch_size} is larger than max batch {self.max_batch}; raise --max-batch"
            )

    @property
    def largest_batch(self) -> int:
        """The largest batch that the compiled bundle takes."""
        if not self.dynamic_shape:
            return self.batch_size
        return self.max_batch if self.max_batch is not None else max(DEFAULT_MAX_BATCH, self.batch_size)


def compile_bundle(
    source: str | os.PathLike[str] | ExportedBundle,
    output: str | os.PathLike[str],
    options: CompileOptions | None = None,
) -> CompiledBundle:
    """Compile an exported bundle for one target.

    Args:
        source: the exported bundle, or its path.
        output: directory of the compiled bundle.
        options: how; the defaults of ``CompileOptions`` if None.

    Returns:
        The compiled bundle, published and verified.

    Raises:
        PrecisionError: the target does not offer the precision.
        BackendUnavailableError: the target's runtime cannot be used here.
        BundleExistsError: the output is taken.
        GateError: the compiled graphs do not agree with the exported ones; nothing is published.
    """
    options = options or CompileOptions()
    target, backend = backend_for_target(options.target)
    _check_precision(target, backend, options.precision)
    exported = source if isinstance(source, ExportedBundle) else open_exported(source)
    with stage_bundle(output, overwrite=options.overwrite) as staging:
        graph_options = GraphOptions(
            precision=options.precision, dynamic_shape=options.dynamic_shape, batch_size=options.batch_size
        )
        towers = {
            name: backend.compile_tower(exported, name, graph_options, staging.path)
            for name in exported.manifest.towers
        }
        shutil.copyfile(exported.tokenizer_path, staging.path / TOKENIZER_NAME)
        facts = Compilation(
            target=target,
            backend=backend.name,
            precision=options.precision,
            dynamic_shape=options.dynamic_shape,
            batch_size=options.batch_size,
            max_batch=options.largest_batch,
            emulated=False,
            source_digest=exported.digest,
            parity=(),
        )
        draft = msgspec.structs.replace(
            exported.manifest,
            kind="compiled",
            towers=towers,
            compilation=facts,
            files=staging.records(),
            tool_versions=exported.manifest.tool_versions | current_tool_versions(*backend.packages),
        )
        parity = _check_agreement(exported, CompiledBundle(staging.path, draft, ""), backend)
        staging.finish(msgspec.structs.replace(draft, compilation=msgspec.structs.replace(facts, parity=parity)))
    return open_compiled(output, verify=False)


def _check_precision(target: str, backend: Backend, precision: Precision) -> None:
    if precision not in backend.precisions:
        offered = ", ".join(each.value for each in backend.precisions)
        raise PrecisionError(
            f"Target '{target}' does not offer the precision '{precision.value}' yet. It offers: {offered}."
        )


def _check_agreement(exported: ExportedBundle, compiled: CompiledBundle, backend: Backend) -> tuple[ParityRecord, ...]:
    """Run both on the same drawn batch; a compiled graph that disagrees is never published."""
    records = []
    for tower in compiled.manifest.towers:
        feeds = _draw_feeds(exported, tower, compiled.compilation)
        with (
            _open_reference(exported, tower) as reference_session,
            backend.open(compiled, tower, SessionOptions()) as compiled_session,
        ):
            reference = reference_session.run(feeds)
            measured = compiled_session.run(feeds)
        records += [_compare(exported.manifest, tower, name, reference[name], measured[name]) for name in reference]
    failed = [record for record in records if not _agrees(record)]
    if failed:
        worst = max(failed, key=lambda record: record.max_abs_diff)
        raise GateError(
            f"Compiled {worst.tower} tower differs from the exported one by {worst.max_abs_diff:.3g} in '{worst.output}'; "
            f"allowed are {worst.allowed_abs_diff:.3g}. No bundle was written."
        )
    return tuple(records)


def _agrees(record: ParityRecord) -> bool:
    same_direction = record.min_cosine is None or record.min_cosine >= FLOAT32_MIN_COSINE
    return record.max_abs_diff <= record.allowed_abs_diff and same_direction


def _open_reference(exported: ExportedBundle, tower: TowerName) -> Session:
    label = f"Bundle '{exported.path}' ({tower} tower)"
    return OnnxRuntimeSession(exported.tower(tower), exported.tower_path(tower), label, SessionOptions())


def _draw_feeds(bundle: Bundle, tower: TowerName, facts: Compilation) -> dict[str, Array]:
    """A reproducible batch: unit-variance noise for images, tokenised prompts for texts."""
    rows = min(3, facts.max_batch) if facts.dynamic_shape else facts.batch_size
    spec = bundle.manifest.preprocess
    feeds: dict[str, Array] = {}
    for tensor in bundle.tower(tower).inputs:
        if tensor.name == "input_ids":
            tokenizer = Tokenizer.load(bundle.tokenizer_path, bundle.manifest.tokenizer)
            texts = [_PROBE_TEXTS[row % len(_PROBE_TEXTS)] for row in range(rows)]
            feeds[tensor.name] = tokenizer(texts)
        else:
            generator = np.random.default_rng(0)
            feeds[tensor.name] = generator.standard_normal((rows, 3, spec.height, spec.width), dtype=np.float32)
    return feeds


def _compare(manifest: Manifest, tower: TowerName, output: str, reference: Array, measured: Array) -> ParityRecord:
    difference = measure_difference(reference, measured)
    joint = tower == "joint"
    return ParityRecord(
        tower=tower,
        output=output,
        batch_size=len(reference),
        max_abs_diff=difference.max_abs_diff,
        min_cosine=None if joint else difference.min_cosine,
        allowed_abs_diff=allowed_logit_difference(FLOAT32_TOLERANCE, manifest.logit_scale)
        if joint
        else FLOAT32_TOLERANCE,
    )
