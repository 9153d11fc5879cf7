"""Ways to prepare images without a device: clipmlu's threads, processes with clipmlu's pipeline, torch's DataLoader."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image

from clipmlu.data.images import ImageSource
from clipmlu.data.preprocess import Preprocessor
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.images import run_batches
from clipmlu.embed.items import item_from_source
from clipmlu.embed.rows import FloatArray, PendingRows, PixelArray
from clipmlu.specs import PreprocessSpec

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PHOTO_SIDE, SMALL_SIDE = 224, 32


class Rate(NamedTuple):
    """A measurement: images, seconds, and the core-seconds of all threads and processes (None if not known)."""

    images: int
    seconds: float
    core_seconds: float | None

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds


class Job(NamedTuple):
    """What every side prepares.

    Attributes:
        sources: paths of JPEGs, or arrays; used again and again.
        side: height and width of the model's input.
        batch_size: images per batch.
        seconds: length of a measurement.
        uint8: leave normalisation to the device.
    """

    sources: Sequence[ImageSource]
    side: int
    batch_size: int
    seconds: float
    uint8: bool

    @property
    def spec(self) -> PreprocessSpec:
        """The preprocessing of CLIP."""
        return PreprocessSpec(
            height=self.side, width=self.side, mean=MEAN, std=STD, interpolation="bicubic", resize_mode="shortest"
        )


class IdleEncoder:
    """An encoder without a device: batches are done at once."""

    batches_in_flight = 2

    def __init__(self, job: Job) -> None:
        self.preprocessor = Preprocessor(job.spec)
        self.pixel_dtype = np.dtype(np.uint8 if job.uint8 else np.float32)

    def check_batch_size(self, batch_size: int) -> int:
        """Return it."""
        return batch_size


class IdleGraph:
    """The image graph of an ``IdleEncoder``; rows have one element."""

    width = 1

    def __init__(self, job: Job) -> None:
        self.encoder = cast("Encoder", IdleEncoder(job))

    def submit(self, pixel_values: PixelArray) -> PendingRows:
        """Return zeros."""
        return _Done(np.zeros((len(pixel_values), self.width), np.float32))


class _Done(NamedTuple):
    rows: FloatArray

    def result(self) -> FloatArray:
        return self.rows


Side = Callable[[Job, int], Rate]


def _threads(job: Job, workers: int) -> Rate:
    return run_pipeline(IdleGraph(job), job, workers)


def run_pipeline(graph: IdleGraph, job: Job, workers: int) -> Rate:
    start, cpu = time.perf_counter(), time.process_time()
    end = start + job.seconds
    sources = itertools.takewhile(lambda _: time.perf_counter() < end, itertools.cycle(job.sources))
    images = 0
    for batch in run_batches(graph, map(item_from_source, sources), batch_size=job.batch_size, workers=workers):
        if batch.errors:
            raise next(iter(batch.errors.values()))
        images += len(batch.rows)
    return Rate(images, time.perf_counter() - start, time.process_time() - cpu)


def _processes(job: Job, workers: int) -> Rate:
    return _run_processes(job, workers, 1)


def _two_pipelines(job: Job, workers: int) -> Rate:
    return _run_processes(job, 2, workers // 2)


def _run_processes(job: Job, count: int, threads: int) -> Rate:
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pipes = []
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, job, threads), daemon=True)
            process.start()
            stack.callback(process.join)
            pipes.append(here)
        for pipe in pipes:
            pipe.recv()
        for pipe in pipes:
            pipe.send("start")
        rates = [cast("Rate", pipe.recv()) for pipe in pipes]
    return Rate(
        sum(rate.images for rate in rates),
        max(rate.seconds for rate in rates),
        sum(rate.core_seconds or 0.0 for rate in rates),
    )


def _serve(pipe: Connection, job: Job, threads: int) -> None:
    """Run one pipeline in this process when told to."""
    graph = IdleGraph(job)
    run_pipeline(graph, job._replace(seconds=0.1), threads)
    pipe.send("ready")
    pipe.recv()
    pipe.send(run_pipeline(graph, job, threads))


class _Images:
    """A map-style dataset of preprocessed images that does not end."""

    def __init__(self, job: Job, transform: Callable[[Image.Image], Any]) -> None:
        self._sources = job.sources
        self._transform = transform

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> Any:
        source = self._sources[index % len(self._sources)]
        return self._transform(
            Image.fromarray(source) if isinstance(source, np.ndarray) else Image.open(cast("str", source))
        )


def _data_loader(job: Job, workers: int) -> Rate:
    import torch
    from open_clip.transform import image_transform

    data: Any = _Images(job, image_transform(job.side, is_train=False, mean=MEAN, std=STD))
    loader = torch.utils.data.DataLoader(
        data, batch_size=job.batch_size, num_workers=workers, sampler=itertools.count()
    )
    batches = iter(loader)
    for _ in range(2 * workers):  # the workers started together, and deliver their first batches together
        next(batches)
    start, images = time.perf_counter(), 0
    while time.perf_counter() < start + job.seconds:
        images += len(next(batches))
    return Rate(images, time.perf_counter() - start, None)


SIDES: dict[str, Side] = {
    "threads": _threads,
    "processes": _processes,
    "two pipelines": _two_pipelines,
    "DataLoader": _data_loader,
}
