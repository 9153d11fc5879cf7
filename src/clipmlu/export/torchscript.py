"""Reading a TorchScript archive: the values of its modules and which activation its code names; the code is never run or compiled.

The archive is a ZIP file (torch/csrc/jit/serialization of PyTorch): ``data.pkl`` is a pickle of the module tree, whose classes
are those of the archive's own code, ``data/N`` the bytes of one storage each, ``constants.pkl`` and ``constants/N`` the same for
constants, ``code/`` Python text. Here the pickle may only make dictionaries and descriptions of tensors.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clipmlu.export.filetypes import error_text, unusable_weights
from clipmlu.export.nested import nested_values
from clipmlu.export.options import PURPOSE
from clipmlu.host import require

SCRIPT_ACTIVATION = "code.activation"
"""Name of the fact that says which activation the code calls: ``quick_gelu`` or ``gelu``."""

_AGAIN = "Download or copy it again, and compare its size with the original's."
_MOST_CODE_BYTES = 64 << 20
_MOST_REPEATED = 1 << 28  # values of a tensor that its storage holds once: more than any weight has
_STORING = ("PUT", "BINPUT", "LONG_BINPUT")
_DTYPES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
"""Names of storages in the pickle, without ``Storage``, and torch's dtypes."""


class _UnusableError(pickle.UnpicklingError):
    """The archive is whole, and holds what cannot be used; the text is the reason, in sentences."""


class _Attributes(dict[str, Any]):
    """The attributes of an object whose class is in the archive's code."""

    def __init__(self, *_arguments: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, Mapping):
            self.update(state)


class _StoredTensor(NamedTuple):
    """A tensor as the pickle describes it; the values are what the file says, of any type."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


def read_script(path: Path) -> dict[str, Any]:
    """Read the values of all modules of a TorchScript archive.

    Args:
        path: a file that ``identify_weights`` calls ``script``.

    Returns:
        Tensors, numbers, booleans and strings by their dotted names, as in ``state_dict()``, and ``SCRIPT_ACTIVATION`` if the
        code tells.

    Raises:
        ExportError: the archive is damaged, its weights are quantised, or its pickle holds an object that no weights need.
    """
    torch = require("torch", "export", PURPOSE)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_values(archive, torch)
    except _UnusableError as error:
        raise unusable_weights(path, str(error)) from error
    except Exception as error:  # BadZipFile, UnpicklingError, KeyError, RuntimeError, ...: damage can raise anything
        raise unusable_weights(
            path, f"it is a TorchScript archive that is damaged: {error_text(error)}. {_AGAIN}"
        ) from error


def _read_values(archive: zipfile.ZipFile, torch: Any) -> dict[str, Any]:
    root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).rpartition("/")[0]
    values = _flatten(_load_pickle(archive.read(f"{root}/data.pkl")))
    make_tensor = _tensor_maker(archive, root, torch)
    read = {name: make_tensor(each) if isinstance(each, _StoredTensor) else each for name, each in values.items()}
    activation = _activation_of_code(archive, root)
    return read | ({SCRIPT_ACTIVATION: activation} if activation else {})


def _load_pickle(content: bytes) -> Any:
    """Return the tree of modules; a number of a stored object is checked first, since Python makes room for all below it."""
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in _STORING and isinstance(argument, int) and argument > len(content):
            raise pickle.UnpicklingError(f"it stores an object under the number {argument}")
    return _Unpickler(io.BytesIO(content)).load()


class _Unpickler(pickle.Unpickler):
    """Makes dictionaries, plain values and ``_StoredTensor``; each other object is refused by its name."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Attributes
        if module == "torch" and name.endswith("Storage"):
            return name.removesuffix("Storage")
        if module == "torch.jit._pickle":  # types of lists and dictionaries
            return lambda value, *_types: value
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_qtensor")):
            return lambda storage, offset, size, stride, *_rest: _StoredTensor(storage, offset, size, stride)
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" or (module, name) == ("builtins", "complex"):  # devices, schemes of quantisation
            return lambda *_arguments: None
        raise _UnusableError(
            f"its data hold the Python object '{module}.{name}', which no weights need; making it could run any code."
        )

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _flatten(module: Any) -> dict[str, Any]:
    """Return the values of a tree of modules by their dotted names."""
    if not isinstance(module, Mapping):
        raise pickle.UnpicklingError("there is no module in it")
    return {prefix + key: value for prefix, key, value in nested_values(module)}


def _tensor_maker(archive: zipfile.ZipFile, root: str, torch: Any) -> Callable[[_StoredTensor], Any]:
    """Return a function that makes a torch tensor of its description; storages are read once."""
    storages: dict[str, Any] = {}

    def make_tensor(stored: _StoredTensor) -> Any:
        _, kind, key, _, count = stored.storage
        if kind not in _DTYPES:
            raise _UnusableError(
                f"its tensors hold {kind}; expected float weights. Quantised ones cannot be used: give the float weights, "
                "and quantise with clipmlu compile."
            )
        name = f"{root}/{key}" if "/" in key else f"{root}/data/{key}"
        if name not in storages:
            content = bytearray(archive.read(name))
            dtype = getattr(torch, _DTYPES[kind])
            if len(content) != count * dtype.itemsize:
                raise ValueError(f"'{name}' has {len(content):,} bytes instead of {count * dtype.itemsize:,}")
            storages[name] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        tensor = torch.as_strided(storages[name], stored.size, stored.stride, stored.offset)
        if tensor.numel() > max(count, _MOST_REPEATED):
            raise ValueError(f"'{name}' has {count:,} values, and a tensor repeats them to {tensor.numel():,}")
        return tensor

    return make_tensor


def _activation_of_code(archive: zipfile.ZipFile, root: str) -> str | None:
    """Return which activation the code calls, read as text; None if it calls neither or both.

    QuickGELU is written with ``torch.sigmoid``; the towers of OpenAI's architectures call it nowhere else.
    """
    files = [
        each
        for each in archive.infolist()
        if each.filename.startswith(f"{root}/code/") and each.filename.endswith(".py")
    ]
    if sum(each.file_size for each in files) > _MOST_CODE_BYTES:
        return None
    code = b"\n".join(archive.read(each) for each in files)
    gelu, sigmoid = b"torch.gelu(" in code, b"torch.sigmoid(" in code
    return None if gelu == sigmoid else "gelu" if gelu else "quick_gelu"
