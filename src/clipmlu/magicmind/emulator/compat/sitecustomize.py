"""Loaded by every Python interpreter under ``clipmlu emulate``: names that old scripts use, or a hint that they are gone.

The public scripts for the SDK were written for Python 3.7, NumPy before 1.24 and Pillow before 10. With ``--compat`` this
module adds what was removed since then. Without, it adds nothing, and names the option if a script ends with such an error.
Standard library only, and valid Python 3.7: the interpreter may be any that a script starts, and need not have clipmlu. NumPy and
Pillow are changed only when a script imports them.
"""

from __future__ import annotations

import collections
import collections.abc
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import threading
import time
from types import ModuleType, TracebackType
from typing import Any, Callable, Sequence

VARIABLE = "CLIPMLU_EMULATOR_COMPAT"
HERE = os.path.dirname(os.path.abspath(__file__))
LAST = os.path.join(HERE, "last")
"""Folder of modules that newer versions of Python lack; it is the last one on the path."""

PYTHON_TYPES = {name: kind for kind in (bool, int, float, complex, object, str) for name in (kind.__name__,)}
"""Aliases that NumPy 1.24 removed."""
NUMPY_NAMES = {
    "bool8": "bool_",
    "object0": "object_",
    "int0": "intp",
    "uint0": "uintp",
    "str0": "str_",
    "bytes0": "bytes_",
    "float_": "float64",
    "complex_": "complex128",
    "cfloat": "complex128",
    "singlecomplex": "complex64",
    "longfloat": "longdouble",
    "longcomplex": "clongdouble",
    "clongfloat": "clongdouble",
    "string_": "bytes_",
    "unicode_": "str_",
    "Inf": "inf",
    "Infinity": "inf",
    "infty": "inf",
    "PINF": "inf",
    "NaN": "nan",
    "product": "prod",
    "cumproduct": "cumprod",
    "sometrue": "any",
    "alltrue": "all",
    "round_": "round",
    "row_stack": "vstack",
    "mat": "asmatrix",
    "in1d": "isin",
    "trapz": "trapezoid",
}
"""Names that NumPy 1.24 to 2.4 removed, and what they stand for."""
NUMPY_OTHERS = ("unicode", "long", "NINF", "PZERO", "NZERO", "asscalar", "asfarray", "msort")
"""More of them, which stand for something else."""
PILLOW_CONSTANTS = {"ANTIALIAS": "LANCZOS", "LINEAR": "BILINEAR", "CUBIC": "BICUBIC"}
"""Constants that Pillow 10 removed from ``PIL.Image``."""
PILLOW_METHODS = {
    "ImageDraw": ("textsize", "multiline_textsize"),
    "FreeTypeFont": ("getsize",),
    "ImageFont": ("getsize",),
}
"""Methods that Pillow 10 removed, by class."""
ABSTRACT_CLASSES = (
    "Callable", "Container", "Hashable", "ItemsView", "Iterable", "Iterator", "KeysView", "Mapping", "MappingView",
    "MutableMapping", "MutableSequence", "MutableSet", "Sequence", "Set", "Sized", "ValuesView",
)  # fmt: skip
"""Classes that Python 3.10 removed from ``collections``."""

_LACKS = re.compile(r"(?:module '(?P<module>[\w.]+)'|'(?P<kind>\w+)' object) has no attribute '(?P<name>\w+)'")
_NOT_IN = re.compile(r"cannot import name '(?P<name>\w+)' from '(?P<module>[\w.]+)'")
_REMOVED = re.compile(r"`np\.(?P<name>\w+)` was removed in")  # the words of NumPy 2
Hook = Callable[[Any], None]


def add_to_python() -> None:
    """Add what Python 3.8 to 3.12 removed from the standard library."""
    for name in ABSTRACT_CLASSES:
        _add(collections, name, getattr(collections.abc, name))
    _add(time, "clock", time.perf_counter)
    sys.path.append(LAST)


def add_to_numpy(numpy: Any) -> None:
    """Add the names that NumPy 1.24 to 2.4 removed."""
    for name, kind in {**PYTHON_TYPES, "unicode": str, "long": int}.items():
        _add(numpy, name, kind)
    for name, meaning in NUMPY_NAMES.items():
        if hasattr(numpy, meaning):
            _add(numpy, name, getattr(numpy, meaning))
    for name, number in {"NINF": -numpy.inf, "PZERO": 0.0, "NZERO": -0.0}.items():
        _add(numpy, name, number)
    _add(numpy, "asscalar", lambda array: array.item())
    _add(numpy, "asfarray", lambda array, dtype=float: numpy.asarray(array, dtype=dtype))
    _add(numpy, "msort", lambda array: numpy.sort(array, axis=0))


def add_to_images(image: Any) -> None:
    """Add the constants that Pillow 10 removed from ``PIL.Image``."""
    for name, meaning in PILLOW_CONSTANTS.items():
        _add(image, name, getattr(image.Resampling, meaning))


def add_to_draw(draw: Any) -> None:
    """Add ``textsize``, which Pillow 10 removed."""

    def textsize(self: Any, text: str, font: Any = None, **options: Any) -> tuple[int, int]:
        left, top, right, bottom = self.textbbox((0, 0), text, font, **options)
        return int(right - left), int(bottom - top)

    _add(draw.ImageDraw, "textsize", textsize)
    _add(draw.ImageDraw, "multiline_textsize", textsize)


def add_to_fonts(fonts: Any) -> None:
    """Add ``getsize``, which Pillow 10 removed: width to the right end, and height to the lower end, of the text."""

    def getsize(self: Any, text: str, *more: Any, **options: Any) -> tuple[int, int]:
        _left, _top, right, bottom = self.getbbox(text, *more, **options)
        return int(right), int(bottom)

    _add(fonts.FreeTypeFont, "getsize", getsize)
    _add(fonts.ImageFont, "getsize", getsize)


HOOKS: dict[str, Hook] = {
    "numpy": add_to_numpy,
    "PIL.Image": add_to_images,
    "PIL.ImageDraw": add_to_draw,
    "PIL.ImageFont": add_to_fonts,
}
"""Maps a module to what is called with it when it has been imported."""


class AfterImport(importlib.abc.MetaPathFinder):
    """Finds the modules of ``HOOKS`` as the other finders do, and calls their hooks when they are loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module that has a hook; None for others."""
        if name not in HOOKS:
            return None
        for finder in sys.meta_path:
            found = None if finder is self else finder.find_spec(name, path, target)
            if found is not None and found.loader is not None:
                found.loader = _Hooked(found.loader, HOOKS[name])
                return found
        return None


class _Hooked(importlib.abc.Loader):
    """Loads a module with its own loader, gives it that loader back, and calls the hook."""

    def __init__(self, loader: Any, hook: Hook) -> None:
        self._loader = loader
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, and then the hook."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._hook(module)


def hint_for(error: BaseException) -> str:
    """Return a line that names ``--compat``, if an error is about a name that it adds; else an empty text."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "distutils":
        missing = "the module distutils, which Python 3.12 removed"
    else:
        missing = _removed_name(str(error)) if isinstance(error, (AttributeError, ImportError)) else ""
    if not missing:
        return ""
    return f"clipmlu: The script needs {missing}. Run it with such names added: clipmlu emulate --compat -- COMMAND"


def _removed_name(message: str) -> str:
    searches = (pattern.search(message) for pattern in (_REMOVED, _NOT_IN, _LACKS))
    found = next((match.groupdict() for match in searches if match is not None), None)
    if found is None:
        return ""
    module, kind, name = found.get("module", "numpy"), found.get("kind"), found["name"]
    if module == "numpy" and name in (*PYTHON_TYPES, *NUMPY_NAMES, *NUMPY_OTHERS):
        return f"numpy.{name}, which newer versions of NumPy lack"
    if (module == "PIL.Image" and name in PILLOW_CONSTANTS) or name in PILLOW_METHODS.get(kind or "", ()):
        return f"{module or kind}.{name}, which Pillow 10 removed"
    if (module == "collections" and name in ABSTRACT_CLASSES) or (module, name) == ("time", "clock"):
        return f"{module}.{name}, which newer versions of Python lack"
    return ""


def _add(place: Any, name: str, value: Any) -> None:
    if name not in vars(place):  # not hasattr: NumPy's own answers warn
        setattr(place, name, value)


def _show_hint_after(before: Callable[..., Any]) -> Callable[..., None]:
    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        _write_hint(error)

    return excepthook


def _show_hint_after_thread(before: Callable[..., Any]) -> Callable[..., None]:
    def excepthook(failure: Any) -> None:
        before(failure)
        _write_hint(failure.exc_value)

    return excepthook


def _write_hint(error: BaseException) -> None:
    hint = hint_for(error)
    if hint and sys.stderr is not None:
        sys.stderr.write(f"{hint}\n")


def _run_other_sitecustomize() -> None:
    """Run the module that this one hides, such as that of a distribution."""
    places = [place for place in sys.path if os.path.abspath(place) != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", places)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    if os.environ.get(VARIABLE) == "1":
        add_to_python()
        sys.meta_path.insert(0, AfterImport())
        for _name in HOOKS.keys() & sys.modules.keys():  # a .pth file may have imported it
            HOOKS[_name](sys.modules[_name])
    else:
        sys.excepthook = _show_hint_after(sys.excepthook)
        if hasattr(threading, "excepthook"):  # since Python 3.8
            threading.excepthook = _show_hint_after_thread(threading.excepthook)
    _run_other_sitecustomize()  # last: it may import these modules, or fail
