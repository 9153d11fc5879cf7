"""The SDK: importing it, its data types, a model's inputs and outputs, and the cards."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .calls import checked, invoke, made_list
from .errors import DriverError
from .values import DATA_TYPES, Array, Fields


def load_sdk() -> Any:
    """Import ``magicmind.python.runtime``, usually called ``mm`` (api 1)."""
    try:
        from magicmind.python import runtime
    except Exception as error:  # a missing shared library raises ImportError, a broken one any type
        raise DriverError(
            "import magicmind.python.runtime", f"{type(error).__name__}: {error}", kind="import"
        ) from error
    return runtime


def is_emulated(sdk: Any) -> bool:
    """Return whether this is clipmlu's emulated SDK, which has a mark."""
    return bool(getattr(sdk, "EMULATED", False))


def parser_module() -> Any:
    """Import the module of the parser in some samples (MC framework_parser.py); others use the runtime's parser."""
    return importlib.import_module("magicmind.python.runtime.parser")


def data_type_of(sdk: Any, name: str) -> Any:
    """Return the member of DataType with this name, its own or NumPy's."""
    known = {numpy_name: member for member, numpy_name in DATA_TYPES.items()}
    member = known.get(name, name)
    if member not in DATA_TYPES or not hasattr(sdk.DataType, member):
        raise DriverError("DataType", f"there is no type '{name}'; known: {', '.join(DATA_TYPES)}", kind="spec")
    return getattr(sdk.DataType, member)


def dtype_of(sdk: Any, data_type: Any) -> str:
    """Return NumPy's name of a DataType; by comparison, because it is not known how members convert (api 7.18)."""
    for member, name in DATA_TYPES.items():
        if getattr(sdk.DataType, member, None) == data_type:
            return name
    raise DriverError("DataType", f"{data_type} has no NumPy type", kind="unexpected")


def describe_ports(sdk: Any, model: Any) -> Fields:
    """Return shapes and types of a model's inputs and outputs, as it reports them; -1 is a dynamic axis."""
    facts = {}
    for side in ("input", "output"):
        dims = made_list(f"get_{side}_dimensions", getattr(model, f"get_{side}_dimensions"))
        types = made_list(f"get_{side}_data_types", getattr(model, f"get_{side}_data_types"))
        if len(dims) != len(types):
            raise DriverError("describe_ports", f"{len(dims)} {side} shapes and {len(types)} types", kind="unexpected")
        facts[f"{side}s"] = [
            {"shape": [int(size) for size in shape.GetDims()], "dtype": dtype_of(sdk, kind)}
            for shape, kind in zip(dims, types)
        ]
    return facts


class Cards:
    """The cards of this process; a card is made active in the calling thread before each use.

    It is not known whether ``active()`` applies to the thread or the process (api 7.15); C++ code sets it per thread.
    """

    def __init__(self, sdk: Any) -> None:
        self._sdk = sdk
        self._devices: dict[int, Any] = {}
        self._active: int | None = None

    def count(self) -> int:
        """Return the number of cards that this process sees."""
        with self._sdk.System() as entered:  # the sample uses the object itself, not the value of the with statement
            system = entered if hasattr(entered, "device_count") else self._sdk.System()
            return int(invoke("device_count", system.device_count))

    def use(self, index: int) -> Any:
        """Return a card after making it active in this thread."""
        if index not in self._devices:
            count = self.count()
            if not 0 <= index < count:
                raise DriverError("Device", f"there is no card {index}; this process sees {count}", kind="device")
            device = invoke("Device", self._sdk.Device)
            device.id = index
            self._devices[index] = device
        device = self._devices[index]
        if self._active != index:
            self._active = None
            checked(f"active of card {index}", device.active)
            self._active = index
        return device

    def forget(self) -> None:
        """Release the devices."""
        self._devices.clear()
        self._active = None


def narrowed(values: Array, call: str) -> Array:
    """Return int64 as int32; values that do not fit are refused, because the SDK's behaviour is not known (api 7.2)."""
    limits = np.iinfo(np.int32)
    if values.size and (values.min() < limits.min or values.max() > limits.max):
        raise DriverError(call, f"values {values.min()}..{values.max()} do not fit INT32", kind="shape")
    return values.astype(np.int32)


def describe_host(sdk: Callable[[], tuple[Any, Cards]]) -> Fields:
    """Describe this machine: interpreter, system, SDK and cards; a missing SDK is reported, not raised."""
    facts: Fields = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "executable": sys.executable,
        "sdk": None,
        "emulated": False,
        "cards": None,
        "problem": None,
    }
    try:
        runtime, cards = sdk()
        package = sys.modules.get("magicmind") or runtime
        facts["emulated"] = is_emulated(runtime)
        version = getattr(package, "__version__", None) or getattr(runtime, "__version__", None)
        facts["sdk"] = {
            "path": str(getattr(package, "__file__", "")),
            "version": None if version is None else str(version),
        }
        facts["cards"] = cards.count()
    except DriverError as error:
        facts["problem"] = str(error)
    return facts
