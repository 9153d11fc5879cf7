"""Candidates of a search: modes in the order of their expected cost, and quantisation options for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from clipmlu.backends import get_backend
from clipmlu.compile.plan import CompilationPlan
from clipmlu.compile.quantisation import VENDOR
from clipmlu.graph.roles import ROLES
from clipmlu.graph.selection import parse_selection
from clipmlu.specs import SMOOTHED_ROLES, Precision, QuantisationOptions
from clipmlu.tune.trial import Trial

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
"""Modes that a search tries, the expected fastest first, where the target offers them and they are not slower than float32.
On the CPU the other modes are computed in float32 and save no time. The order for cards is by the number of bits, because
no speeds per mode are published.
"""

ALPHAS = (0.5, 0.75, 0.9)
"""Strengths of smoothing that are tried, after no smoothing and the recommended one."""

Candidate = tuple[Precision, QuantisationOptions | None]
_PER_AXIS = QuantisationOptions(granularity="per_axis")


def modes_of(plan: CompilationPlan) -> tuple[Precision, ...]:
    """Modes that a search tries on a target, the expected fastest first."""
    backend = get_backend(plan.main.backend)
    offered = backend.precisions
    known = MODES["cpu" if plan.mlu is None else "mlu"]
    return tuple(mode for mode in known if mode in offered and not backend.is_slower(mode))


def most_trials(modes: Sequence[Precision], recommend: Callable[[Precision], QuantisationOptions]) -> int:
    """Return the largest possible number of trials of a search, which ends with the first that is accepted.

    Args:
        modes: in the order of trying.
        recommend: as for ``Candidates``.
    """
    searched = [mode for mode in modes if mode.bits is not None and (mode == modes[0] or mode.bits != modes[0].bits)]
    return len(modes) - len(searched) + sum(_most_ways(mode, recommend(mode)) for mode in searched)


def _most_ways(mode: Precision, recommended: QuantisationOptions) -> int:
    """Return the largest number of ways to quantise in a mode, with the trials that measure the effect of one role."""
    plain = 2 + sum(how != recommended for how in _others()) + len(ALPHAS) + 1
    return plain + (2 * len(ROLES) - 1 if mode.bits == 8 else 0)


def _others() -> list[QuantisationOptions]:
    """Return the options that are tried after the named ones."""
    asymmetric = msgspec.structs.replace(_PER_AXIS, activation="asymmetric")
    others = (msgspec.structs.replace(_PER_AXIS, algorithm=name) for name in ("eqnm", "percentile", "entropy"))
    return [_PER_AXIS, asymmetric, *others]


class Candidates:
    """Iterates over the candidates; the next one depends on the trials so far.

    Args:
        modes: in the order of trying.
        trials: trials so far; the caller appends to it between two candidates.
        roles: returns the share of multiply-accumulate operations of each role of the model.
        explore: evaluates one candidate on a subset of the images.
        recommend: returns the options that are recommended for the target in a mode that quantises.
    """

    def __init__(
        self,
        modes: Sequence[Precision],
        trials: Sequence[Trial],
        roles: Callable[[], Mapping[str, float]],
        explore: Callable[[Precision, QuantisationOptions], Trial],
        recommend: Callable[[Precision], QuantisationOptions],
    ) -> None:
        self._modes = modes
        self._trials = trials
        self._roles = roles
        self._explore = explore
        self._recommend = recommend

    def __iter__(self) -> Iterator[Candidate]:
        for position, mode in enumerate(self._modes):
            if mode.bits is None:
                yield mode, None
            elif position and mode.bits == self._modes[0].bits:
                best = self._best()  # the same integer type with another float type
                yield mode, self._recommend(mode) if best is None else best.quantisation
            else:
                yield from ((mode, how) for how in self._ways(mode))

    def _ways(self, mode: Precision) -> Iterator[QuantisationOptions]:
        """Quantisation options of one mode, in the order of trying; slower ones, with operators in float, come last."""
        yield VENDOR
        recommended = self._recommend(mode)
        yield recommended
        yield from (how for how in _others() if how != recommended)
        best = self._best(mode)
        base = _PER_AXIS if best is None or best.quantisation is None else best.quantisation
        for alpha in ALPHAS:
            yield msgspec.structs.replace(base, smooth_alpha=dict.fromkeys(SMOOTHED_ROLES, alpha))
        best = self._best(mode)
        how = None if best is None else best.quantisation
        if how is not None and how.weight_rounding == "nearest" and how.algorithm != "eqnm":
            yield msgspec.structs.replace(how, weight_rounding="gptq")
        best = self._best(mode)
        if mode.bits == 8 and best is not None and best.quantisation is not None:
            yield from self._with_float_roles(mode, best, best.quantisation)

    def _with_float_roles(
        self, mode: Precision, plain: Trial, how: QuantisationOptions
    ) -> Iterator[QuantisationOptions]:
        """Keep one more role in float each time, in the order of the gain in embedding error per share of work."""
        already = {parse_selection(text).role for text in how.keep_float}
        gains = []
        for role, share in sorted(self._roles().items(), key=lambda entry: entry[1]):
            if role in already:
                continue
            trial = self._explore(mode, msgspec.structs.replace(how, keep_float=(*how.keep_float, role)))
            if trial.embedding_error is None or plain.embedding_error is None:
                continue
            gains.append(((plain.embedding_error - trial.embedding_error) / max(share, 1e-9), role))
        kept = how.keep_float
        for _gain, role in sorted(gains, reverse=True)[:-1]:  # the last role must stay quantised
            kept = (*kept, role)
            yield msgspec.structs.replace(how, keep_float=kept)

    def _best(self, mode: Precision | None = None) -> Trial | None:
        """The evaluated trial (of a mode) with the smallest drop; the embedding error decides between equal drops."""
        evaluated = [
            trial
            for trial in self._trials
            if trial.quantisation is not None
            and trial.verdict in ("rejected", "stopped_early")
            and mode in (None, trial.precision)
        ]
        # A trial that stopped early measured its drop on fewer images, so complete trials are preferred.
        return min(
            evaluated,
            key=lambda trial: (trial.verdict == "stopped_early", trial.drop or 0.0, trial.embedding_error or 0.0),
            default=None,
        )
