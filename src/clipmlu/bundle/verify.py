"""Checks of a bundle's directory: the manifest, the digests of the files, and the graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from clipmlu.bundle.graph_file import scan_graph
from clipmlu.bundle.manifest import GRAPH_SUFFIX, TOKENIZER_NAME, FileRecord, Manifest, Tower
from clipmlu.errors import BundleCorruptError
from clipmlu.files.read import open_regular
from clipmlu.specs import TowerName

_INPUT_TYPES = {"pixel_values": ("float32", "uint8"), "input_ids": ("int64", "int32")}
_OUTPUT_TYPES = ("float32", "float16")
_CHUNK_BYTES = 1 << 20


def file_record(path: Path) -> FileRecord:
    """Return digest and size of a file."""
    digest = hashlib.sha256()
    size = 0
    with open_regular(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(sha256=digest.hexdigest(), size=size)


def check_manifest(directory: Path, manifest: Manifest) -> None:
    """Check that the fields of a manifest agree, and that its towers have possible tensors.

    Args:
        directory: the bundle's directory, for the messages.
        manifest: the manifest.

    Raises:
        BundleCorruptError: a check fails.
    """
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
    """Return what is wrong with a tower's tensors, or an empty text."""
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
            return f"has '{tensor.name}' with {rows} rows, but was compiled for {said}"
    return ""


def check_graph(directory: Path, manifest: Manifest, tower: Tower) -> None:
    """Check a graph file against the manifest, and for content that no tower needs.

    Raises:
        BundleCorruptError: the graph is not valid; the message says why.
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
    """Return the shape without the names of axes, which lowering may change."""
    return [size if isinstance(size, int) else None for size in shape]


def check_files(directory: Path, manifest: Manifest, *, verify: bool, without: Collection[TowerName]) -> None:
    """Check that all files are in the bundle's directory and match the manifest.

    Args:
        directory: the bundle's directory.
        manifest: its manifest.
        verify: compute the digest of every file; sizes are always compared.
        without: towers whose files are not checked.

    Raises:
        BundleCorruptError: a file is missing, altered or outside the directory.
    """
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
    """Return the path of a listed file; raise if it is outside the bundle, also through links."""
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
        f"Manifest of '{directory}' lists the path '{name}', which is outside the bundle. Do not use this bundle."
    )
