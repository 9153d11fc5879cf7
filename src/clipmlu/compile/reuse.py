"""Whether a compiled bundle that is there already is the one that would be made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from clipmlu.backends import get_backend
from clipmlu.bundle import CompiledBundle, ExportedBundle, current_tool_versions, open_compiled
from clipmlu.compile.calibration import CalibrationOptions, CalibrationSet
from clipmlu.compile.compiler import CompilationPlan, CompileOptions
from clipmlu.data.datasets import DATASETS
from clipmlu.errors import BundleError, BundleNotFoundError
from clipmlu.specs import CalibrationRecord


def reusable_compilation(
    exported: ExportedBundle, path: Path, plan: CompilationPlan, options: CompileOptions, on_note: Callable[[str], None]
) -> CompiledBundle | None:
    """The bundle at a path, if its files match their digests and it is what compiling now would give.

    Args:
        exported: what it must have been compiled from.
        path: where it would be.
        plan: of the options.
        options: how it must have been compiled.
        on_note: called with the reason when there is one that cannot be reused.
    """
    try:
        bundle = open_compiled(path)
    except BundleNotFoundError:
        return None
    except BundleError as error:
        on_note(f"not reusing {path}: {error}")
        return None
    facts = bundle.compilation
    versions = current_tool_versions(*get_backend(plan.main.backend).packages)
    same = (
        msgspec.structs.replace(facts, parity=(), agreement=None, calibration=None, quantised={})
        == plan.facts(options, exported.digest, None)
        and _same_calibration(facts.calibration, options.calibration)
        and versions.items() <= bundle.manifest.tool_versions.items()
    )
    if not same:
        on_note(f"not reusing {path}: it was compiled from another export, with other options or by other versions")
    return bundle if same else None


def _same_calibration(record: CalibrationRecord | None, options: CalibrationOptions | CalibrationSet | None) -> bool:
    """Whether a bundle was calibrated as asked; a folder's images may have changed since, so it is calibrated anew."""
    if record is None or options is None:
        return record is None and options is None
    if isinstance(options, CalibrationSet):
        return record.digest == options.record.digest
    wanted = (options.dataset, options.samples, options.seed)
    return (record.dataset, record.samples, record.seed) == wanted and options.dataset in DATASETS
