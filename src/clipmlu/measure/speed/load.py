"""What a running pipeline spends its time with, and in a few words what limits it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from clipmlu.backends import get_backend
from clipmlu.clock import DEVICE_STAGES, HOST_STAGES, Stage, StageClock, StageTotal, SummedClock, now
from clipmlu.embed.encoder import Encoder
from clipmlu.host import available_cpus, usable_cores
from clipmlu.measure.speed.limit import PipelineSetup, find_limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineLoad:
    """What one worker's pipeline did in some time; a value for other processes.

    Attributes:
        images: finished images, including those that could not be read.
        seconds: the time.
        stages: time and items of each stage.
        setup: what runs the stages.
    """

    images: int
    seconds: float
    stages: Mapping[Stage, StageTotal]
    setup: PipelineSetup


class LoadMeter:
    """Measures the load of a pipeline.

    Args:
        encoder: the encoder that the pipeline uses; its image graph is opened.
        workers: threads that prepare images; None for all CPUs.

    Attributes:
        clock: the clock to give to the pipeline.
    """

    def __init__(self, encoder: Encoder, workers: int | None) -> None:
        self.clock = StageClock()
        self._setup = setup_of(encoder, workers=workers, threads=encoder.options.threads)
        self._stages = SummedClock((self.clock, encoder.device_clock(encoder.runnable.image_graph)))
        self._images = 0
        self._last, self._seen = now(), self._stages.totals()

    @property
    def seconds(self) -> float:
        """Time since the last call of ``take``."""
        return now() - self._last

    def count(self, images: int) -> None:
        """Count finished images."""
        self._images += images

    def take(self) -> PipelineLoad:
        """Return the load since the last call."""
        moment, totals = now(), self._stages.totals()
        none = StageTotal(0.0, 0)
        stages = {
            stage: StageTotal(total.seconds - before.seconds, total.items - before.items)
            for stage, total in totals.items()
            if (before := self._seen.get(stage, none)) != total
        }
        load = PipelineLoad(images=self._images, seconds=moment - self._last, stages=stages, setup=self._setup)
        self._images, self._last, self._seen = 0, moment, totals
        return load


class LoadSum:
    """Sum of the loads of one or several workers."""

    def __init__(self) -> None:
        self._clock = StageClock()
        self._seconds = 0.0
        self._images = 0
        self._setup: PipelineSetup | None = None

    def add(self, load: PipelineLoad) -> None:
        """Add a load."""
        for stage, total in load.stages.items():
            self._clock.add({stage: total.seconds}, total.items)
        self._seconds += load.seconds
        self._images += load.images
        self._setup = load.setup

    def describe(self) -> str | None:
        """Return in a few words what limits the pipelines; None if nothing was measured yet."""
        totals = self._clock.totals()
        costs = {stage: total.seconds / total.items for stage, total in totals.items() if total.items}
        if self._setup is None or not self._images or not any(costs.values()):
            return None
        rate = self._images / max(self._seconds, 1e-9)
        bound_by = find_limit(costs, self._setup, measured=rate).bound_by
        if bound_by == "cores":
            busy = self._setup.core_seconds(costs)
            computing = busy.get("compute", 0.0) / sum(busy.values())
            return f"the CPU: {1 - computing:.0%} preparing, {computing:.0%} computing"
        host = sum(costs.get(stage, 0.0) for stage in HOST_STAGES) * rate
        device = sum(costs.get(stage, 0.0) for stage in DEVICE_STAGES) * rate
        device_name = "the model" if self._setup.shares_cores else "the card"
        host_busy = min(1.0, host / min(self._setup.workers, self._setup.cores))
        device_busy = min(1.0, device / self._setup.devices)
        if bound_by == "host":
            return f"the host prepares: {host_busy:.0%}, {device_name} waits: {device_busy:.0%} busy"
        return f"{device_name} computes: {device_busy:.0%}, the host waits: {host_busy:.0%} busy"


def setup_of(encoder: Encoder, *, workers: int | None, threads: int) -> PipelineSetup:
    """Return what runs the stages of an encoder's pipeline.

    Args:
        encoder: the encoder.
        workers: threads that prepare images; None for all CPUs.
        threads: CPU threads of one batch; 0 for all CPUs.
    """
    compilation = encoder.runnable.compilation
    placement = compilation.placement(encoder.runnable.image_graph)
    cpus = available_cpus()
    return PipelineSetup(
        workers=workers or cpus,
        devices=len(encoder.devices),
        cores=usable_cores(),
        threads=threads or cpus,
        # The emulated card computes on this CPU too.
        shares_cores=placement.emulated or not get_backend(placement.backend).has_cards,
    )
