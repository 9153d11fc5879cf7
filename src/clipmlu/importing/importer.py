"""``import_onnx``: makes an exported bundle of ONNX files that another program wrote."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx

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
from clipmlu.bundle.verify import file_record
from clipmlu.data.resize.order import pillow_versions
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import ExportError
from clipmlu.export.graph import read_opset
from clipmlu.export.tokenizers import PROBE_TEXTS, SpecialTokens
from clipmlu.importing.checks import Bounds, bounds_for, check_logits, check_tower, draw_feeds, run_tower
from clipmlu.importing.files import ModelFiles, find_model_files
from clipmlu.importing.interface import count_tokens
from clipmlu.importing.options import DEFAULT_LOGIT_SCALE, ImportOptions
from clipmlu.importing.reading import GraphFile, read_graph
from clipmlu.importing.reference import Feeds, Reference
from clipmlu.importing.settings import copy_tokenizer, preprocess_spec
from clipmlu.importing.split import Affine
from clipmlu.importing.towers import TOWERS, SourceModel, build_tower, find_towers, open_reference, rows_of, write_tower
from clipmlu.specs import LARGEST_LOGIT, ModelId, PreprocessSpec, TowerName
from clipmlu.steps import StartStep, no_steps

__all__ = ["ImportOptions", "import_onnx"]

LOG = logging.getLogger("clipmlu.importing")
_TOOLS = ("onnx", "onnxruntime", "tokenizers")
_ACTIVATION = "as in the file"


def import_onnx(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: ImportOptions | None = None,
    *,
    on_note: Callable[[str], None] = LOG.warning,
    on_step: StartStep = no_steps,
) -> ExportedBundle:
    """Make an exported bundle of ONNX files of another program, without torch.

    Args:
        files: one graph with both towers, two graphs, or a directory in the layout of Optimum or transformers.js.
        output: directory of the exported bundle.
        options: import options; defaults if None.
        on_note: called with a line for the user about each choice and assumption; by default a log warning.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Returns:
        The published bundle, opened.

    Raises:
        InputError: a file is missing.
        OptionError: something that the files do not say is not given, or contradicts them.
        BundleExistsError: the output path already exists.
        OutputError: the output cannot be written.
        ParityError: the bundle's graphs differ from the given files; nothing is published.
        ExportError: a file is damaged, or a graph is not understood; the message names the node.
    """
    options = check_argument(options, ImportOptions | None, "options") or ImportOptions()
    output = as_path(output, "the output")
    found = find_model_files(files)
    check_output_free(output, overwrite=options.overwrite)
    notes: list[str] = []

    def add_note(line: str) -> None:
        notes.append(line)
        on_note(line)

    if found.note:
        add_note(found.note)
    with on_step("reading the graphs"):
        source = find_towers([read_graph(path) for path in found.graphs], options)
    with stage_bundle(output, overwrite=options.overwrite) as staging:
        _Import(found, source, options, staging, add_note, on_step).run(notes)
    return open_exported(output, verify=False)


class _Import:
    """One import into the folder of a new bundle."""

    def __init__(
        self,
        files: ModelFiles,
        source: SourceModel,
        options: ImportOptions,
        staging: Staging,
        on_note: Callable[[str], None],
        on_step: StartStep,
    ) -> None:
        self._files = files
        self._source = source
        self._options = options
        self._staging = staging
        self._on_note = on_note
        self._on_step = on_step

    def run(self, notes: list[str]) -> None:
        """Write all files of the bundle, and its manifest."""
        folder = self._staging.path
        pixels, tokens = self._source.image.inputs.pixels, self._source.text.inputs.tokens
        assert pixels is not None, "find_towers checked it"
        assert tokens is not None, "find_towers checked it"
        preprocess = preprocess_spec(
            self._source.image.file.model, pixels, self._files.folder, self._options, self._on_note
        )
        spec = copy_tokenizer(tokens, self._files.folder, folder / TOKENIZER_NAME, self._options, self._on_note)
        tokenizer = Tokenizer.load(folder / TOKENIZER_NAME, spec)
        self._check_vocabulary(tokenizer, SpecialTokens(folder / TOKENIZER_NAME).count, tokens.name)
        values = self._logit_values()
        bounds = bounds_for(self._options, values.scale, halves=any(tower.halves for tower in self._source.towers))
        self._note_halves()
        towers, parity, dim, digest = self._write_towers(preprocess, tokenizer, bounds)
        with self._on_step("writing the bundle"):
            files = self._staging.records()
            text_file = towers["text"].file
            manifest = Manifest(
                kind="exported",
                model=ModelId(name=f"onnx:{self._options.name or self._files.name}"),
                layout="towers",
                towers=towers,
                preprocess=preprocess,
                tokenizer=spec,
                embedding_dim=dim,
                logit_scale=values.scale,
                logit_bias=values.bias or None,
                activation=_ACTIVATION,
                text_id=text_id_of(files, [name for name in files if name.startswith(text_file)], spec),
                export=self._export_record(towers, tuple(parity), tuple(notes), digest),
                files=files,
                tool_versions=current_tool_versions(*_TOOLS) | pillow_versions(),
            )
            self._staging.finish(manifest)

    def _logit_values(self) -> Affine:
        """Return logit scale and bias: of the fused graph, or as given, or CLIP's."""
        options = self._options
        found = None if self._source.split is None else self._source.split.values
        if found is not None:
            self._refuse_other_values(found)
            return found
        if options.logit_scale is None:
            self._on_note(
                f"the logit scale is assumed to be {DEFAULT_LOGIT_SCALE:g}, CLIP's; give --logit-scale if it is another"
            )
        return Affine(scale=options.logit_scale or DEFAULT_LOGIT_SCALE, bias=options.logit_bias or 0.0)

    def _refuse_other_values(self, found: Affine) -> None:
        for name, value in (("scale", found.scale), ("bias", found.bias)):
            given = getattr(self._options, f"logit_{name}")
            if given is not None and abs(given - value) > 1e-3 * max(abs(value), 1.0):
                raise ExportError(
                    f"{self._source.image.file} has the logit {name} {value:g}, not {given:g}; leave --logit-{name} out."
                )
        if not 1 / LARGEST_LOGIT <= found.scale <= LARGEST_LOGIT or abs(found.bias) > LARGEST_LOGIT:
            raise ExportError(
                f"{self._source.image.file} has the logit scale {found.scale:g} and the bias {found.bias:g}; expected a scale of "
                f"{1 / LARGEST_LOGIT:g} to {LARGEST_LOGIT:g}, and a bias of {LARGEST_LOGIT:g} at most."
            )

    def _check_vocabulary(self, tokenizer: Tokenizer, vocabulary: int, tokens: str) -> None:
        """Raise if the tokenizer has ids beyond the token embedding: the text tower would fail, but only for some texts.

        A vocabulary may have entries that no text gets, so it alone is no error, except in CLIP's own.
        """
        count = count_tokens(self._source.text.file.model, tokens)
        if count is None:
            return
        path, used = self._source.text.file.path, int(tokenizer(list(PROBE_TEXTS)).max())
        largest = max(used, vocabulary - 1)
        beyond = f"the id {largest}, but the token embedding of '{path}' ends at {count - 1}"
        if used >= count or (largest >= count and tokenizer.spec.kind == "clip_bpe"):
            raise ExportError(f"The tokenizer has {beyond}. Give the model's own tokenizer: --tokenizer.")
        if largest >= count:
            self._on_note(f"the tokenizer has {beyond}: texts with a token beyond it have no embedding")

    def _note_halves(self) -> None:
        if any(tower.halves for tower in self._source.towers):
            self._on_note("the weights of 16-bit floats are stored as float32; clipmlu compile chooses the precision")

    def _write_towers(
        self, preprocess: PreprocessSpec, tokenizer: Tokenizer, bounds: Bounds
    ) -> tuple[dict[TowerName, Tower], list[ParityRecord], int, str]:
        pad_ends = _pad_ends_texts(tokenizer)
        folder = self._staging.path
        towers: dict[TowerName, Tower] = {}
        parity: list[ParityRecord] = []
        dims: dict[TowerName, int] = {}
        digest = hashlib.sha256()
        split = self._source.split
        reference: Reference | None = None
        with tempfile.TemporaryDirectory(prefix="import-", dir=folder) as scratch:
            for source in self._source.towers:
                if reference is None or split is None:
                    results = (source.embedding,) if split is None else (split.image, split.text, *split.logits)
                    with self._on_step("opening the given graph"):
                        reference = open_reference(source, results, Path(scratch))
                feeds = draw_feeds(reference, preprocess, tokenizer, pad_ends=pad_ends)
                with self._on_step(f"converting the {source.name} tower"):
                    dims[source.name], unit_norm = rows_of(reference, source, feeds)
                    model = build_tower(
                        source,
                        preprocess,
                        tokenizer.spec,
                        pad_ends=pad_ends,
                        unit_norm=unit_norm,
                        dim=dims[source.name],
                    )
                    _add_weights(digest, source.name, model)
                    towers[source.name] = write_tower(model, source.name, folder)
                with self._on_step(f"checking the {source.name} tower against the given file"):
                    parity += check_tower(
                        source.name, towers[source.name], folder, reference, source.embedding, feeds, bounds
                    )
            if dims["image"] != dims["text"]:
                raise ExportError(
                    f"The image embedding '{self._source.image.embedding}' has {dims['image']} elements, the text embedding "
                    f"'{self._source.text.embedding}' {dims['text']}: one of them is not projected. Name other outputs with "
                    "--image-output and --text-output, or export the model with its projections."
                )
            assert reference is not None
            self._check_logits(towers, reference, feeds, bounds)
        return towers, parity, dims["image"], digest.hexdigest()

    def _check_logits(self, towers: dict[TowerName, Tower], reference: Reference, feeds: Feeds, bounds: Bounds) -> None:
        split = self._source.split
        if split is None or not split.logits:
            return
        with self._on_step("checking the logits"):
            part = feeds.pick(np.arange(reference.images or 3), np.arange(reference.texts or 5))
            embeddings = [
                run_tower(towers[name], self._staging.path, array, f"The imported {name} graph")
                for name, array in zip(TOWERS, (part.pixels, part.tokens), strict=True)
            ]
            check_logits(split, reference, part, embeddings, bounds)

    def _export_record(
        self, towers: dict[TowerName, Tower], parity: tuple[ParityRecord, ...], notes: tuple[str, ...], digest: str
    ) -> Export:
        graphs = [tower.file for tower in self._source.towers]
        return Export(
            opset=max(read_opset(self._staging.path / tower.file) for tower in towers.values()),
            exporter=f"clipmlu import of {' and '.join(dict.fromkeys(map(_producer, graphs)))}",
            weights_digest=digest,
            source_files=_source_files(graphs),
            parity=parity,
            notes=notes,
        )


def _pad_ends_texts(tokenizer: Tokenizer) -> bool:
    """Return whether the id of padding also ends every text, as in transformers' tokenizer of CLIP."""
    pad = tokenizer.spec.pad_id
    row = tokenizer("a")[0]
    full = tokenizer("a " * 2 * len(row))[0]
    return bool(full[-1] == pad)


def _producer(file: GraphFile) -> str:
    model = file.model
    return " ".join(filter(None, (model.producer_name, model.producer_version))) or "an unknown program"


def _source_files(graphs: list[GraphFile]) -> dict[str, FileRecord]:
    paths = dict.fromkeys(path for file in graphs for path in (file.path, *file.data_files))
    return {path.name: file_record(path) for path in paths}


def _add_weights(digest: hashlib._Hash, tower: TowerName, model: onnx.ModelProto) -> None:
    for weight in sorted(model.graph.initializer, key=lambda each: each.name):
        digest.update(f"{tower}:{weight.name}:{weight.data_type}:{list(weight.dims)}\n".encode())
        digest.update(weight.raw_data or weight.SerializeToString(deterministic=True))
