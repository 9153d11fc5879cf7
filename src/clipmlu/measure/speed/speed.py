"""The speed of a compiled bundle: start-up, load scenarios of each graph, memory, and the limit of the pipeline."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import util
from pathlib import Path
from typing import Any, Literal

from clipmlu.arguments import check_argument
from clipmlu.backends import SessionOptions, get_backend
from clipmlu.backends.provenance import Command, Provenance, provenance_of
from clipmlu.backends.several_devices import resolve_devices
from clipmlu.bundle.directory import CompiledBundle, open_compiled
from clipmlu.bundle.manifest import Placement
from clipmlu.data.resize.kernel import load_kernel
from clipmlu.display import Displayed, Summary
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import InputError
from clipmlu.file_names import expand_home
from clipmlu.files.publish import scratch_directory
from clipmlu.host import cpu_instructions
from clipmlu.measure.machine import (
    Machine,
    children_peak_memory_bytes,
    describe_machine,
    peak_memory_bytes,
)
from clipmlu.measure.speed.advice import Estimate, known_estimates
from clipmlu.measure.speed.bottleneck import DRAWN_PHOTOS, PipelineReport, draw_photos, measure_pipeline
from clipmlu.measure.speed.load import setup_of
from clipmlu.measure.speed.loaded import make_samples, open_graph
from clipmlu.measure.speed.loads import ScenarioResult, SpeedOptions, measure_scenario
from clipmlu.measure.speed.scenarios import Graph
from clipmlu.specs import Precision, Spec, TowerName
from clipmlu.steps import StartStep, no_steps


class TowerSpeed(Spec, frozen=True, kw_only=True):
    """The speed of one graph.

    Attributes:
        tower: name of the graph.
        target: its target.
        precision: its arithmetic.
        kernels: its kernels, if the CPU determines them; else empty.
        emulated: True if the emulated vendor SDK ran it.
        load_s: seconds to load it, on all cards, one after the other.
        first_batch_s: seconds of the first batch, on the first card.
        scenarios: measurements of the scenarios.
    """

    tower: TowerName
    target: str
    precision: Precision
    kernels: str
    emulated: bool
    load_s: float
    first_batch_s: float
    scenarios: tuple[ScenarioResult, ...]


class SpeedReport(Displayed, Spec, frozen=True, kw_only=True):
    """The report of ``clipmlu bench``.

    Attributes:
        provenance: the bundle, the cards, its target and versions.
        transport: ``direct`` if this process ran the graphs, ``http`` if a server did, to which it sent image files.
        dynamic_shape: False if smaller batches are padded.
        batch_size: samples of a full batch.
        threads: CPU threads of one batch; 0 for the runtime's default.
        in_flight: batches on a card at a time; through http requests of one image at a time, except single-stream and multi-stream.
        open_s: seconds to open the bundle, including the digests of all files; through http to start the server, 0 if it ran
            before.
        towers: one for each measured graph.
        pipeline: from image files to embeddings, or None if not measured.
        peak_memory_bytes: peak resident memory of this process since its start; None if not known, and through http.
        worker_peak_memory_bytes: the same of its child processes, or None.
        machine: facts of the machine.
        command: the command that measured it; None from Python, or in reports of an older clipmlu.
    """

    provenance: Provenance
    transport: Literal["direct", "http"] = "direct"
    dynamic_shape: bool
    batch_size: int
    threads: int
    in_flight: int
    open_s: float
    towers: tuple[TowerSpeed, ...]
    pipeline: PipelineReport | None
    peak_memory_bytes: int | None
    worker_peak_memory_bytes: int | None
    machine: Machine
    command: Command | None = None

    def summary(self) -> Summary:
        """Return the facts that people see."""
        transport = {} if self.transport == "direct" else {"transport": self.transport}
        facts = {**self.provenance.facts(), **transport, "batch": str(self.batch_size)}
        for tower in self.towers:
            for found in tower.scenarios:
                facts[f"{tower.tower}, {found.scenario}"] = found.figure
        if self.pipeline is not None:
            facts["pipeline"] = f"{self.pipeline.images_per_second:.1f} images/s"
        return Summary(facts, self.provenance.emulated)

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each scenario of each tower."""
        return [
            {
                "tower": tower.tower,
                "target": tower.target,
                "precision": tower.precision.value,
                "scenario": found.scenario,
                "metric": found.metric,
                "value": found.value,
                "images_per_second": found.images_per_second,
                "texts_per_second": found.texts_per_second,
                "queries": found.queries,
                "samples_per_query": found.samples_per_query,
                "elapsed_s": found.elapsed_s,
            }
            for tower in self.towers
            for found in tower.scenarios
        ]


def measure_speed(
    path: str | os.PathLike[str],
    options: SpeedOptions | None = None,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
) -> SpeedReport:
    """Measure a compiled bundle.

    Args:
        path: its directory.
        options: options of the measurement; defaults if None.
        on_note: called with a line for the user before each part.
        on_step: begins each part; those that run for a chosen time have it as their length; see ``clipmlu.steps``.

    Raises:
        BundleError: there is no bundle, or it has no such graph.
        ShapeError: it does not support the batch size.
        BackendUnavailableError: its runtime cannot be used on this machine.
        InputError: no image can be read.
    """
    options = check_argument(options, SpeedOptions | None, "options") or SpeedOptions()
    start = time.perf_counter()
    with on_step("verifying the bundle"):
        bundle = open_compiled(path)
    open_s = time.perf_counter() - start
    towers = _towers(bundle, options)
    session = SessionOptions(threads=options.threads, in_flight=options.in_flight)
    devices = _devices(bundle, options, session)
    session = dataclasses.replace(session, device=devices[0], one_of_several=len(devices) > 1)
    with contextlib.ExitStack() as stack:
        encoders = [
            stack.enter_context(Encoder(bundle, dataclasses.replace(session, device=device))) for device in devices
        ]
        batch_size = encoders[0].check_batch_size(options.batch_size)
        speeds = tuple(_measure_tower(encoders, tower, batch_size, options, on_note, on_step) for tower in towers)
        worker_memory = children_peak_memory_bytes()
    pipeline = None
    if options.stages and "image" in towers:
        on_note("measuring the pipeline from image files to embeddings")
        # As in the commands that read images: without threads that wait actively on the decoding cores.
        with (
            on_step("measuring the pipeline"),
            Encoder(
                bundle,
                dataclasses.replace(session, busy_wait=False),
                devices=devices if len(devices) > 1 else None,
                max_pixels=options.max_pixels,
            ) as encoder,
        ):
            pipeline = _measure_pipeline(encoder, batch_size, options)
    facts = bundle.compilation
    return SpeedReport(
        provenance=provenance_of(bundle, devices),
        dynamic_shape=facts.dynamic_shape,
        batch_size=batch_size,
        threads=options.threads,
        in_flight=options.in_flight,
        open_s=open_s,
        towers=speeds,
        pipeline=pipeline,
        peak_memory_bytes=peak_memory_bytes(),
        worker_peak_memory_bytes=worker_memory,
        machine=describe_machine(),
    )


def _devices(bundle: CompiledBundle, options: SpeedOptions, session: SessionOptions) -> tuple[int, ...]:
    if options.devices != "all":
        return options.devices
    backend = get_backend(bundle.compilation.backend)
    return resolve_devices(backend, bundle.runnable, "all", session)


def _towers(bundle: CompiledBundle, options: SpeedOptions) -> tuple[TowerName, ...]:
    if options.tower == "both":
        towers: tuple[TowerName, ...] = ("image", "text")
    else:
        towers = (options.tower or bundle.image_graph,)
    for tower in towers:
        bundle.tower(tower)
    return towers


def _measure_tower(
    encoders: Sequence[Encoder],
    tower: TowerName,
    batch_size: int,
    options: SpeedOptions,
    on_note: Callable[[str], None],
    on_step: StartStep,
) -> TowerSpeed:
    facts = encoders[0].bundle.compilation
    placement, static_rows = facts.placement(tower), 1 if facts.dynamic_shape else facts.batch_size
    samples = make_samples(encoders[0], tower, batch_size, options.seed)
    with on_step(f"opening the {tower} graph"):
        start = time.perf_counter()
        graphs: list[Graph] = [open_graph(encoder, tower, samples) for encoder in encoders]
        loaded = time.perf_counter()
        graphs[0].submit(0, batch_size).result()
    first_batch_s = time.perf_counter() - loaded
    results = []
    for scenario in options.scenarios:
        on_note(f"measuring the {tower} graph, {scenario}")
        with on_step(f"{tower} graph, {scenario}"):
            results.append(
                measure_scenario(graphs, tower, scenario, batch_size, options, static_rows=static_rows, on_step=on_step)
            )
    return TowerSpeed(
        tower=tower,
        target=placement.target,
        precision=placement.precision,
        kernels=get_backend(placement.backend).kernels(placement.precision),
        emulated=placement.emulated,
        load_s=loaded - start,
        first_batch_s=first_batch_s,
        scenarios=tuple(results),
    )


def _measure_pipeline(encoder: Encoder, batch_size: int, options: SpeedOptions) -> PipelineReport:
    placement = encoder.bundle.compilation.placement("image")
    setup = setup_of(encoder, workers=options.workers, threads=options.threads)
    with image_files(options) as files:
        return measure_pipeline(
            encoder,
            files,
            batch_size=batch_size,
            limits=options.limits,
            setup=setup,
            drawn=options.images is None,
            estimates=_estimates(files, placement),
        )


def _estimates(files: Sequence[Path], placement: Placement) -> tuple[Estimate, ...]:
    """Return the changes that may help on this machine and are not measured."""
    kernel = load_kernel()
    jpegs = any(path.suffix.lower() in (".jpg", ".jpeg") for path in files)
    return known_estimates(
        slow_jpegs=jpegs and util.find_spec("simplejpeg") is None,
        no_kernel=kernel if isinstance(kernel, str) else "",
        quantised=placement.precision.bits is not None,
        on_cpu=not get_backend(placement.backend).has_cards,
        vnni="VNNI" in (cpu_instructions() or ()),
    )


@contextlib.contextmanager
def image_files(options: SpeedOptions) -> Iterator[Sequence[Path]]:
    """Return the image files of a measurement: those of the options, or photos that are drawn for the time of the context.

    Raises:
        InputError: the options name no file.
    """
    if options.images is not None:
        if not options.images:
            raise InputError("There are no images to measure with; give a folder that holds some.")
        yield [expand_home(path) for path in options.images]
        return
    with scratch_directory() as folder:
        # Drawing all of the photos takes two seconds; in less than a tenth of a second not all of them are read.
        read = math.ceil(DRAWN_PHOTOS * options.duration_ms / 100)
        yield draw_photos(folder, min(DRAWN_PHOTOS, max(8, options.iterations, read)), seed=options.seed)
