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


def find_limit(
    costs: Mapping[Stage, float],
    *,
    measured: float,
    workers: int,
    devices: int,
    cores: int,
    threads: int,
    shares_cores: bool,
) -> PipelineLimit:
    """Determine the limit of the pipeline.

    The host's stages run ``workers`` at a time, but at most one per core; the stages of a card run one after the other;
    post-processing is one thread. If the graph runs on the same cores, all stages together are limited by them;
    computing then counts ``threads`` times.

    Args:
        costs: maps a stage to the seconds for one image, measured alone.
        measured: images per second of the whole pipeline.
        workers: threads that decode.
        devices: number of cards.
        cores: CPUs that this process may use.
        threads: CPU threads of one batch.
        shares_cores: True if the graph runs on these CPUs.
    """
    at_once: dict[Bound, int] = {"host": min(workers, cores), "device": devices, "post_process": 1}
    limits: dict[Bound, float] = {}
    for part, parallel in at_once.items():
        seconds = sum(costs.get(stage, 0.0) for stage in _PARTS[part])
        if seconds > 0:
            limits[part] = parallel / seconds
    used = min(threads, cores) if shares_cores else 1
    busy = {stage: seconds * (used if stage == "compute" else 1) for stage, seconds in costs.items()}
    if shares_cores:
        limits["cores"] = cores / sum(busy.values())
    bound_by = min(limits, key=lambda part: limits[part])
    slowest = max((stage for stage in _PARTS[bound_by] if stage in busy), key=lambda stage: busy[stage])
    bound = limits[bound_by]
    text = f"bound by {_NAMES[bound_by]}, most of it {slowest.replace('_', ' ')}"
    if shares_cores:
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
