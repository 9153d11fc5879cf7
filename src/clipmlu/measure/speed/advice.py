"""What would make the pipeline from image files to embeddings faster, in sentences, computed from measured costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from clipmlu.clock import DEVICE_STAGES, HOST_STAGES, Stage
from clipmlu.measure.speed.limit import PipelineLimit, PipelineSetup

GOOD_FRACTION = 0.95
"""Share of its limit from which a pipeline is considered to use its cores and devices well."""

_IMPOSSIBLE_FRACTION = 1.1
_WORTHWHILE = 1.03
_WORTHWHILE_BATCH = 1.05
_WAITS = 0.05
_MANY_WORKERS = 4
_GERUNDS: dict[Stage, str] = {"decode": "decoding", "preprocess": "preprocessing", "compute": "computing"}


class Estimate(NamedTuple):
    """A change whose effect was measured elsewhere.

    Attributes:
        change: how to make it, such as ``pip install 'clipmlu[jpeg]'``.
        stage: the stage that it makes faster.
        factor: its time afterwards, as a share of the time now.
    """

    change: str
    stage: Stage
    factor: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineFigures:
    """The measurements from which advice is computed.

    Attributes:
        costs: maps a stage to the seconds for one image, measured alone.
        setup: what runs the stages.
        limit: the limit of the pipeline and its measured rate.
        batch_size: images of a batch.
        cpus: logical CPUs that this process may use.
        physical_cores: cores behind them, without hyper-threads; None if not known.
        host_options: maps an option to the costs of the host's stages with it, measured in this run.
        batch_rates: maps a batch size to the images per second of one device, measured in this run.
        estimates: changes that were not measured in this run.
    """

    costs: Mapping[Stage, float]
    setup: PipelineSetup
    limit: PipelineLimit
    batch_size: int
    cpus: int
    physical_cores: int | None
    host_options: Mapping[str, Mapping[Stage, float]] = dataclasses.field(default_factory=dict)
    batch_rates: Mapping[int, float] = dataclasses.field(default_factory=dict)
    estimates: tuple[Estimate, ...] = ()


def known_estimates(
    *, slow_jpegs: bool, no_kernel: str, quantised: bool, on_cpu: bool, vnni: bool
) -> tuple[Estimate, ...]:
    """Return the changes that may help a bundle, with factors measured on other machines (``docs/speed.md``).

    Args:
        slow_jpegs: True if there are JPEGs, and the package that decodes them faster is not installed.
        no_kernel: why Pillow resizes instead of the compiled kernel, with the remedy; empty if it does not.
        quantised: True if the image tower computes in 8 bits.
        on_cpu: True if a CPU runtime computes it.
        vnni: True if the CPU has instructions for sums of 8-bit products.
    """
    found = []
    if slow_jpegs:
        found.append(Estimate("pip install 'clipmlu[jpeg]'", "decode", 0.6))
    if no_kernel:
        found.append(Estimate(f"the compiled kernel that resizes ({no_kernel})", "preprocess", 0.2))
    if on_cpu and vnni and not quantised:
        found.append(Estimate("'clipmlu compile --precision qint8_mixed_float32'", "compute", 0.42))
    return tuple(found)


def advise(figures: PipelineFigures) -> tuple[str, ...]:
    """Return sentences on what limits the pipeline and what would help by how much, the most important first."""
    return (
        *_waiting_devices(figures),
        *_workers(figures),
        *_threads(figures),
        *_options(figures),
        *_batch_size(figures),
        *_estimates(figures),
        *_post_process(figures),
        *_shortfall(figures),
        *_cores(figures),
    )


def _waiting_devices(figures: PipelineFigures) -> Iterator[str]:
    """The share of the time that cards wait; a CPU runtime never waits for cores that it uses itself."""
    limit, devices = figures.limit, figures.setup.devices
    device = limit.limits.get("device")
    if figures.setup.shares_cores or device is None:
        return
    waits = 1 - limit.measured_images_per_second / device
    if waits >= _WAITS:
        who = "The device waits" if devices == 1 else f"The {devices} devices wait"
        it = "it" if devices == 1 else "they"
        yield (
            f"{who} {waits:.0%} of the time: {it} could take {_shown(device)} images/s and "
            f"{'gets' if devices == 1 else 'get'} {_shown(limit.measured_images_per_second)}."
        )


def _workers(figures: PipelineFigures) -> Iterator[str]:
    setup, limits = figures.setup, figures.limit.limits
    useful = math.ceil(setup.cores)
    if setup.workers > useful:
        yield f"{setup.workers} workers share {setup.cores:g} cores and are no faster than {useful}: use --workers {useful}."
    host = sum(figures.costs.get(stage, 0.0) for stage in HOST_STAGES)
    if setup.shares_cores:
        if figures.limit.bound_by == "host" and setup.workers < useful:
            yield f"Add workers: {setup.workers} of {setup.cores:g} cores prepare images; use --workers {useful}."
        return
    needed = math.ceil(limits.get("device", 0.0) * host - 1e-9)
    if setup.workers >= needed:
        return
    if setup.workers < useful:
        more = min(needed, useful)
        yield (
            f"Add workers: --workers {more} instead of {setup.workers} would prepare {_shown(min(more, setup.cores) / host)} "
            f"instead of {_shown(limits['host'])} images/s."
        )
    if needed > setup.cores:
        yield (
            f"To keep {'the device' if setup.devices == 1 else 'the devices'} busy, {needed} cores would have to prepare images; "
            f"there are {setup.cores:g}."
        )


def _threads(figures: PipelineFigures) -> Iterator[str]:
    setup = figures.setup
    if setup.shares_cores and figures.limit.bound_by == "device" and setup.threads < setup.cores:
        yield f"Computing uses {setup.threads} of {setup.cores:g} cores: use --threads {math.ceil(setup.cores)}."


def _options(figures: PipelineFigures) -> Iterator[str]:
    """Options of this command whose effect on the host's stages was measured in this run."""
    before = sum(figures.costs.get(stage, 0.0) for stage in HOST_STAGES)
    for option, costs in figures.host_options.items():
        if (rate := _rate_with(figures, costs)) is not None:
            after = sum(costs.get(stage, 0.0) for stage in HOST_STAGES)
            yield (
                f"{option} would prepare an image in {after * 1e3:.2f} instead of {before * 1e3:.2f} ms of a core (measured "
                f"here), which allows {_shown(rate)} instead of {_shown(figures.limit.images_per_second)} images/s."
            )


def _batch_size(figures: PipelineFigures) -> Iterator[str]:
    """The batch size with the highest rate of those measured, if computing takes enough of the time."""
    rates, own = figures.batch_rates, figures.batch_size
    if own not in rates:
        return
    best = max(rates, key=lambda size: rates[size])
    faster = {stage: figures.costs.get(stage, 0.0) * rates[own] / rates[best] for stage in DEVICE_STAGES}
    if rates[best] >= _WORTHWHILE_BATCH * rates[own] and _rate_with(figures, faster) is not None:
        yield (
            f"Batches of {best} are computed {rates[best] / rates[own] - 1:.0%} faster than batches of {own} ({_shown(rates[best])} "
            f"and {_shown(rates[own])} images/s, measured here): use --batch-size {best}."
        )


def _estimates(figures: PipelineFigures) -> Iterator[str]:
    for change, stage, factor in figures.estimates:
        cost = figures.costs.get(stage, 0.0)
        if (rate := _rate_with(figures, {stage: factor * cost})) is not None:
            yield (
                f"{change}: {_GERUNDS[stage]} takes about {factor:.0%} of the time then (an estimate), which would allow "
                f"{_shown(rate)} instead of {_shown(figures.limit.images_per_second)} images/s."
            )


def _rate_with(figures: PipelineFigures, costs: Mapping[Stage, float]) -> float | None:
    """Return the limit with other costs of some stages, or None if it is hardly higher."""
    rate = min(figures.setup.limits({**figures.costs, **costs}).values())
    return rate if rate >= _WORTHWHILE * figures.limit.images_per_second else None


def _shown(rate: float) -> str:
    return f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"


def _post_process(figures: PipelineFigures) -> Iterator[str]:
    if figures.limit.bound_by == "post_process":
        yield "One thread ranks the results, which is the limit: run two processes, each on half of the files."


def _shortfall(figures: PipelineFigures) -> Iterator[str]:
    fraction, workers = figures.limit.fraction, min(figures.setup.workers, math.ceil(figures.setup.cores))
    if fraction > _IMPOSSIBLE_FRACTION:
        yield (
            f"The whole pipeline reaches {fraction:.0%} of its limit, so other programs slowed the measurement of its stages: measure "
            "again without other load on this machine."
        )
    if fraction >= GOOD_FRACTION:
        return
    what = f"The whole pipeline reaches {fraction:.0%} of its limit"
    if workers >= _MANY_WORKERS and figures.limit.bound_by in ("host", "cores"):
        yield (
            f"{what}; {workers} workers in one process wait for its interpreter: use two processes, each with half of the files and "
            f"--workers {workers // 2}."
        )
    else:
        yield f"{what}: measure again with a longer --duration, and without other load on this machine."


def _cores(figures: PipelineFigures) -> Iterator[str]:
    """What makes the limits too high: hyper-threads and fractions of a quota."""
    physical, cores = figures.physical_cores, figures.setup.cores
    if figures.limit.bound_by not in ("host", "cores"):
        return
    if physical is not None and physical < min(figures.cpus, cores):
        yield (
            f"The {figures.cpus} CPUs are {physical} cores with hyper-threads; the limit counts every CPU as a core, and is too high by "
            "as much as two threads of a core disturb each other."
        )
    if cores != math.floor(cores):
        yield f"The container's quota of {cores:g} CPUs stops {math.ceil(cores)} threads in turn: a whole number of CPUs wastes less."
