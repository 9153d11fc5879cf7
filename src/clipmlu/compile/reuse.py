"""Whether a compiled bundle that is there already is the one that would be made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from clipmlu.backends import SessionOptions, runtime_versions
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled
from clipmlu.compile.checks import Thresholds, passes_now
from clipmlu.compile.compiler import CompilationPlan, CompileOptions
from clipmlu.data.calibration import CalibrationOptions, obtain_calibration
from clipmlu.errors import BundleError, BundleNotFoundError
from clipmlu.file_names import name_from_path


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
        on_note(f"not reusing {name_from_path(path)}: {error}")
        return None
    reason = _difference(exported, bundle, plan, options)
    if reason:
        on_note(f"not reusing {name_from_path(path)}: {reason}")
    return None if reason else bundle


def tool_versions(plan: CompilationPlan, session: SessionOptions, *more: str) -> dict[str, str]:
    """Versions of clipmlu, and of the runtimes that the towers go to and of further ones by name."""
    placements = [plan.main, *([] if plan.text_tower is None else [plan.text_tower])]
    return runtime_versions((*more, *(placement.backend for placement in placements)), session)


def _difference(
    exported: ExportedBundle, bundle: CompiledBundle, plan: CompilationPlan, options: CompileOptions
) -> str:
    """Why a bundle is not what compiling now would give, or an empty text."""
    facts = bundle.compilation
    measured: dict[str, Any] = {"parity": (), "agreement": None, "calibration": None, "quantised": {}, "row_macs": {}}
    same = (
        msgspec.structs.replace(facts, **measured) == plan.facts(options, exported.digest, None)
        and tool_versions(plan, options.session).items() <= bundle.manifest.tool_versions.items()
        and _same_calibration(exported, bundle, options)
    )
    if not same:
        return "it was compiled from another export, with other options or by other versions"
    precisions = {name: plan.placement(name).precision for name in exported.manifest.towers}
    thresholds = Thresholds(min_cosine=options.min_cosine, min_agreement=options.min_agreement)
    if options.check and not passes_now(bundle, precisions, thresholds):
        return "it was not checked, or what was measured is not within what is demanded now"
    return ""


def _same_calibration(exported: ExportedBundle, bundle: CompiledBundle, options: CompileOptions) -> bool:
    """Whether a bundle was calibrated as asked, by the data themselves: a folder, or names of classes, may have changed."""
    record, calibration = bundle.compilation.calibration, options.calibration
    if record is None or calibration is None:
        return record is None and calibration is None
    if isinstance(calibration, CalibrationOptions):
        calibration = obtain_calibration(exported, calibration)
    digest = calibration.record.digest
    seen = {*calibration.images, *options.seen_images}
    return (
        record == calibration.record
        and options.calibration_digest in (None, "", digest)
        and seen == set(bundle.calibration_data().images)
    )
