"""Options of a sweep, and the keys of its results."""

from __future__ import annotations

import dataclasses

from clipmlu.arguments import check_fields
from clipmlu.backends import SessionOptions, runtime_versions
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.compile.plan import DEFAULT_BATCH_SIZE, DEFAULT_MAX_BATCH, CompileOptions, require_calibration
from clipmlu.data.datasets import DATASETS, Dataset
from clipmlu.data.images import content_digest
from clipmlu.data.prompts import resolve_templates
from clipmlu.data.resize.order import pillow_versions
from clipmlu.errors import OptionError
from clipmlu.keys import make_key, options_key
from clipmlu.measure.accuracy.evaluate import EvalOptions
from clipmlu.measure.machine import describe_machine
from clipmlu.measure.samples import choose_images
from clipmlu.specs import NaturalInt, PositiveInt, Precision
from clipmlu.tune.bundles import session_key

BATCHES_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Options of a sweep; validated on construction.

    Attributes:
        compile: options of the compilation. The sweep sets the precision, the batch sizes and the shape; for float
            precisions it removes the calibration data and the quantisation options.
        precisions: one bundle is compiled for each.
        batch_sizes: each is measured on every bundle.
        evaluate: options of the accuracy measurement.
        threads: CPU threads per batch; 0 lets the runtime choose.
        repetitions: number of repetitions of each speed measurement.
        duration_ms: duration of the throughput measurement of a repetition; latency is measured for half as long.
    """

    compile: CompileOptions
    precisions: tuple[Precision, ...]
    batch_sizes: tuple[PositiveInt, ...]
    evaluate: EvalOptions = dataclasses.field(default_factory=EvalOptions)
    threads: NaturalInt = 0
    repetitions: PositiveInt = 3
    duration_ms: NaturalInt = 1000

    def __post_init__(self) -> None:
        check_fields(self)
        for name, values in (("precisions", self.precisions), ("batch sizes", self.batch_sizes)):
            if not values or len(set(values)) != len(values):
                raise OptionError(
                    f"{name} are {[str(getattr(v, 'value', v)) for v in values]}; expected different ones"
                )
        quantising = any(precision.bits is not None for precision in self.precisions)
        if not quantising and (self.compile.calibration is not None or self.compile.quantisation is not None):
            raise OptionError("none of the precisions quantises; leave out the quantisation options")
        for precision in self.precisions:
            require_calibration(precision, self.compile)

    @property
    def session(self) -> SessionOptions:
        """Session options for measurements."""
        return dataclasses.replace(self.compile.session, threads=self.threads, in_flight=BATCHES_IN_FLIGHT)

    def for_precision(self, precision: Precision) -> CompileOptions:
        """Options to compile the bundle of one precision."""
        changes: dict[str, object] = {} if precision.bits is not None else {"calibration": None, "quantisation": None}
        return dataclasses.replace(
            self.compile,
            precision=precision,
            batch_size=DEFAULT_BATCH_SIZE,
            dynamic_shape=True,
            max_batch=max(DEFAULT_MAX_BATCH, *self.batch_sizes),
            **changes,  # type: ignore[arg-type]
        )


def images_and_labels(dataset: Dataset, how: EvalOptions) -> tuple[tuple[str, int], ...]:
    """Return content digest and label of each image to evaluate; empty for a folder, which is always reevaluated."""
    if dataset.name not in DATASETS:
        return ()
    indices = choose_images(dataset, how.samples, shuffle=how.shuffle, seed=how.seed)
    return tuple((content_digest(dataset.image(index)), int(dataset.label(index))) for index in indices)


def accuracy_key(
    bundle: CompiledBundle, dataset: Dataset, images: tuple[tuple[str, int], ...], options: SweepOptions
) -> dict[str, str]:
    """Return the key of a bundle's accuracy: all inputs that determine it.

    Args:
        bundle: the bundle.
        dataset: dataset of the evaluation.
        images: result of ``images_and_labels``.
        options: options of the sweep.
    """
    how = options.evaluate
    return {
        **make_key(
            bundle=bundle.digest,
            dataset=(dataset.name, dataset.split),
            images=images,
            class_names=tuple(dataset.class_names),
            templates=resolve_templates(how.templates),
            max_pixels=dataset.max_pixels,
            tool_versions=_versions(bundle, options),
        ),
        **options_key(how, prefix="evaluate.", without=("templates", "cache", "workers")),
        **session_key(options.session),
    }


def timing_key(bundle: CompiledBundle, batch_size: int, options: SweepOptions) -> dict[str, str]:
    """Return the key of a bundle's speed at a batch size: all inputs that determine it."""
    # The bundle has its own digest, the threads are a session option, and stored repetitions are reused for any number.
    apart = ("compile", "precisions", "batch_sizes", "evaluate", "threads", "repetitions")
    return {
        **make_key(
            bundle=bundle.digest,
            batch_size=batch_size,
            machine=describe_machine(),
            tool_versions=_versions(bundle, options),
        ),
        **options_key(options, without=apart),
        **options_key(options.session, prefix="session."),
    }


def _versions(bundle: CompiledBundle, options: SweepOptions) -> dict[str, str]:
    placements = [bundle.compilation.placement(tower) for tower in bundle.manifest.towers]
    return runtime_versions((placement.backend for placement in placements), options.session) | pillow_versions()
