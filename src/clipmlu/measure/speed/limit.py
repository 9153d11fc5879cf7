"""The limit of the pipeline from image files to embeddings, computed from the costs of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from clipmlu.clock import DEVICE_STAGES, HOST_STAGES, STAGES, Stage
from clipmlu.specs import Spec

Bound = Literal["host", "device", "post_process", "cores"]


_PARTS: dict[Bound, tuple[Stage, ...]] = {
    "host": HOST_STAGES,
    "device": DEVICE_STAGES,
    "post_process": ("post_process",),
    "cores": STAGES,
}


_NAMES: dict[Bound, str] = {
    "host": "reading, decoding and preprocessing",
    "device": "the device",
    "post_process": "post-processing",
    "cores": "the CPU's cores",
}


class PipelineLimit(Spec, frozen=True, kw_only=True):
    """The limit of the pipeline.

    Attributes:
        bound_by: the part with the lowest rate.
        slowest_stage: the most expensive stage of that part.
        limits: maps a part to its limit in images per second; ``cores`` if decoding and computing share the CPU.
        images_per_second: the lowest limit.
        measured_images_per_second: rate of the whole pipeline.
        fraction: the measured rate divided by the limit.
        text: the same in a sentence.
    """

    bound_by: Bound
    slowest_stage: Stage
    limits: dict[Bound, float]
    images_per_second: float
    measured_images_per_second: float
    fraction: float
    text: str


class PipelineSetup(Spec, frozen=True, kw_only=True):
    """What runs the stages of a pipeline.

    Attributes:
        workers: threads that decode.
        devices: number of cards.
        cores: CPU seconds per second that this process may use; a container's quota may be a fraction.
        threads: CPU threads of one batch.
        shares_cores: True if the graph runs on these CPUs.
        computing_cores: CPU seconds per second that computing one batch uses, measured; None for one for each thread.
    """

    workers: int
    devices: int
    cores: float
    threads: int
    shares_cores: bool
    computing_cores: float | None = None

    def core_seconds(self, costs: Mapping[Stage, float]) -> dict[Stage, float]:
        """Map each stage to the CPU seconds for one image, if the graph runs on these CPUs.

        A batch uses as many cores as were measured: an emulated card with a latency mostly sleeps.
        """
        threads = self.threads if self.computing_cores is None else self.computing_cores
        used = min(threads, self.cores) if self.shares_cores else 1
        return {stage: seconds * (used if stage == "compute" else 1) for stage, seconds in costs.items()}

    def limits(self, costs: Mapping[Stage, float]) -> dict[Bound, float]:
        """Map each part of the pipeline to its limit in images per second.

        The host's stages run ``workers`` at a time, but at most one per core; the stages of a card run one after the other;
        post-processing is one thread. If the graph runs on the same cores, all stages together are limited by them.

        Args:
            costs: maps a stage to the seconds for one image, measured alone; not all 0.
        """
        at_once: dict[Bound, float] = {
            "host": min(self.workers, self.cores),
            "device": self.devices,
            "post_process": min(1, self.cores),
        }
        limits: dict[Bound, float] = {}
        for part, parallel in at_once.items():
            seconds = sum(costs.get(stage, 0.0) for stage in _PARTS[part])
            if seconds > 0:
                limits[part] = parallel / seconds
        if self.shares_cores:
            limits["cores"] = self.cores / sum(self.core_seconds(costs).values())
        return limits


def find_limit(costs: Mapping[Stage, float], setup: PipelineSetup, *, measured: float) -> PipelineLimit:
    """Determine the limit of the pipeline.

    Args:
        costs: maps a stage to the seconds for one image, measured alone.
        setup: what runs the stages.
        measured: images per second of the whole pipeline.
    """
    limits, busy = setup.limits(costs), setup.core_seconds(costs)
    bound_by = min(limits, key=lambda part: limits[part])
    slowest = max((stage for stage in _PARTS[bound_by] if stage in busy), key=lambda stage: busy[stage])
    bound = limits[bound_by]
    text = f"bound by {_NAMES[bound_by]}, most of it {slowest.replace('_', ' ')}"
    if setup.shares_cores:
        decoding = sum(busy.get(stage, 0.0) for stage in HOST_STAGES) / sum(busy.values())
        computing = busy.get("compute", 0.0) / sum(busy.values())
        text += f"; decoding ({decoding:.0%}) and computing ({computing:.0%}) share the cores"
    return PipelineLimit(
        bound_by=bound_by,
        slowest_stage=slowest,
        limits=limits,
        images_per_second=bound,
        measured_images_per_second=measured,
        fraction=measured / bound,
        text=f"{text}; {measured / bound:.0%} of what that allows",
    )
