"""``export_model``: exports a model to a bundle and compares it with torch before publication."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from clipmlu.arguments import as_path, check_argument
from clipmlu.bundle.directory import ExportedBundle, Staging, check_output_free, open_exported, stage_bundle
from clipmlu.bundle.manifest import (
    TOKENIZER_NAME,
    Export,
    FileRecord,
    Manifest,
    ParityRecord,
    Tower,
    current_tool_versions,
    text_id_of,
)
from clipmlu.data.resize.order import pillow_versions
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.export.checks import check_parity
from clipmlu.export.directories import Library
from clipmlu.export.downloads import record_downloads
from clipmlu.export.graph import EXPORTER, export_graph, read_opset
from clipmlu.export.loading import LoadedModel, load_model
from clipmlu.export.options import ExportOptions
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.repositories import are_current, fetch_directory
from clipmlu.export.source import Source, resolve_source, source_files
from clipmlu.export.tokenizers import write_tokenizer
from clipmlu.export.towers import measure_embedding_dim, tower_programs
from clipmlu.export.transformers_checks import check_against_library
from clipmlu.export.transformers_model import load_transformers_model
from clipmlu.specs import ModelId, TokenizerSpec, TowerName
from clipmlu.steps import StartStep, no_steps

__all__ = ["ExportOptions", "export_model", "identify_source", "is_current"]

LOG = logging.getLogger("clipmlu.export")
_TOOLS = ("onnx", "onnx-ir", "onnxruntime", "onnxscript", "open_clip_torch", "timm", "tokenizers", "torch")
_LIBRARY_TOOLS: dict[Library, tuple[str, ...]] = {"open_clip": (), "transformers": ("transformers",)}


def export_model(
    model: str,
    output: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    on_note: Callable[[str], None] = LOG.warning,
    on_step: StartStep = no_steps,
) -> ExportedBundle:
    """Export a model to ONNX.

    Args:
        model: an open_clip name (``ViT-B-32`` with ``options.pretrained``, or ``ViT-B-32::openai``),
            ``hf-hub:org/name``, ``hf:org/name``, ``ms:org/name``, ``local-dir:PATH``, ``demo``, or the hub's id of a model that open_clip lists, such as
            ``openai/clip-vit-base-patch32``.
        output: directory of the exported bundle.
        options: export options; defaults if None.
        on_note: called with a line for the user about each assumption; by default a log warning.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Returns:
        The published bundle, opened.

    Raises:
        UnknownNameError: there is no such model or pretrained tag.
        OptionError: the weights are not given, or given twice.
        MissingDependencyError: torch or open_clip is not installed.
        DownloadError: a file of the model cannot be downloaded.
        BundleExistsError: the output path already exists.
        OutputError: the output cannot be written.
        ParityError: the graphs' results differ from torch; nothing is published.
        ExportError: the model cannot be exported for another reason.
    """
    options = check_argument(options, ExportOptions | None, "options") or ExportOptions()
    output = as_path(output, "the output")
    source = resolve_source(model, options)
    check_output_free(output, overwrite=options.overwrite)
    if source.taken_from:
        on_note(f"'{source.taken_from}' is {source.identity} here")
    with quiet_libraries(), record_downloads() as downloads:
        local = fetch_directory(source, options, on_step)
        loaded = _load(local, options, on_step)
    for line in loaded.notes:
        on_note(line)
    with stage_bundle(output, overwrite=options.overwrite) as staging:
        with on_step("preparing the tokenizer"), record_downloads() as more:
            tokenizer = write_tokenizer(local, loaded, staging.path / TOKENIZER_NAME, options)
        towers, parity, embedding_dim = _export_towers(staging.path, loaded, tokenizer, options, on_step)
        if local.format == "transformers" and local.directory is not None and _has_own_texts(tokenizer, options):
            own = Tokenizer.load(staging.path / TOKENIZER_NAME, tokenizer)
            parity += check_against_library(towers, staging.path, local.directory, loaded, own, options, on_step)
        with on_step("writing the bundle"):
            manifest = _describe(
                staging, source, local.format, loaded, tokenizer, towers, parity, embedding_dim, options
            )
            export = msgspec.structs.replace(manifest.export, hub_files=downloads | more)
            staging.finish(msgspec.structs.replace(manifest, export=export))
    return open_exported(output, verify=False)


def identify_source(model: str, options: ExportOptions) -> tuple[ModelId, dict[str, FileRecord]]:
    """Return the origin that an export would record, without exporting and without importing torch.

    Returns:
        The manifest's ``model`` and ``export.source_files``. If these and the options are equal, the results are equal.

    Raises:
        UnknownNameError, OptionError, ExportError: as for ``export_model``.
    """
    source = resolve_source(model, options)
    return source.identity, source_files(source, options)


def is_current(bundle: ExportedBundle, options: ExportOptions) -> bool:
    """Return whether the cached files of the hub and the installed tools have the versions that a bundle was exported with.

    What is not cached or not installed here is not compared.
    """
    tools = (*_TOOLS, *(name for name in bundle.manifest.tool_versions if name in _LIBRARY_TOOLS["transformers"]))
    return (
        are_current(bundle.manifest.export.hub_files, options.cache_dir)
        and current_tool_versions(*_installed(tools)).items() <= bundle.manifest.tool_versions.items()
    )


def _load(source: Source, options: ExportOptions, on_step: StartStep) -> LoadedModel:
    load = load_model if source.format == "open_clip" else load_transformers_model
    return load(source, options, on_step)


def _has_own_texts(tokenizer: TokenizerSpec, options: ExportOptions) -> bool:
    """Return whether the bundle has the tokenizer of the model's library."""
    return not tokenizer.stand_in and options.tokenizer is None


def _export_towers(
    folder: Path, loaded: LoadedModel, tokenizer: TokenizerSpec, options: ExportOptions, on_step: StartStep
) -> tuple[dict[TowerName, Tower], tuple[ParityRecord, ...], int]:
    runtime_tokenizer = Tokenizer.load(folder / TOKENIZER_NAME, tokenizer)
    with on_step("running the model once"):
        embedding_dim = measure_embedding_dim(loaded)
    towers: dict[TowerName, Tower] = {}
    parity: list[ParityRecord] = []
    for program in tower_programs(loaded, options.layout, embedding_dim):
        with on_step(f"tracing the {program.tower} tower"):
            tower = export_graph(
                program,
                folder / f"{program.tower}.onnx",
                opset=options.opset,
                external_data_bytes=options.external_data_bytes,
            )
        parity += check_parity(program, tower, folder, loaded, runtime_tokenizer, options, on_step)
        towers[program.tower] = tower
    return towers, tuple(parity), embedding_dim


def _describe(
    staging: Staging,
    source: Source,
    library: Library,
    loaded: LoadedModel,
    tokenizer: TokenizerSpec,
    towers: dict[TowerName, Tower],
    parity: tuple[ParityRecord, ...],
    embedding_dim: int,
    options: ExportOptions,
) -> Manifest:
    files = staging.records()
    text_file = towers["joint" if options.layout == "joint" else "text"].file
    return Manifest(
        kind="exported",
        model=source.identity,
        layout=options.layout,
        towers=towers,
        preprocess=loaded.preprocess,
        tokenizer=tokenizer,
        embedding_dim=embedding_dim,
        logit_scale=loaded.logit_scale,
        logit_bias=loaded.logit_bias,
        activation=loaded.activation,
        text_id=text_id_of(files, [name for name in files if name.startswith(text_file)], tokenizer),
        export=Export(
            opset=max(read_opset(staging.path / tower.file) for tower in towers.values()),
            exporter=EXPORTER,
            weights_digest=loaded.weights_digest,
            source_files=source_files(source, options),
            parity=parity,
            notes=loaded.notes,
        ),
        files=files,
        tool_versions=current_tool_versions(*_installed((*_TOOLS, *_LIBRARY_TOOLS[library]))) | pillow_versions(),
    )


def _installed(tools: Sequence[str]) -> list[str]:
    """Return those distributions that are installed; only some image towers need timm."""
    installed = []
    for name in tools:
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(name)
            installed.append(name)
    return installed
