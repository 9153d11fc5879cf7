"""Artifact directories: what an export and a compilation leave behind, and how it is verified.

A bundle is a directory with ``manifest.json`` beside the files that the manifest lists by digest. It is published as
``files.publish`` does it, so that a path either holds a whole bundle or what it held before.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from clipmlu._version import __version__
from clipmlu.arguments import as_path, check_argument
from clipmlu.bundle.graph_file import scan_graph
from clipmlu.bundle.manifest import (
    CALIBRATION_NAME,
    GRAPH_SUFFIX,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    TOKENIZER_NAME,
    Compilation,
    FileRecord,
    Manifest,
    SeenData,
    Tower,
)
from clipmlu.bundle.runnable import RunnableModel, find_tower, image_graph_of
from clipmlu.errors import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    BundleVersionError,
    reason_of,
)
from clipmlu.files.publish import check_directory_free, encode_json, stage_directory
from clipmlu.files.read import decode_json, open_regular, read_json, read_small_file
from clipmlu.files.workspace import sweep
from clipmlu.specs import (
    TowerName,
)

_INPUT_TYPES = {"pixel_values": ("float32", "uint8"), "input_ids": ("int64", "int32")}
_OUTPUT_TYPES = ("float32", "float16")
_CHUNK_BYTES = 1 << 20
_MANIFEST_BYTES = 256 << 20  # with a scale for each channel of the largest models, some 50 MB


class Bundle:
    """A verified bundle on disk; made by ``open_bundle``.

    Attributes:
        path: the directory.
        manifest: its manifest.
        digest: SHA-256 of the manifest file, which holds the digests of all other files.
    """

    kind: Literal["exported", "compiled"]

    def __init__(self, path: Path, manifest: Manifest, digest: str) -> None:
        self.path = path
        self.manifest = manifest
        self.digest = digest

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.path}', model='{self.manifest.model}', {self._facts()})"

    def _facts(self) -> str:
        return f"layout='{self.manifest.layout}'"

    @property
    def tokenizer_path(self) -> Path:
        """Path of the tokenizer file."""
        return self.path / TOKENIZER_NAME

    @property
    def size_bytes(self) -> int:
        """Bytes of all listed files."""
        return sum(record.size for record in self.manifest.files.values())

    @property
    def image_graph(self) -> TowerName:
        """The graph that takes images: the image tower, or the fused graph of the joint layout."""
        return image_graph_of(self.manifest)

    def tower(self, name: TowerName) -> Tower:
        """The tower of that name.

        Raises:
            BundleError: the bundle has another layout.
        """
        return find_tower(self.path, self.manifest.towers, name)

    def tower_path(self, name: TowerName) -> Path:
        """Path of the tower's graph file."""
        return self.path / self.tower(name).file


class ExportedBundle(Bundle):
    """Canonical ONNX graphs, tokenizer and manifest of one model."""

    kind = "exported"


class CompiledBundle(Bundle):
    """Graphs compiled for one target."""

    kind = "compiled"

    @property
    def compilation(self) -> Compilation:
        """The manifest's compilation record."""
        compilation = self.manifest.compilation
        assert compilation is not None, "open_bundle checked it"
        return compilation

    @property
    def runnable(self) -> RunnableModel:
        """Its graphs and facts as an encoder takes them."""
        return RunnableModel(
            path=self.path,
            tokenizer_path=self.tokenizer_path,
            facts=self.manifest,
            towers=self.manifest.towers,
            compilation=self.compilation,
            files=self.manifest.files,
        )

    def calibration_data(self) -> SeenData:
        """What the bundle was calibrated with, and chosen by; nothing when it was not.

        Raises:
            BundleCorruptError: the file is not what was written.
        """
        if self.compilation.calibration is None:
            return SeenData(images=(), prompts=())
        path = self.path / CALIBRATION_NAME
        try:
            return read_json(path, SeenData)
        except (OSError, msgspec.DecodeError) as error:
            raise BundleCorruptError(
                f"'{path}' cannot be read: {reason_of(error)}. Compile the bundle again."
            ) from error

    def _facts(self) -> str:
        facts = self.compilation
        batch = f"1..{facts.max_batch}" if facts.dynamic_shape else str(facts.batch_size)
        mark = ", emulated" if facts.emulated else ""
        return f"target='{facts.target}', precision='{facts.precision.value}', batch={batch}{mark}"


def open_bundle(
    path: str | os.PathLike[str], *, verify: bool = True, without: Collection[TowerName] = ()
) -> ExportedBundle | CompiledBundle:
    """Open a bundle and check that it is what its manifest says.

    Args:
        path: the bundle's directory.
        verify: recompute every file's digest; sizes and paths are always checked.
        without: towers that will not be used, whose files are neither needed nor checked.

    Raises:
        BundleNotFoundError: there is no such directory, or no manifest in it.
        BundleVersionError: the manifest was written by a newer clipmlu.
        BundleCorruptError: the manifest cannot be parsed, a path leaves the bundle, a file is missing or altered.
    """
    directory = as_path(path, "the bundle")
    check_argument(verify, bool, "verify")
    manifest, digest = _read_manifest(directory)
    _check_consistency(directory, manifest)
    _check_files(directory, manifest, verify=verify, without=without)
    for name, tower in manifest.towers.items():
        if name not in without and tower.file.endswith(GRAPH_SUFFIX):
            _check_graph(directory, manifest, tower)
    if manifest.kind == "exported":
        return ExportedBundle(directory, manifest, digest)
    return CompiledBundle(directory, manifest, digest)


def open_exported(path: str | os.PathLike[str], *, verify: bool = True) -> ExportedBundle:
    """``open_bundle`` for callers that need canonical graphs.

    Raises:
        BundleError: the bundle is a compiled one.
    """
    bundle = open_bundle(path, verify=verify)
    if not isinstance(bundle, ExportedBundle):
        raise BundleError(f"Bundle '{path}' is compiled already; give the exported bundle that it was compiled from.")
    return bundle


def open_compiled(
    path: str | os.PathLike[str], *, verify: bool = True, without: Collection[TowerName] = ()
) -> CompiledBundle:
    """``open_bundle`` for callers that run the graphs.

    Raises:
        BundleError: the bundle is an exported one.
    """
    bundle = open_bundle(path, verify=verify, without=without)
    if not isinstance(bundle, CompiledBundle):
        raise BundleError(
            f"Bundle '{path}' is an exported bundle, which is not bound to a runtime yet. "
            f"Compile it first: clipmlu compile {path} --target cpu -o {path}-cpu"
        )
    return bundle


def file_record(path: Path) -> FileRecord:
    """Digest and size of a file."""
    digest = hashlib.sha256()
    size = 0
    with open_regular(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(sha256=digest.hexdigest(), size=size)


class Staging:
    """A bundle under construction.

    Attributes:
        path: the temporary directory to write files into.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest | None = None

    def records(self) -> dict[str, FileRecord]:
        """Digest and size of every file written so far, by relative POSIX path."""
        paths = sorted(path for path in self.path.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): file_record(path) for path in paths}

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest; the bundle is published when the ``stage_bundle`` block ends."""
        (self.path / MANIFEST_NAME).write_bytes(encode_json(manifest))
        self.manifest = manifest


@contextlib.contextmanager
def stage_bundle(output: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Staging]:
    """Build a bundle in a temporary sibling of ``output`` and rename it into place when the block ends.

    On any exception, an interrupt included, the temporary directory is removed and ``output`` is as it was.

    Args:
        output: where the bundle shall be.
        overwrite: replace a bundle that is there already. Anything that is not a bundle is never replaced.

    Raises:
        BundleExistsError: ``output`` is taken.
        OutputError: the directory cannot be written, for instance because the disk is full.
    """
    with stage_directory(as_path(output, "the output"), "bundle", MANIFEST_NAME, overwrite=overwrite) as temporary:
        staging = Staging(temporary)
        yield staging
        assert staging.manifest is not None, "finish() was not called"


def publish_copy(
    bundle: CompiledBundle, output: str | os.PathLike[str], files: Mapping[str, bytes], *, overwrite: bool = False
) -> CompiledBundle:
    """Publish a compiled bundle at another path, with further files in it.

    Args:
        bundle: what to copy.
        output: where it shall be.
        files: name -> content.
        overwrite: replace a bundle that is there already.

    Raises:
        BundleExistsError, OutputError: as ``stage_bundle``.
    """
    with stage_bundle(output, overwrite=overwrite) as staging:
        for name in bundle.manifest.files:
            (staging.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, staging.path / name)
        for name, content in files.items():
            (staging.path / name).write_bytes(content)
        staging.finish(msgspec.structs.replace(bundle.manifest, files=staging.records()))
    return open_compiled(output, verify=False)


def check_output_free(target: Path, *, overwrite: bool) -> None:
    """Refuse an output path that is taken, before anything slow begins; see ``stage_bundle``.

    Raises:
        BundleExistsError: something is there that may not be replaced.
    """
    check_directory_free(target, "bundle", MANIFEST_NAME, overwrite=overwrite)


def _read_manifest(directory: Path) -> tuple[Manifest, str]:
    path = directory / MANIFEST_NAME
    try:
        if not directory.exists():
            sweep(directory.parent)  # a kill while it was replaced may have left it aside
        content = read_small_file(path, _MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleNotFoundError(_not_found_message(directory)) from None
    except OSError as error:
        raise BundleError(f"Cannot read '{path}': {error.strerror}.") from error
    try:
        version = decode_json(content, _VersionOnly).schema_version
        if version > SCHEMA_VERSION:
            raise BundleVersionError(
                f"Bundle '{directory}' has manifest schema {version}; this clipmlu {__version__} reads up to "
                f"{SCHEMA_VERSION}. Upgrade clipmlu, or export the model again."
            )
        manifest = decode_json(content, Manifest)
    except msgspec.DecodeError as error:
        raise BundleCorruptError(f"Manifest '{path}' is not valid: {error}. Make the bundle again.") from error
    return manifest, hashlib.sha256(content).hexdigest()


class _VersionOnly(msgspec.Struct):
    schema_version: int


def _not_found_message(directory: Path) -> str:
    if not directory.exists():
        return f"No bundle at '{directory}': the directory does not exist. Make one with: clipmlu export MODEL -o {directory}"
    return f"No bundle at '{directory}': it has no {MANIFEST_NAME}. Give the directory that clipmlu export or compile wrote."


def _check_consistency(directory: Path, manifest: Manifest) -> None:
    expected = {"joint"} if manifest.layout == "joint" else {"image", "text"}
    if set(manifest.towers) != expected:
        raise BundleCorruptError(
            f"Manifest of '{directory}' lists the towers {sorted(manifest.towers)}; layout '{manifest.layout}' has {sorted(expected)}."
        )
    if (manifest.compilation is None) != (manifest.kind == "exported"):
        raise BundleCorruptError(
            f"Manifest of '{directory}' says '{manifest.kind}', but its compilation record says otherwise."
        )
    for name in [TOKENIZER_NAME, *(tower.file for tower in manifest.towers.values())]:
        if name not in manifest.files:
            raise BundleCorruptError(f"Manifest of '{directory}' names '{name}' without listing its digest.")
    for tower_name, tower in manifest.towers.items():
        problem = _tower_problem(manifest, tower_name, tower)
        if problem:
            raise BundleCorruptError(
                f"Manifest of '{directory}' is not valid: the {tower_name} tower {problem}. Make the bundle again."
            )


def _tower_problem(manifest: Manifest, name: TowerName, tower: Tower) -> str:
    """What no tower of the model can have, or an empty text."""
    if manifest.compilation is None and not tower.file.endswith(GRAPH_SUFFIX):
        return f"has the file '{tower.file}'; expected a graph, '*{GRAPH_SUFFIX}'"
    preprocess, dim = manifest.preprocess, manifest.embedding_dim
    inputs: dict[str, tuple[int, ...]] = {
        "pixel_values": (3, preprocess.height, preprocess.width),
        "input_ids": (manifest.tokenizer.context_length,),
    }
    unwanted = {"image": "input_ids", "text": "pixel_values", "joint": ""}[name]
    inputs.pop(unwanted, None)
    if [tensor.name for tensor in tower.inputs] != list(inputs):
        return f"takes {[tensor.name for tensor in tower.inputs]}; expected {list(inputs)}"
    names = [tensor.name for tensor in tower.outputs]
    if not names or len({*names}) != len(names) or (name != "joint" and len(names) != 1):
        return f"gives {names}; expected {'one output' if name != 'joint' else 'outputs with names of their own'}"
    for tensor in (*tower.inputs, *tower.outputs):
        wanted = inputs.get(tensor.name, () if name == "joint" else (dim,))
        kinds = _INPUT_TYPES.get(tensor.name, _OUTPUT_TYPES)
        if tensor.dtype not in kinds or len(tensor.shape) < 2 or (wanted and tensor.shape[1:] != wanted):
            return f"has '{tensor.name}' as {tensor.dtype} {list(tensor.shape)}; expected {' or '.join(kinds)} {['batch', *wanted]}"
    return _batch_problem(manifest, tower) if name != "joint" else ""


def _batch_problem(manifest: Manifest, tower: Tower) -> str:
    facts = manifest.compilation
    static = facts is not None and not facts.dynamic_shape
    for tensor in (*tower.inputs, *tower.outputs):
        rows = tensor.shape[0]
        if isinstance(rows, int) != static or (facts is not None and static and rows != facts.batch_size):
            said = f"static batches of {facts.batch_size}" if facts is not None and static else "any batch"
            return f"has '{tensor.name}' with {rows} rows, and was made for {said}"
    return ""


def _check_graph(directory: Path, manifest: Manifest, tower: Tower) -> None:
    """Refuse a graph that is not what the manifest says, or that would run or read what no tower has to.

    Raises:
        BundleCorruptError: what it holds.
    """
    where = f"Graph '{tower.file}' of bundle '{directory}'"
    try:
        with open_regular(directory / tower.file) as stream:
            graph = scan_graph(stream)
    except OSError as error:
        raise BundleCorruptError(f"{where} cannot be read: {error.strerror}. Make the bundle again.") from error
    except ValueError as error:
        raise BundleCorruptError(f"{where} cannot be used: {error}. Make the bundle again.") from error
    for name in sorted(graph.data_files):
        if name not in manifest.files or not name.startswith(f"{tower.file}."):
            raise BundleCorruptError(
                f"{where} takes weights from '{name}', which the manifest does not list as a file of that graph. "
                "Do not use this bundle."
            )
    for ports, tensors in ((graph.inputs, tower.inputs), (graph.outputs, tower.outputs)):
        found = [(port.name, port.dtype) for port in ports]
        expected = [(tensor.name, tensor.dtype) for tensor in tensors]
        if found != expected:
            raise BundleCorruptError(f"{where} has {found}; the manifest says {expected}. Make the bundle again.")
        for port, tensor in zip(ports, tensors, strict=True):
            if port.shape is not None and _sizes(port.shape) != _sizes(tensor.shape):
                raise BundleCorruptError(
                    f"{where} has '{port.name}' with the shape {list(port.shape)}; the manifest says {list(tensor.shape)}. "
                    "Make the bundle again."
                )


def _sizes(shape: tuple[int | str, ...]) -> list[int | None]:
    """The shape without the names of axes, which lowering may change."""
    return [size if isinstance(size, int) else None for size in shape]


def _check_files(directory: Path, manifest: Manifest, *, verify: bool, without: Collection[TowerName]) -> None:
    unused = tuple(tower.file for name, tower in manifest.towers.items() if name in without)
    for name, expected in manifest.files.items():
        path = _resolve_inside(directory, name)
        if name.startswith(unused):  # the graph and its external data
            continue
        try:
            size = path.stat().st_size
            actual = file_record(path) if verify and size == expected.size else None
        except OSError as error:
            raise BundleCorruptError(
                f"File '{name}' of bundle '{directory}' cannot be read: {error.strerror}. Make the bundle again."
            ) from error
        if size != expected.size:
            raise BundleCorruptError(
                f"File '{name}' of bundle '{directory}' has {size} bytes; the manifest says {expected.size}. Make the bundle again."
            )
        if actual is not None and actual.sha256 != expected.sha256:
            raise BundleCorruptError(
                f"File '{name}' of bundle '{directory}' does not match its digest in the manifest: it was altered or damaged. "
                "Make the bundle again."
            )


def _resolve_inside(directory: Path, name: str) -> Path:
    """A listed file's path; anything that could lead out of the bundle, links included, is refused."""
    relative = PurePosixPath(name)
    lexically_inside = (
        name != ""
        and not relative.is_absolute()
        and ".." not in relative.parts
        and "\\" not in name
        and "\0" not in name
    )
    if lexically_inside:
        path = directory / relative
        if path.resolve().is_relative_to(directory.resolve()):
            return path
    raise BundleCorruptError(
        f"Manifest of '{directory}' lists the path '{name}', which leaves the bundle. Do not use this bundle."
    )
