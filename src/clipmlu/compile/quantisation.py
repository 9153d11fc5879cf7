"""Named quantisation options: those that are recommended for a target, and those of the vendor's CLIP sample.

The figures behind the recommended options, and the reasons, are in docs/quantisation.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from clipmlu.arguments import check_fields
from clipmlu.backends import Backend
from clipmlu.errors import OptionError, wrong_choice
from clipmlu.specs import AUTO_SMOOTHING, SMOOTHED_ROLES, SYMMETRIC_ALGORITHMS, Precision, QuantisationOptions

QuantisationName = Literal["recommended", "vendor"]

VENDOR = QuantisationOptions()
"""The options of the vendor's CLIP sample (docs/magicmind-api.md, section 6.2)."""

_SMOOTHED: Mapping[str, Any] = {"smooth_alpha": dict.fromkeys(SMOOTHED_ROLES, 0.75)}
_SIXTEEN_BITS = QuantisationOptions(granularity="per_axis", smooth_alpha=dict.fromkeys(SMOOTHED_ROLES, AUTO_SMOOTHING))

CPU_RECOMMENDED = {
    8: QuantisationOptions(
        granularity="per_axis",
        activation="asymmetric",
        keep_float=("attention_scores?", "attention_values?", "projection?"),
        weight_rounding="gptq",
        smooth_alpha=dict.fromkeys(SMOOTHED_ROLES, 0.85),
    ),
    16: _SIXTEEN_BITS,
}
"""Maps the number of bits to the options for CPU runtimes. Their integer kernels take zero points at no cost, and compute the
small products of attention in float no slower. With the rounding of GPTQ weights take more of the activations' outliers.
"""

CARD_RECOMMENDED = {8: QuantisationOptions(granularity="per_axis", **_SMOOTHED), 16: _SIXTEEN_BITS}
"""Maps the number of bits to the options for MLU cards: what public scripts use. None of them uses asymmetric ranges, and one
sets the precision of single nodes (docs/magicmind-api.md, sections 2.6 and 3), so their effect on a card is unknown. How
the SDK finds the scale of a weight is not public either, and the rounding of GPTQ needs that it is that of the largest one.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantisationChoice:
    """Named quantisation options, with changes; validated on construction.

    Attributes:
        name: ``recommended`` for the target and precision, or ``vendor`` for those of the vendor's CLIP sample.
        changes: maps fields of ``QuantisationOptions`` to values that replace the named ones; strengths of smoothing replace
            those of the same roles, and 0 switches a role off.
    """

    name: QuantisationName = "recommended"
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        unknown = sorted(set(self.changes) - set(QuantisationOptions.__struct_fields__))
        if unknown:
            raise OptionError(wrong_choice("quantisation option", unknown[0], QuantisationOptions.__struct_fields__))
        QuantisationOptions(**self.changes)  # checks the values, and that no two changes contradict each other


def recommended_quantisation(backend: Backend, precision: Precision) -> QuantisationOptions:
    """Return the recommended options of a target for a mode that quantises.

    Args:
        backend: the target's backend.
        precision: the mode.
    """
    assert precision.bits is not None, "a mode that quantises nothing has no such options"
    return (CARD_RECOMMENDED if backend.has_cards else CPU_RECOMMENDED)[precision.bits]


def resolve_quantisation(
    given: QuantisationOptions | QuantisationChoice | None, backend: Backend, precision: Precision
) -> QuantisationOptions:
    """Return the options of a compilation in a mode that quantises.

    Args:
        given: options, which are complete; or a choice; or None for the recommended options.
        backend: the target's backend.
        precision: the mode.

    Raises:
        OptionError: the options contradict each other.
    """
    if isinstance(given, QuantisationOptions):
        return given
    choice = given or QuantisationChoice()
    base = VENDOR if choice.name == "vendor" else recommended_quantisation(backend, precision)
    values = {name: getattr(base, name) for name in base.__struct_fields__} | dict(choice.changes)
    strengths = {**base.smooth_alpha, **choice.changes.get("smooth_alpha", {})}
    values["smooth_alpha"] = {role: strength for role, strength in strengths.items() if strength}
    return QuantisationOptions(**_without_conflict(values, choice.changes))


def _without_conflict(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replace a named value that contradicts a change; two changes that contradict each other stay."""
    if values["algorithm"] == "eqnm" and "weight_rounding" not in changes:
        values = {**values, "weight_rounding": "nearest"}
    if values["algorithm"] in SYMMETRIC_ALGORITHMS and values["activation"] == "asymmetric":
        if "activation" not in changes:
            return {**values, "activation": "symmetric"}
        if "algorithm" not in changes:
            return {**values, "algorithm": VENDOR.algorithm}
    return values
