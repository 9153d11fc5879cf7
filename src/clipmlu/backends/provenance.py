"""Where figures come from: the bundle, the target and the versions, the same keys in every report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clipmlu.backends import get_backend
from clipmlu.bundle.directory import Bundle, CompiledBundle
from clipmlu.bundle.manifest import Compilation, current_tool_versions
from clipmlu.specs import ModelId, Precision, Spec


class Provenance(Spec, frozen=True, kw_only=True):
    """Which bundle a report is about, and what ran it.

    Attributes:
        model: the model.
        bundle_digest: digest of the bundle's manifest; of the exported bundle, where several were compiled from it.
        target: the target, as named on the command line, such as ``"cpu"``.
        precision: arithmetic of the graphs; None where several precisions were measured.
        emulated: True when the emulated vendor SDK had a part in it; its speed says nothing about a card.
        devices: indices of the cards; empty where none was used.
        tool_versions: versions of clipmlu and of the runtimes.
    """

    model: ModelId
    bundle_digest: str
    target: str
    precision: Precision | None
    emulated: bool
    devices: tuple[int, ...]
    tool_versions: dict[str, str]


def provenance_of(bundle: CompiledBundle, devices: Sequence[int]) -> Provenance:
    """The provenance of what a compiled bundle computes.

    Args:
        bundle: the bundle.
        devices: indices of the cards that it ran on; left out where its target has none.
    """
    facts = bundle.compilation
    return make_provenance(bundle, facts.target, facts.precision, backends_of(facts), devices)


def make_provenance(
    bundle: Bundle,
    target: str,
    precision: Precision | None,
    backends: Iterable[str],
    devices: Sequence[int],
    packages: Iterable[str] = (),
) -> Provenance:
    """The provenance of what was computed from a bundle of either kind.

    Args:
        bundle: the bundle.
        target: what its graphs ran on.
        precision: their arithmetic; None for several.
        backends: names of the backends that ran them.
        devices: indices of the cards; left out where no backend has cards.
        packages: installed packages that had a part in it beside those of the backends.
    """
    found = [get_backend(name) for name in sorted(set(backends))]
    used = {package for backend in found for package in backend.packages}
    return Provenance(
        model=bundle.manifest.model,
        bundle_digest=bundle.digest,
        target=target,
        precision=precision,
        emulated=any(backend.emulated for backend in found),
        devices=tuple(devices) if any(backend.has_cards for backend in found) else (),
        tool_versions=current_tool_versions(*sorted({*used, *packages})),
    )


def backends_of(facts: Compilation) -> set[str]:
    """Names of the backends that run the graphs of a compilation."""
    return {facts.backend, *([] if facts.text_tower is None else [facts.text_tower.backend])}


def emulated_mark(emulated: bool) -> str:
    """What is put behind a figure for people: says that it is one of the emulated vendor SDK, or nothing."""
    return " (emulated)" if emulated else ""
