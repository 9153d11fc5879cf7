"""The stage that limits the pipeline from image files to embeddings: each stage alone, then all of them together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
from PIL import Image

from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.classify.classifier_file import ClassifierHeader
from clipmlu.classify.scoring import TowerScorer
from clipmlu.clock import DEVICE_STAGES, HOST_STAGES, STAGES, Stage, StageClock, StageTotal
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.images import embed_batches
from clipmlu.embed.items import ImageItem, RowBatch, item_from_source
from clipmlu.embed.rows import FloatArray
from clipmlu.errors import InputError
from clipmlu.host import allowed_cpus, physical_cores
from clipmlu.measure.speed.advice import Estimate, PipelineFigures, advise
from clipmlu.measure.speed.limit import PipelineLimit, PipelineSetup, find_limit
from clipmlu.measure.speed.loaded import make_samples
from clipmlu.measure.speed.scenarios import Limits, Timer
from clipmlu.specs import Spec

if TYPE_CHECKING:
    from clipmlu.data.preprocess import Preprocessor

DRAWN_PHOTOS = 64
_SHORTEST, _LONGEST = 320, 1200
_NOISE = 6
_CLASSES = 100  # number of classes to rank
_ALONE_BATCHES, _BATCH_ROUNDS = 3, 2
_WARMING_FILES, _OPTION_FILES = 8, 64


class StageCost(Spec, frozen=True, kw_only=True):
    """The cost of one stage.

    Attributes:
        seconds_per_image: alone, without other load.
        share: share of the sum over all stages, 0..1.
        images_per_second: limit of this stage with all its workers or cards.
        together_seconds_per_image: in the running pipeline, including waits for a core; None if not measured.
    """

    seconds_per_image: float
    share: float
    images_per_second: float
    together_seconds_per_image: float | None = None


class PipelineReport(Spec, frozen=True, kw_only=True):
    """The measurement of the pipeline from image files to embeddings.

    Attributes:
        images: number of images embedded in the measured time.
        skipped: number of attempts on images that cannot be read.
        files: number of different files, which are read repeatedly and so come from the system's cache.
        drawn: True if the files were created for this measurement.
        workers: threads that decode.
        elapsed_s: seconds.
        images_per_second: ``images / elapsed_s``.
        stages: the cost of each stage.
        batch_rates: maps a batch size to the images per second of one device; empty if the bundle has a static shape.
        host_options: maps an option of the commands to the seconds that the host's stages take for one image with it.
        verdict: the limit of the pipeline.
        advice: sentences on what would make it faster; see ``advise``.
        unreadable: errors of files that could not be read.
    """

    images: int
    skipped: int
    files: int
    drawn: bool
    workers: int
    elapsed_s: float
    images_per_second: float
    stages: dict[Stage, StageCost]
    batch_rates: dict[int, float]
    host_options: dict[str, dict[Stage, float]]
    verdict: PipelineLimit
    advice: tuple[str, ...]
    unreadable: tuple[str, ...] = ()


def measure_pipeline(
    encoder: Encoder,
    files: Sequence[Path],
    *,
    batch_size: int,
    limits: Limits,
    setup: PipelineSetup,
    drawn: bool,
    estimates: tuple[Estimate, ...] = (),
) -> PipelineReport:
    """Measure every stage alone, then the whole pipeline.

    Args:
        encoder: the model, on one or several cards.
        files: at least one image.
        batch_size: images of a batch.
        limits: number of images and time.
        setup: what runs the stages.
        drawn: True if the files were created for this measurement.
        estimates: changes for the advice that are not measured here.

    Raises:
        InputError: no file can be read.
    """
    timer = Timer()
    classifier = _stand_in_classifier(encoder)
    host, unreadable = _host_costs(encoder, files, batch_size)
    busy, start = time.process_time(), timer.now()
    alone = {**host, **_device_costs(encoder, batch_size)}
    setup = msgspec.structs.replace(setup, computing_cores=(time.process_time() - busy) / (timer.now() - start))
    host_options = _host_options(encoder, files, host, batch_size)
    computing = sum(alone.get(stage, 0.0) for stage in DEVICE_STAGES)
    batch_rates = _batch_rates(encoder, batch_size, computing, limits.seconds)
    alone |= _post_process_costs(classifier, encoder.embedding_dim, batch_size, timer)
    clock, device_before = StageClock(), encoder.device_clock("image").totals()
    start = timer.now()
    good = broken = 0
    items = _items_until(files, limits, timer)
    for batch in embed_batches(encoder, items, batch_size=batch_size, workers=setup.workers, clock=clock):
        _rank(classifier, batch.rows, clock, timer)
        good, broken = good + len(batch.rows), broken + len(batch.errors)
    elapsed = timer.now() - start
    verdict = find_limit(alone, setup, measured=good / elapsed)
    together = _per_item({**clock.totals(), **_difference(encoder.device_clock("image").totals(), device_before)})
    return PipelineReport(
        images=good,
        skipped=broken,
        files=len(files),
        drawn=drawn,
        workers=setup.workers,
        elapsed_s=elapsed,
        images_per_second=good / elapsed,
        stages=_stage_costs(alone, together, workers=setup.workers, devices=setup.devices),
        batch_rates=batch_rates,
        host_options=host_options,
        verdict=verdict,
        advice=advise(
            PipelineFigures(
                costs=alone,
                setup=setup,
                limit=verdict,
                batch_size=batch_size,
                cpus=len(allowed_cpus()),
                physical_cores=physical_cores(),
                host_options=host_options,
                batch_rates=batch_rates,
                estimates=estimates,
            )
        ),
        unreadable=unreadable,
    )


def draw_photos(folder: Path, count: int = DRAWN_PHOTOS, seed: int = 0) -> list[Path]:
    """Write JPEG files with typical sizes of web photos: images of the demo dataset, enlarged, with noise.

    The noise makes their compression and decoding similar to those of photos.

    Args:
        folder: existing output folder.
        count: number of files.
        seed: random seed of sizes and noise.
    """
    from clipmlu.data.datasets import open_dataset

    dataset = open_dataset("demo", size=count, seed=seed)
    generator = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        width, height = (int(side) for side in generator.integers(_SHORTEST, _LONGEST + 1, 2))
        picture = dataset.image(index).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        noise = generator.integers(-_NOISE, _NOISE + 1, (height, width, 3), np.int16)
        pixels = np.clip(np.asarray(picture, np.int16) + noise, 0, 255).astype(np.uint8)
        paths.append(folder / f"{index:04d}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


class _IdleDevice:
    """An encoder whose image tower takes no time, so that the host's stages are measured alone.

    Args:
        encoder: the encoder.
        changes: attributes that differ from those of the encoder.
    """

    def __init__(self, encoder: Encoder, **changes: Any) -> None:
        self._encoder = encoder
        self.__dict__ |= changes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def submit_images(self, pixel_values: FloatArray) -> _Done:
        return _Done(np.zeros((len(pixel_values), self._encoder.embedding_dim), np.float32))


class _Done:
    def __init__(self, embeddings: FloatArray) -> None:
        self._embeddings = embeddings

    def result(self) -> FloatArray:
        return self._embeddings


def _host_costs(encoder: Encoder, files: Sequence[Path], batch_size: int) -> tuple[dict[Stage, float], tuple[str, ...]]:
    """Measure every file once, with one worker and without a graph; also return the errors."""
    _prepare(_IdleDevice(encoder), files[:_WARMING_FILES], batch_size)  # the first images load the decoders
    costs, batches = _prepare(_IdleDevice(encoder), files, batch_size)
    if not any(len(batch.rows) for batch in batches):
        raise InputError(f"Not one of {len(files)} image(s) could be read. First: {batches[0].errors[0]}")
    return costs, tuple(str(error) for batch in batches for error in batch.errors.values())


def _prepare(idle: _IdleDevice, files: Sequence[Path], batch_size: int) -> tuple[dict[Stage, float], list[RowBatch]]:
    clock, items = StageClock(), (item_from_source(path) for path in files)
    batches = list(embed_batches(cast("Encoder", idle), items, batch_size=batch_size, workers=1, clock=clock))
    return _per_item(clock.totals()), batches


def _host_options(
    encoder: Encoder, files: Sequence[Path], plain: Mapping[Stage, float], batch_size: int
) -> dict[str, dict[Stage, float]]:
    """Measure the host's stages with options that are not in use, beside the plain ones, on some of the files."""
    idle = _IdleDevice(encoder)
    exact: Preprocessor = encoder.preprocessor
    options: dict[str, _IdleDevice] = {}
    if not exact.fast:
        fast = type(exact)(exact.spec, fast=True, max_pixels=exact.max_pixels)
        options["--fast-preprocess"] = _IdleDevice(encoder, preprocessor=fast)
    if encoder.pixel_dtype != np.uint8:
        options["'clipmlu compile --uint8-input'"] = _IdleDevice(encoder, pixel_dtype=np.dtype(np.uint8))
    found: dict[str, dict[Stage, float]] = {}
    for option, changed in options.items():
        before, _ = _prepare(idle, files[:_OPTION_FILES], batch_size)
        after, _ = _prepare(changed, files[:_OPTION_FILES], batch_size)
        # The files are a sample, and the machine's speed changes: only ratios are taken from these runs.
        found[option] = {stage: cost * after[stage] / before[stage] for stage, cost in plain.items() if stage in before}
    return found


def _batch_rates(encoder: Encoder, batch_size: int, seconds_per_image: float, limit_seconds: float) -> dict[int, float]:
    """Map smaller and larger batches, as far as the bundle and the time allow, to images per second: the best of two batches."""
    facts = encoder.bundle.compilation
    if not facts.dynamic_shape:
        return {}
    sizes, left = [], limit_seconds
    for size in (batch_size, batch_size // 2, batch_size // 4, 2 * batch_size):
        left -= (1 + _BATCH_ROUNDS) * size * seconds_per_image
        if left > 0 and 1 <= size <= facts.max_batch:
            sizes.append(size)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(_BATCH_ROUNDS):
        for size, taken in seconds.items():
            taken.append(sum(_device_costs(encoder, size, batches=1, warm_up=not number).values()))
    return {size: 1 / min(seconds[size]) for size in sorted(seconds)}


def _device_costs(
    encoder: Encoder, batch_size: int, *, batches: int = _ALONE_BATCHES, warm_up: bool = True
) -> dict[Stage, float]:
    """Measure a few full batches, one after the other, without decoding."""
    samples = cast("FloatArray", make_samples(encoder, "image", batch_size))
    if warm_up:  # of every card: batches that are in flight together go to different ones
        for pending in [encoder.submit_images(samples) for _ in encoder.devices]:
            pending.result()
    clock = encoder.device_clock("image")
    before = clock.totals()
    for _ in range(batches):
        encoder.submit_images(samples).result()
    return _per_item(_difference(clock.totals(), before))


def _post_process_costs(
    classifier: ZeroShotClassifier, embedding_dim: int, batch_size: int, timer: Timer
) -> dict[Stage, float]:
    embeddings = _unit_rows(batch_size, embedding_dim)
    clock = StageClock()
    _rank(classifier, embeddings, StageClock(), timer)
    for _ in range(_ALONE_BATCHES):
        _rank(classifier, embeddings, clock, timer)
    return _per_item(clock.totals())


def _rank(classifier: ZeroShotClassifier, embeddings: FloatArray, clock: StageClock, timer: Timer) -> None:
    """Do the same with a batch of results as ``classify``."""
    start = timer.now()
    classifier.predictions_from_rows(embeddings, [""] * len(embeddings))
    clock.add({"post_process": timer.now() - start}, len(embeddings))


def _stand_in_classifier(encoder: Encoder) -> ZeroShotClassifier:
    """Return a classifier that needs no text tower; the time of ranking does not depend on the classes."""
    manifest = encoder.bundle.manifest
    embeddings = _unit_rows(_CLASSES, encoder.embedding_dim)
    header = ClassifierHeader(
        text_id=manifest.text_id,
        model=manifest.model,
        class_names=tuple(f"class {number}" for number in range(_CLASSES)),
        templates=("{}",),
        logit_scale=manifest.logit_scale,
        logit_bias=manifest.logit_bias,
        emulated=encoder.bundle.compilation.emulated,
        embeddings_sha256="",
        tool_versions={},
    )
    return ZeroShotClassifier(header, TowerScorer(encoder, embeddings, header.logit_scale, header.logit_bias))


def _unit_rows(rows: int, embedding_dim: int) -> FloatArray:
    drawn = np.random.default_rng(0).standard_normal((rows, embedding_dim), np.float32)
    unit: FloatArray = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


def _items_until(files: Iterable[Path], limits: Limits, timer: Timer) -> Iterator[ImageItem]:
    """Yield the files repeatedly, until both limits are reached."""
    start = timer.now()
    for number, path in enumerate(itertools.cycle(files)):
        if limits.reached(number, timer.now() - start):
            return
        yield item_from_source(path)


def _difference(after: Mapping[Stage, StageTotal], before: Mapping[Stage, StageTotal]) -> dict[Stage, StageTotal]:
    none = StageTotal(0.0, 0)
    return {
        stage: StageTotal(total.seconds - before.get(stage, none).seconds, total.items - before.get(stage, none).items)
        for stage, total in after.items()
    }


def _per_item(totals: Mapping[Stage, StageTotal]) -> dict[Stage, float]:
    return {stage: total.seconds / total.items for stage, total in totals.items() if total.items}


def _stage_costs(
    alone: Mapping[Stage, float], together: Mapping[Stage, float], workers: int, devices: int
) -> dict[Stage, StageCost]:
    whole = sum(alone.values())
    at_once = {**dict.fromkeys(HOST_STAGES, workers), **dict.fromkeys(DEVICE_STAGES, devices)}
    return {
        stage: StageCost(
            seconds_per_image=seconds,
            share=seconds / whole,
            images_per_second=at_once.get(stage, 1) / max(seconds, 1e-9),
            together_seconds_per_image=together.get(stage),
        )
        for stage in STAGES
        if (seconds := alone.get(stage)) is not None
    }
