"""Bundles of a sweep or a run, which are reused if their key is equal; see ``resume``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from clipmlu.backends import SessionOptions, runtime_versions
from clipmlu.backends.base import OPTIONS_WITHOUT_EFFECT
from clipmlu.bundle.directory import Bundle, CompiledBundle, ExportedBundle, check_output_free, open_compiled
from clipmlu.compile.plan import CompilationPlan, CompileOptions, plan_compilation
from clipmlu.data.calibration import CalibrationOptions, obtain_calibration
from clipmlu.data.resize.order import pillow_versions
from clipmlu.errors import BundleError, BundleNotFoundError
from clipmlu.file_names import name_from_path
from clipmlu.keys import make_key, options_key, value_digest
from clipmlu.steps import StartStep, no_steps
from clipmlu.tune.resume import Key, Note, ResultStore

SomeBundle = TypeVar("SomeBundle", bound=Bundle)


def obtain_bundle(
    path: Path,
    store: ResultStore,
    key: Key,
    open_: Callable[[Path], SomeBundle],
    make: Callable[[bool], SomeBundle],
    *,
    overwrite: bool,
    on_note: Note,
) -> tuple[SomeBundle, bool]:
    """Return the bundle at a path if it was made under this key and is unchanged; otherwise make a new one.

    Args:
        path: path of the bundle.
        store: stores the digest of the bundle under the file name of the path.
        key: all inputs that determine the bundle.
        open_: opens and verifies the bundle at a path.
        make: makes the bundle; replaces another one if its argument is True.
        overwrite: replace another bundle. What an interrupted attempt under the same key left is always replaced.
        on_note: called with a line that says that a bundle is reused, or why not.

    Returns:
        The bundle, and whether it was reused.

    Raises:
        BundleExistsError: something else is at the path and may not be replaced.
        OutputError: the path cannot be written.
    """
    name = path.name
    digest = store.load(name, key, str)
    if digest is not None:
        bundle = open_unchanged(path, digest, open_, on_note)
        if bundle is not None:
            on_note(f"reusing {name_from_path(path)}: its content matches")
            return bundle, True
    overwrite = overwrite or store.is_begun(name, key)
    check_output_free(path, overwrite=overwrite)
    with store.making(name, key):
        bundle = make(overwrite)
    store.save(name, key, bundle.digest)
    return bundle, False


def obtain_compiled(
    exported: ExportedBundle,
    path: Path,
    options: CompileOptions,
    store: ResultStore,
    on_note: Note,
    on_step: StartStep = no_steps,
) -> tuple[CompiledBundle, bool]:
    """Return the compiled bundle at a path if its key is equal and it is unchanged; otherwise compile a new one.

    Returns:
        The bundle, and whether it was reused.

    Raises:
        ClipmluError: as ``compile_bundle``.
    """
    plan = plan_compilation(options)
    if isinstance(options.calibration, CalibrationOptions):
        options = dataclasses.replace(options, calibration=obtain_calibration(exported, options.calibration, on_step))

    def make(overwrite: bool) -> CompiledBundle:
        from clipmlu.compile.compiler import compile_bundle  # which takes a second that a reused bundle does not need

        on_note(f"compiling {name_from_path(exported.path)} to {name_from_path(path)}")
        return compile_bundle(exported, path, dataclasses.replace(options, overwrite=overwrite), on_step=on_step)

    key = compilation_key(exported, plan, options)
    return obtain_bundle(path, store, key, open_compiled, make, overwrite=options.overwrite, on_note=on_note)


def compilation_key(
    exported: ExportedBundle, plan: CompilationPlan, options: CompileOptions, *, without: Collection[str] = ()
) -> dict[str, str]:
    """Return the key of a compiled bundle: all inputs that determine it.

    Args:
        exported: the exported bundle.
        plan: the plan for these options.
        options: options of the compilation; calibration data must be given as a calibration set.
        without: fields of the options that the key leaves out.
    """
    assert not isinstance(options.calibration, CalibrationOptions), "only the data themselves say what they are"
    # The plan has the resolved target and quantisation; the record of the calibration set has the digest of its data.
    apart = ("target", "calibration", "session", "overwrite", "quantisation", *without)
    quantisation = {} if "quantisation" in without else {"compile.quantisation": value_digest(plan.quantisation)}
    return {
        **make_key(
            exported_bundle=exported.digest,
            target=plan.main.target,
            placement=(plan.main.backend, plan.main.emulated, plan.text_tower),
            build=plan.mlu,
            calibration=None if options.calibration is None else options.calibration.record,
            tool_versions=_tool_versions(plan, options.session),
        ),
        **options_key(options, prefix="compile.", without=apart),
        **quantisation,
        **session_key(options.session),
    }


def session_key(session: SessionOptions) -> dict[str, str]:
    """Return the key of the session options that determine computed values, without those that affect only speed."""
    return options_key(session, prefix="session.", without=OPTIONS_WITHOUT_EFFECT)


def _tool_versions(plan: CompilationPlan, session: SessionOptions) -> dict[str, str]:
    """Return the versions of clipmlu, of the towers' runtimes, and of ONNX Runtime, the reference of the gates."""
    placements = [plan.main, *([] if plan.text_tower is None else [plan.text_tower])]
    backends = ("onnxruntime", *(placement.backend for placement in placements))
    return runtime_versions(backends, session) | pillow_versions()


def open_unchanged(path: Path, digest: str, open_: Callable[[Path], SomeBundle], on_note: Note) -> SomeBundle | None:
    """Open and verify the bundle at a path; None, with a note, if it has another digest; None if nothing is there."""
    try:
        bundle = open_(path)
    except BundleNotFoundError:
        return None
    except BundleError as error:
        on_note(f"not reusing {name_from_path(path)}: {error}")
        return None
    if bundle.digest != digest:
        on_note(f"not reusing {name_from_path(path)}: another bundle is at this path")
        return None
    return bundle
