"""What a search tries: modes from cheap to dear, and the ways to quantise in each."""

from __future__ import annotations

from clipmlu.backends import get_backend
from clipmlu.compile.compiler import CompilationPlan
from clipmlu.specs import Precision, QuantisationOptions

MODES: dict[str, tuple[Precision, ...]] = {
    "cpu": (Precision.QINT8_MIXED_FLOAT32, Precision.FORCE_BFLOAT16, Precision.FORCE_FLOAT32),
    "mlu": (
        Precision.QINT8_MIXED_FLOAT16,
        Precision.QINT8_MIXED_FLOAT32,
        Precision.QINT16_MIXED_FLOAT16,
        Precision.FORCE_FLOAT16,
        Precision.QINT16_MIXED_FLOAT32,
        Precision.FORCE_FLOAT32,
    ),
}
"""Modes that a search tries, from cheap to dear, as far as the target offers them. On the CPU the other modes are computed in float32
and save no time. The order for cards is by the number of bits: there is no public figure of the speed of each mode."""

ALPHAS = (0.5, 0.75, 0.9)
"""Strengths of smoothing that are tried, after none at all."""

PER_AXIS = QuantisationOptions(granularity="per_axis")


def modes_of(plan: CompilationPlan) -> tuple[Precision, ...]:
    """Modes that a target offers, from cheap to dear."""
    offered = get_backend(plan.main.backend).precisions
    return tuple(mode for mode in MODES["cpu" if plan.mlu is None else "mlu"] if mode in offered)
