"""Bundle directories: the output of an export or a compilation, and its verification.

A bundle is a directory with ``manifest.json`` and the files that the manifest lists with their digests.
``files.publish`` writes it, so that a path holds either a complete bundle or its previous content.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from clipmlu._version import __version__
from clipmlu.arguments import as_path, check_argument
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
from clipmlu.bundle.other_folders import next_step
from clipmlu.bundle.runnable import RunnableModel, find_tower, image_graph_of
from clipmlu.bundle.verify import check_files, check_graph, check_manifest, file_record
from clipmlu.display import Displayed, Summary, as_plain, size_text
from clipmlu.errors import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    BundleVersionError,
    reason_of,
)
from clipmlu.file_names import name_from_path
from clipmlu.files.publish import DirectoryKind, check_directory_free, encode_json, stage_directory
from clipmlu.files.read import decode_json, read_json, read_small_file
from clipmlu.files.workspace import sweep
from clipmlu.specs import (
    TowerName,
)

_KIND = DirectoryKind(name="bundle", marker=MANIFEST_NAME)
_MANIFEST_BYTES = 256 << 20  # with a scale per channel, the largest models need some 50 MB


class Bundle(Displayed):
    """A verified bundle on disk, created by ``open_bundle``.

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

    def summary(self) -> Summary:
        """Return the facts that people see."""
        facts = {
            "path": name_from_path(self.path),
            "model": str(self.manifest.model),
            "layout": self.manifest.layout,
            "size": size_text(self.size_bytes),
            "digest": self.digest[:12],
        }
        return Summary(facts)

    def to_dict(self) -> dict[str, Any]:
        """Return ``path``, ``digest`` and ``manifest`` as a dict for JSON."""
        return {"path": name_from_path(self.path), "digest": self.digest, "manifest": as_plain(self.manifest)}

    @property
    def tokenizer_path(self) -> Path:
        """Path of the tokenizer file."""
        return self.path / TOKENIZER_NAME

    @property
    def size_bytes(self) -> int:
        """Size of all listed files in bytes."""
        return sum(record.size for record in self.manifest.files.values())

    @property
    def image_graph(self) -> TowerName:
        """Name of the graph that takes images: the image tower, or the fused graph of the joint layout."""
        return image_graph_of(self.manifest)

    def tower(self, name: TowerName) -> Tower:
        """Return the tower with a name.

        Raises:
            BundleError: the bundle has another layout.
        """
        return find_tower(self.path, self.manifest.towers, name)

    def tower_path(self, name: TowerName) -> Path:
        """Return the path of the tower's graph file."""
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
        """Its graphs and facts, as the input of an encoder."""
        return RunnableModel(
            path=self.path,
            tokenizer_path=self.tokenizer_path,
            facts=self.manifest,
            towers=self.manifest.towers,
            compilation=self.compilation,
            files=self.manifest.files,
        )

    def calibration_data(self) -> SeenData:
        """Read the digests of the calibration and search data; empty if there are none.

        Raises:
            BundleCorruptError: the file cannot be read.
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

    def summary(self) -> Summary:
        """Return the facts that people see."""
        compiled = self.compilation
        batch = f"1..{compiled.max_batch}" if compiled.dynamic_shape else str(compiled.batch_size)
        target = {"target": compiled.target, "precision": compiled.precision.value, "batch": batch}
        return Summary({**super().summary().facts, **target}, compiled.emulated)


def open_bundle(
    path: str | os.PathLike[str], *, verify: bool = True, without: Collection[TowerName] = ()
) -> ExportedBundle | CompiledBundle:
    """Open a bundle and check it against its manifest.

    Args:
        path: the bundle's directory.
        verify: recompute every file's digest; sizes and paths are always checked.
        without: towers that will not be used; their files may be missing and are not checked.

    Raises:
        BundleNotFoundError: there is no such directory, or no manifest in it.
        BundleVersionError: a newer clipmlu wrote the manifest.
        BundleCorruptError: the manifest cannot be parsed, a path is outside the bundle, a file is missing or altered.
    """
    directory = as_path(path, "the bundle")
    check_argument(verify, bool, "verify")
    manifest, digest = _read_manifest(directory)
    check_manifest(directory, manifest)
    check_files(directory, manifest, verify=verify, without=without)
    for name, tower in manifest.towers.items():
        if name not in without and tower.file.endswith(GRAPH_SUFFIX):
            check_graph(directory, manifest, tower)
    if manifest.kind == "exported":
        return ExportedBundle(directory, manifest, digest)
    return CompiledBundle(directory, manifest, digest)


def open_exported(path: str | os.PathLike[str], *, verify: bool = True) -> ExportedBundle:
    """Open an exported bundle; see ``open_bundle``.

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
    """Open a compiled bundle; see ``open_bundle``.

    Raises:
        BundleError: the bundle is an exported one.
    """
    bundle = open_bundle(path, verify=verify, without=without)
    if not isinstance(bundle, CompiledBundle):
        raise BundleError(
            f"Bundle '{path}' is an exported bundle, which is not bound to a runtime yet. "
            f"Compile it first: clipmlu compile {path} --target cpu -o {path}-cpu; or in Python: clipmlu.pipeline('{path}')."
        )
    return bundle


class Staging:
    """A bundle that is being written.

    Attributes:
        path: the temporary directory to write files into.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest | None = None

    def records(self) -> dict[str, FileRecord]:
        """Return digest and size of every file written so far, by relative POSIX path."""
        paths = sorted(path for path in self.path.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): file_record(path) for path in paths}

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest; the bundle is published when the ``stage_bundle`` block ends."""
        (self.path / MANIFEST_NAME).write_bytes(encode_json(manifest))
        self.manifest = manifest


@contextlib.contextmanager
def stage_bundle(output: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Staging]:
    """Yield a temporary directory for a bundle and rename it to ``output`` when the block ends.

    On any exception, including an interrupt, the temporary directory is removed and ``output`` stays unchanged.

    Args:
        output: final path of the bundle.
        overwrite: replace an existing bundle. A directory that is not a bundle, or holds other files, is never replaced.

    Raises:
        BundleExistsError: ``output`` already exists, or holds files that clipmlu did not write.
        OutputError: the directory cannot be written, for instance because the disk is full.
    """
    with stage_directory(as_path(output, "the output"), _KIND, overwrite=overwrite) as temporary:
        staging = Staging(temporary)
        yield staging
        assert staging.manifest is not None, "finish() was not called"


def publish_copy(
    bundle: CompiledBundle, output: str | os.PathLike[str], files: Mapping[str, bytes], *, overwrite: bool = False
) -> CompiledBundle:
    """Publish a copy of a compiled bundle at another path, with additional files.

    Args:
        bundle: the bundle to copy.
        output: path of the copy.
        files: maps the name of an additional file to its content.
        overwrite: replace an existing bundle.

    Raises:
        BundleExistsError, OutputError: as for ``stage_bundle``.
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
    """Check, before slow work begins, that a bundle can be written to a path; see ``stage_bundle``.

    Raises:
        BundleExistsError: the path exists and must not be replaced, or holds files that clipmlu did not write.
    """
    check_directory_free(target, _KIND, overwrite=overwrite)


def _read_manifest(directory: Path) -> tuple[Manifest, str]:
    path = directory / MANIFEST_NAME
    try:
        if not directory.exists():
            sweep(directory.parent)  # an interrupted replacement may have moved it aside
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
        return (
            f"No bundle at '{directory}': the directory does not exist. Make an exported one with: clipmlu export MODEL "
            f"-o {directory}; or of that a compiled one with: clipmlu compile EXPORTED -o {directory}"
        )
    if directory.suffix == GRAPH_SUFFIX:
        return f"'{directory}' is an ONNX file, not a bundle. Make a bundle of it: clipmlu import {directory} -o DIR."
    step = next_step(directory) or "Give the directory that clipmlu export, import or compile wrote."
    return f"No bundle at '{directory}': it has no {MANIFEST_NAME}. {step}"
