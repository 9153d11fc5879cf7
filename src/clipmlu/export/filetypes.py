"""Identifying a weights file by its first bytes: a supported format, or an error with the actual type and advice.

It does not import torch, so that a failed download is reported at once.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Literal

from clipmlu.errors import ExportError, first_line
from clipmlu.files.read import open_regular

Format = Literal["safetensors", "torch", "script", "big_vision"]
"""``script`` is a TorchScript archive, ``big_vision`` an ``.npz`` of Google's named arrays."""

_HEAD_BYTES = 1024
_TORCH_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # first bytes of files of torch before 1.6: a pickled number
_MOST_EXPANSION = 20  # torch does not compress; an archive with a higher ratio is not a checkpoint

_UNPACK = "Unpack it, and give the file of weights that is in it."
_AGAIN = "Download or copy it again, and compare its size with the original's."
_SAVE_WEIGHTS = "save its weights alone there"
_FROM_TORCH = (
    "Give the weights as torch (.pt, .bin) or safetensors hold them, under open_clip's names; or convert them first."
)
TRANSFORMERS_ADVICE = (
    "Take open_clip's file of the same model (open_clip_model.safetensors or open_clip_pytorch_model.bin), name the original "
    "by its tag (see 'clipmlu models'), or convert the weights to open_clip's names."
)

# (offset, bytes, type, advice)
_KINDS = (
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer, not the file that it stands for",
        "Get that with 'git lfs pull'.",
    ),
    (0, b"/annex/objects/", "a git-annex pointer, not the file that it stands for", "Get that with 'git annex get'."),
    (0, b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (0, b"BZh", "compressed with bzip2", _UNPACK),
    (0, b"\xfd7zXZ\x00", "compressed with xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x93NUMPY", "a single NumPy array", _FROM_TORCH),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras and TensorFlow write", _FROM_TORCH),
    (0, b"GGUF", "a GGUF file", _FROM_TORCH),
    (0, b"\x89PNG", "a picture", _FROM_TORCH),
    (0, b"\xff\xd8\xff", "a picture", _FROM_TORCH),
    (0, b"%PDF", "a PDF document", _FROM_TORCH),
    (0, b"\x7fELF", "a program or shared library", _FROM_TORCH),
)


def identify_weights(path: Path) -> Format:
    """Identify the format of a weights file.

    Args:
        path: any existing path.

    Raises:
        ExportError: the file cannot be read or has no supported format; the message names its actual type.
    """
    if path.is_dir():
        raise unusable_weights(path, describe_directory(path))
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise unusable_weights(path, f"{error.strerror}.") from error
    if not head:
        raise unusable_weights(path, f"the file is empty. {_AGAIN}")
    for offset, magic, kind, advice in _KINDS:
        if head[offset:].startswith(magic):
            raise unusable_weights(path, f"it is {kind}. {advice}")
    if head.startswith(b"PK"):
        return _identify_archive(path, size)
    return _identify_binary(path, head, size)


def describe_file(head: bytes) -> str | None:
    """Describe a file by its first bytes, in sentences; None if they are of no type that is often given by mistake."""
    for offset, magic, kind, advice in _KINDS:
        if head[offset:].startswith(magic):
            return f"it is {kind}." if advice is _FROM_TORCH else f"it is {kind}. {advice}"
    return _describe_text(head)


def unusable_weights(path: Path, reason: str) -> ExportError:
    """Return (not raise) the error for unusable weights; ``reason`` is one or more sentences."""
    return ExportError(f"Cannot load the weights '{path}': {reason}")


def describe_directory(folder: Path) -> str:
    """Describe a directory given instead of a weights file, with advice, in sentences."""
    names = {path.name for path in folder.iterdir()} if os.access(folder, os.R_OK | os.X_OK) else set()
    if "open_clip_config.json" in names:
        return f"it is a directory in open_clip's format. Give it as the model: local-dir:{folder}"
    if "manifest.json" in names:
        return "it is a bundle, exported already. Go on with it: clipmlu compile, or clipmlu info."
    if "zero_to_fp32.py" in names or any(name.startswith("global_step") for name in names):
        return (
            "it is a checkpoint directory of DeepSpeed. Merge it into one file with the script that DeepSpeed put there: "
            "python zero_to_fp32.py DIRECTORY weights.pt"
        )
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return (
            "it is a distributed checkpoint of torch. Merge it into one file: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIRECTORY weights.pt"
        )
    if "config.json" in names:
        return f"it is a directory of the transformers library. Give it as the model: local-dir:{folder}"
    files = sorted(name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt")))
    named = f" such as '{files[0]}'" if files else ", or a directory with open_clip_config.json as local-dir:PATH"
    return f"it is a directory. Give a file of weights{named}."


def _identify_archive(path: Path, size: int) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names, total = archive.namelist(), sum(each.file_size for each in archive.infolist())
    except Exception as error:  # zipfile raises several types for damaged archives
        raise unusable_weights(path, f"it is a ZIP archive that is damaged or not complete. {_AGAIN}") from error
    if any(name.endswith(".npy") for name in names):
        return "big_vision"
    if any(name.endswith(("serialized_exported_program.json", "models/model.json")) for name in names):
        raise unusable_weights(path, f"it is a program of torch.export. In the program that wrote it, {_SAVE_WEIGHTS}.")
    if not any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        first = f", which begins with '{names[0]}'" if names else ""
        raise unusable_weights(path, f"it is a ZIP archive of other files{first}. {_UNPACK}")
    if total > _MOST_EXPANSION * size:
        raise unusable_weights(path, f"its {size:,} bytes would unpack to {total:,}, which no checkpoint does.")
    return "script" if any(name.endswith("/constants.pkl") for name in names) else "torch"


def _identify_binary(path: Path, head: bytes, size: int) -> Format:
    if head[8:9] == b"{" and (path.suffix == ".safetensors" or head[:1] != b"\x80"):
        if 8 + int.from_bytes(head[:8], "little") > size:
            raise unusable_weights(path, f"it is a safetensors file whose header is damaged or cut off. {_AGAIN}")
        return "safetensors"
    if _TORCH_MAGIC in head[:64]:
        return "torch"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        raise unusable_weights(
            path,
            "it is a Python pickle that torch.save did not write, and reading it could run any code. "
            f"If you trust it, open it where it was written, and {_SAVE_WEIGHTS}: torch.save(weights, FILE).",
        )
    text = _describe_text(head)
    if text is not None:
        raise unusable_weights(path, text)
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and (b"pytorch" in head[:64] or b"onnx" in head[:64])):
        raise unusable_weights(
            path, "it is an ONNX graph, exported already. Make a bundle of it: clipmlu import, see its --help."
        )
    raise unusable_weights(path, f"it is no checkpoint: it begins with the bytes {head[:8].hex(' ')}.")


def _describe_text(head: bytes) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page, such as a browser or a failed download saves. Download the file itself."
    if start.startswith(b"<"):
        return f"it is an XML file. {_FROM_TORCH}"
    if b'"weight_map"' in start:
        return "it is the index of weights in several files. Merge these into one file first."
    if start.startswith((b"{", b"[")):
        return "it is a JSON file, such as a configuration or a server's answer. Give the file of weights."
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if all(each.isprintable() or each.isspace() for each in text):
        return f"it is text, beginning with '{text.strip()[:40].splitlines()[0] if text.strip() else ''}'. {_AGAIN}"
    return None


def error_text(error: BaseException) -> str:
    """Return the first line of a foreign error, or only its type if that line gives unsuitable advice."""
    line = first_line(error)
    advice = (
        "weights_only",
        "torch.load",
        "trust",
        "http",
        "add_safe_globals",
        "pip install",
        "open an issue",
        "token",
    )
    return type(error).__name__ if any(each in line for each in advice) else line[:200]
