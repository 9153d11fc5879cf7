"""Provenance of measurements: the bundle, the target and the versions, with the same keys in every report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence

from clipmlu.backends import get_backend, package_versions
from clipmlu.bundle.directory import Bundle, CompiledBundle
from clipmlu.bundle.manifest import Compilation, current_tool_versions
from clipmlu.data.resize.order import pillow_versions
from clipmlu.file_names import text_from_name
from clipmlu.specs import ModelId, Precision, Spec


class Command(Spec, frozen=True, kw_only=True):
    """The command line that a result was made with.

    Attributes:
        arguments: its words, the first one ``clipmlu``, each as ``name_from_path`` writes it.
        environment: maps each environment variable that set an option to its value, written likewise.
    """

    arguments: tuple[str, ...]
    environment: dict[str, str]

    def __str__(self) -> str:
        """Return the command as one line for a shell: sh, and bash or zsh if a word has characters that cannot be seen."""
        variables = (f"{name}={_quoted(value)}" for name, value in sorted(self.environment.items()))
        return " ".join([*variables, *map(_quoted, self.arguments)])


def _quoted(word: str) -> str:
    r"""Return a word of a command for a shell; control characters and bytes that are not UTF-8 are ``\xNN`` in ``$'...'``."""
    try:
        text = text_from_name(word)
    except ValueError:  # no name: a file that was changed by hand
        text = word
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_ansi_quoted, text))}'"


def _ansi_quoted(character: str) -> str:
    if character.isprintable() and character not in "'\\":
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


class Provenance(Spec, frozen=True, kw_only=True):
    """The bundle of a report, and the software and hardware that ran it.

    Attributes:
        model: the model.
        bundle_digest: digest of the bundle's manifest; if several bundles were compiled, of their exported bundle.
        target: name of the target, such as ``"cpu"``.
        precision: arithmetic of the graphs; None if several were measured.
        emulated: the emulated vendor SDK was used; its speed is not the speed of a card.
        devices: indices of the used cards; empty if none was used.
        tool_versions: versions of clipmlu, of the runtimes, and of Pillow with the order of its resize's passes.
    """

    model: ModelId
    bundle_digest: str
    target: str
    precision: Precision | None
    emulated: bool
    devices: tuple[int, ...]
    tool_versions: dict[str, str]

    def facts(self) -> dict[str, str]:
        """Return the model, target and precision for people; see ``Summary``."""
        precision = {} if self.precision is None else {"precision": self.precision.value}
        return {"model": str(self.model), "target": self.target, **precision}


def provenance_of(bundle: CompiledBundle, devices: Sequence[int]) -> Provenance:
    """Return the provenance of results of a compiled bundle.

    Args:
        bundle: the bundle.
        devices: indices of the cards that it ran on; ignored if its target has no cards.
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
    """Return the provenance of results of an exported or compiled bundle.

    Args:
        bundle: the bundle.
        target: target of the graphs.
        precision: arithmetic of the graphs; None for several.
        backends: names of the backends that ran the graphs.
        devices: indices of the cards; ignored if no backend has cards.
        packages: other packages that were used, besides those of the backends.

    Raises:
        BackendUnavailableError: a package of a backend is not installed.
    """
    found = [get_backend(name) for name in sorted(set(backends))]
    return Provenance(
        model=bundle.manifest.model,
        bundle_digest=bundle.digest,
        target=target,
        precision=precision,
        emulated=any(backend.emulated for backend in found),
        devices=tuple(devices) if any(backend.has_cards for backend in found) else (),
        tool_versions=package_versions(found) | current_tool_versions(*packages) | pillow_versions(),
    )


def backends_of(facts: Compilation) -> set[str]:
    """Return the names of the backends that run the graphs of a compilation."""
    return {facts.backend, *([] if facts.text_tower is None else [facts.text_tower.backend])}
