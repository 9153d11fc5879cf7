"""``lower_bundle``: the graphs that a compilation hands to the vendor's parser, as files for people's own scripts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from clipmlu.arguments import as_path, check_argument, check_fields
from clipmlu.backends import TARGETS, Backend, get_backend
from clipmlu.bundle.directory import ExportedBundle, open_exported
from clipmlu.bundle.manifest import TOKENIZER_NAME, Tower, current_tool_versions
from clipmlu.bundle.other_folders import LOWERED_NAME
from clipmlu.bundle.runnable import find_tower
from clipmlu.bundle.verify import file_record
from clipmlu.compile.lowered_files import (
    LABELS_NAME,
    README_NAME,
    TOKENS_NAME,
    LoweredGraph,
    LoweredHeader,
    build_config,
    describe_graph,
    write_readme,
)
from clipmlu.compile.lowered_graph import (
    check_batch_fits,
    check_kept_float,
    graph_options,
    lower_for_target,
    obtain_data,
)
from clipmlu.compile.plan import CompileOptions, LowerTarget, check_arithmetic
from clipmlu.data.class_names import resolve_class_names
from clipmlu.data.prompts import Templates, fill_template, resolve_templates
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.display import Displayed, Summary, as_plain
from clipmlu.errors import OptionError
from clipmlu.file_names import name_from_path
from clipmlu.files.publish import DirectoryKind, check_directory_free, encode_json, stage_directory
from clipmlu.graph.index import save_model
from clipmlu.graph.roles import Operator
from clipmlu.host import require_graph_packages
from clipmlu.specs import TEXT_AXIS, Layout, MluBuild, QuantisationOptions, TensorSpec, TowerName
from clipmlu.steps import StartStep, no_steps

_KIND = DirectoryKind(name="folder of lowered graphs", marker=LOWERED_NAME)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowerOptions:
    """Options of ``lower_bundle``; validated on construction.

    Attributes:
        target: the target whose parser reads the graphs.
        layout: ``towers`` or ``joint``; None for that of the bundle. Two towers can be joined, a fused graph not split.
        compile: the options of the compilation that the graphs depend on: precision, shape, number of texts,
            quantisation and calibration data; and whether existing output is replaced.
        labels: class names, of which the token ids are written too; None without.
        templates: the template of their prompts; None for ``a photo of a {}.``
    """

    target: LowerTarget = "mlu"
    layout: Layout | None = None
    compile: CompileOptions = dataclasses.field(default_factory=CompileOptions)
    labels: str | os.PathLike[str] | Sequence[str] | None = None
    templates: Templates | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.labels is None and self.templates is not None:
            raise OptionError(
                "templates are about labels, which are not given; give --labels too, or leave --templates out"
            )


class LoweredGraphs(Displayed):
    """A folder of lowered graphs.

    Attributes:
        path: the folder.
        header: the content of its ``lowered.json``.
    """

    def __init__(self, path: Path, header: LoweredHeader) -> None:
        self.path = path
        self.header = header

    def graph_path(self, name: TowerName) -> Path:
        """Return the path of a graph's ONNX file."""
        return self.path / self.header.graphs[name].file

    def summary(self) -> Summary:
        """Return the facts that people see."""
        header = self.header
        facts = {
            "graphs": name_from_path(self.path),
            "model": str(header.model),
            "for": f"{header.target}, opset {header.opset}, plain operators",
            "precision": header.precision.value,
        }
        for graph in header.graphs.values():
            tensors = [(each.name, each.shape) for each in graph.inputs] + [
                (each.name, each.shape) for each in graph.outputs
            ]
            facts[graph.file] = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in tensors)
        return Summary(facts)

    def to_dict(self) -> dict[str, Any]:
        """Return ``path`` and the header as a dict for JSON."""
        return {"path": name_from_path(self.path), **as_plain(self.header)}


def lower_bundle(
    source: str | os.PathLike[str] | ExportedBundle,
    output: str | os.PathLike[str],
    options: LowerOptions | None = None,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
) -> LoweredGraphs:
    """Write the graphs that a compilation hands to the vendor's parser, with a description of them.

    Args:
        source: the exported bundle, or its path.
        output: the folder to write.
        options: options; defaults if None.
        on_note: called with a line for the user about the labels.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Raises:
        OptionError: an option is wrong, or two contradict each other.
        BundleError: the bundle is a compiled one, or has the fused graph and two towers are wanted.
        CompileError: a graph cannot be expressed for the parser.
        CalibrationError: the calibration data do not fit.
        BundleExistsError, OutputError: the output exists, or cannot be written.
    """
    options = check_argument(options, LowerOptions | None, "options") or LowerOptions()
    target, given = as_path(output, "the output"), options.compile
    backend = get_backend(TARGETS[options.target])
    quantisation = check_arithmetic(given, options.target, backend)
    require_graph_packages("Lowering a bundle")
    check_directory_free(target, _KIND, overwrite=given.overwrite)
    labels = () if options.labels is None else resolve_class_names(options.labels, on_note=on_note)
    exported = source if isinstance(source, ExportedBundle) else _open(source, on_step)
    layout = options.layout or exported.manifest.layout
    given = _with_text_rows(given, layout, len(labels))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(stage_directory(target, _KIND, overwrite=given.overwrite))
        wanted = stack.enter_context(_in_layout(exported, layout, folder, on_step))
        writer = _Writer(wanted, folder, given, backend, quantisation, on_step)
        writer.write_texts(labels, options.templates)
        graphs = writer.write_graphs()
        header = writer.describe(options.target, exported.manifest.layout, graphs, len(labels))
        (folder / LOWERED_NAME).write_bytes(encode_json(header))
    return LoweredGraphs(target, header)


class _Writer:
    """Writes the files of one folder.

    Args:
        exported: the bundle, in the wanted layout.
        folder: the folder.
        options: options of the compilation.
        backend: the backend of the target.
        quantisation: resolved options of the quantisation, or None.
        on_step: begins each step.
    """

    def __init__(
        self,
        exported: ExportedBundle,
        folder: Path,
        options: CompileOptions,
        backend: Backend,
        quantisation: QuantisationOptions | None,
        on_step: StartStep,
    ) -> None:
        self._exported = exported
        self._folder = folder
        self._options = options
        self._backend = backend
        self._quantisation = quantisation
        self._on_step = on_step
        self._tokenizer = Tokenizer.load(exported.tokenizer_path, exported.manifest.tokenizer)
        if options.calibration is not None:
            check_batch_fits(exported, options)
        self._calibration = obtain_data(exported, options, on_step)

    def write_texts(self, labels: Sequence[str], templates: Templates | None) -> None:
        """Write the tokenizer, and the labels with their token ids."""
        shutil.copyfile(self._exported.tokenizer_path, self._folder / TOKENIZER_NAME)
        if labels:
            template = _one_template(templates)
            prompts = [fill_template(template, label) for label in labels]
            (self._folder / LABELS_NAME).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
            np.save(self._folder / TOKENS_NAME, self._tokenizer(prompts), allow_pickle=False)

    def write_graphs(self) -> dict[TowerName, LoweredGraph]:
        """Lower every tower; return the descriptions."""
        described: dict[TowerName, LoweredGraph] = {}
        operators: list[tuple[Operator, ...]] = []
        for name in self._exported.manifest.towers:
            with self._on_step(f"lowering the {name} graph"):
                described[name], found = self._write_graph(name)
                operators += [found] if found else []
        check_kept_float(self._quantisation, operators)
        return described

    def _write_graph(self, name: TowerName) -> tuple[LoweredGraph, tuple[Operator, ...]]:
        options = graph_options(
            self._exported,
            name,
            self._options,
            precision=self._options.precision,
            mlu=self._options.mlu,
            quantisation=self._quantisation,
            calibration=self._calibration,
            on_step=self._on_step,
        )
        prepared = lower_for_target(self._exported, name, self._backend, options, self._folder)
        graph = describe_graph(prepared, self._exported.manifest, self._tokenizer.largest_id)
        config = build_config(prepared.graph.tower, prepared.options)
        (self._folder / graph.build_config).write_bytes(encode_json(config))
        return graph, prepared.operators

    def describe(
        self, target: str, source_layout: Layout, graphs: dict[TowerName, LoweredGraph], labels: int
    ) -> LoweredHeader:
        """Write the README, and return the header."""
        from clipmlu.graph.lowering import MAGICMIND

        manifest = self._exported.manifest
        header = LoweredHeader(
            joined=manifest.layout != source_layout,
            target=target,
            model=manifest.model,
            source_digest=self._exported.digest,
            layout=manifest.layout,
            opset=MAGICMIND.opset,
            precision=self._options.precision,
            dynamic_shape=self._options.dynamic_shape,
            graphs=graphs,
            preprocess=manifest.preprocess,
            tokenizer=manifest.tokenizer,
            logit_scale=manifest.logit_scale,
            logit_bias=manifest.logit_bias,
            labels=labels,
            quantisation=self._quantisation,
            calibration=None if self._calibration is None else self._calibration.record,
            files={},
            tool_versions=manifest.tool_versions | current_tool_versions(),
        )
        (self._folder / README_NAME).write_text(write_readme(header), encoding="utf-8")
        files = {path.name: file_record(path) for path in sorted(self._folder.iterdir()) if path.is_file()}
        return msgspec.structs.replace(header, files=files)


def _open(source: str | os.PathLike[str], on_step: StartStep) -> ExportedBundle:
    with on_step("verifying the exported bundle"):
        return open_exported(source)


def _with_text_rows(options: CompileOptions, layout: Layout, labels: int) -> CompileOptions:
    """Return options whose number of texts is that of the labels, if there are labels and a fused graph.

    Raises:
        OptionError: a number of texts is given, and it is another one, or there is no fused graph.
    """
    if layout != "joint":
        if options.mlu is not None:
            raise OptionError("text rows are about the fused graph; give --layout joint too, or leave --text-rows out")
        return options
    if not labels:
        return options
    if options.mlu is not None and options.mlu.text_rows != labels:
        raise OptionError(
            f"text rows is {options.mlu.text_rows}, but there are {labels} labels; leave --text-rows out, or give as many labels"
        )
    return dataclasses.replace(options, mlu=MluBuild(text_rows=labels))


def _one_template(templates: Templates | None) -> str:
    found = resolve_templates("simple" if templates is None else templates)
    if len(found) != 1:
        raise OptionError(
            f"templates are {len(found)}, but a graph takes one text for each label; expected one template, such as 'a photo of a {{}}.'"
        )
    return found[0]


@contextlib.contextmanager
def _in_layout(exported: ExportedBundle, layout: Layout, folder: Path, on_step: StartStep) -> Iterator[ExportedBundle]:
    """Yield the bundle, or one in a temporary folder whose fused graph is made of its towers.

    Raises:
        BundleError: it has the fused graph, and two towers are wanted.
    """
    if layout == exported.manifest.layout:
        yield exported
    elif layout == "towers":
        find_tower(exported.path, exported.manifest.towers, "image")
    else:
        with tempfile.TemporaryDirectory(prefix="joint-", dir=folder) as temporary:
            with on_step("joining the towers"):
                fused = _fuse(exported, Path(temporary))
            yield fused


def _fuse(exported: ExportedBundle, folder: Path) -> ExportedBundle:
    import onnx

    from clipmlu.graph.fusing import IMAGE_AXIS, fuse_towers

    manifest = exported.manifest
    image, text = (onnx.load(str(exported.tower_path(name))) for name in ("image", "text"))
    save_model(fuse_towers(image, text, manifest.logit_scale, manifest.logit_bias), folder / "joint.onnx")
    shutil.copyfile(exported.tokenizer_path, folder / TOKENIZER_NAME)
    (pixels,), (ids,) = (manifest.towers[name].inputs for name in ("image", "text"))
    axes = (IMAGE_AXIS, TEXT_AXIS)
    joint = Tower(
        file="joint.onnx",
        inputs=(
            msgspec.structs.replace(pixels, shape=(axes[0], *pixels.shape[1:])),
            msgspec.structs.replace(ids, shape=(axes[1], *ids.shape[1:])),
        ),
        outputs=(
            TensorSpec(name="logits_per_image", dtype="float32", shape=axes),
            TensorSpec(name="logits_per_text", dtype="float32", shape=axes[::-1]),
        ),
    )
    return ExportedBundle(
        folder, msgspec.structs.replace(manifest, layout="joint", towers={"joint": joint}), exported.digest
    )
