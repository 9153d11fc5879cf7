"""``clipmlu emulate --compat``: names that old scripts use, and the hint for scripts that lack them."""

from __future__ import annotations

import ast
import collections
import collections.abc
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest

from clipmlu.magicmind.emulator.program import compat_path, program_environment
from conftest import REPOSITORY

OLD_SCRIPT = """
import collections, time
import numpy as np
from PIL import Image, ImageDraw, ImageFont
import distutils.util
print(np.float(1.5), np.int(2.5), np.object, np.str, np.zeros(2, np.float_).dtype, np.product([2, 3]))
print(Image.new("RGB", (4, 4)).resize((2, 2), Image.ANTIALIAS).size, Image.LINEAR == Image.BILINEAR)
draw, font = ImageDraw.Draw(Image.new("L", (50, 50))), ImageFont.load_default()
print(all(side > 0 for side in (*draw.textsize("text"), *font.getsize("text"))))
print(issubclass(dict, collections.Mapping), time.clock() <= time.clock(), bool(distutils.util.strtobool("true")))
print(np.__spec__.loader.is_package("numpy"))
"""


@pytest.fixture(scope="module")
def names() -> Any:
    """The module, loaded under another name, so that it changes nothing here."""
    spec = importlib.util.spec_from_file_location("names_of_old_scripts", compat_path() / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(script: str, folder: Path, *, compat: bool) -> subprocess.CompletedProcess[str]:
    with program_environment({"PYTHONPATH": str(folder), "PATH": "/usr/bin"}, compat=compat) as environment:
        command = [sys.executable, "-W", "error", "-W", "ignore:The distutils", "-c", script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_old_script_runs_with_the_names_that_were_removed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('the own one')")
    done = _run(OLD_SCRIPT, tmp_path, compat=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "the own one",
        "1.5 2 <class 'object'> <class 'str'> float64 6",
        "(2, 2) True",
        "True",
        "True True True",
        "True",
    ]


def test_a_script_without_them_ends_as_before_and_is_told_of_the_option(tmp_path: Path) -> None:
    done = _run("import numpy as np\nnp.float(1)", tmp_path, compat=False)
    assert done.returncode == 1
    *traceback, hint = done.stderr.splitlines()
    assert any(line.startswith("AttributeError: module 'numpy' has no attribute 'float'") for line in traceback)
    assert hint == (
        "clipmlu: The script needs numpy.float, which newer versions of NumPy lack. Run it with such names added: "
        "clipmlu emulate --compat -- COMMAND"
    )


@pytest.mark.parametrize("own", ["import numpy, PIL.Image", "raise RuntimeError('broken')"])
def test_the_own_sitecustomize_may_import_the_libraries_or_fail(tmp_path: Path, own: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(own)
    done = _run("import numpy, PIL.Image; print(numpy.float, PIL.Image.ANTIALIAS)", tmp_path, compat=True)
    assert done.stdout == "<class 'float'> 1\n"
    assert ("RuntimeError: broken" in done.stderr) == ("broken" in own)


def test_an_error_in_a_thread_names_the_option_too(tmp_path: Path) -> None:
    script = "import threading, time\nthreading.Thread(target=lambda: time.clock()).start()"
    assert "clipmlu: The script needs time.clock, which" in _run(script, tmp_path, compat=False).stderr


def _error(make: Any) -> BaseException:
    try:
        make()
    except Exception as error:  # each script below fails with its own
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: np.int, "numpy.int, which newer versions of NumPy lack"),  # type: ignore[attr-defined]
        (lambda: np.float_, "numpy.float_, which"),
        (lambda: np.product, "numpy.product, which"),  # type: ignore[attr-defined]
        (lambda: PIL.Image.ANTIALIAS, "PIL.Image.ANTIALIAS, which Pillow 10 removed"),  # type: ignore[attr-defined]
        (lambda: PIL.ImageDraw.Draw(PIL.Image.new("L", (2, 2))).textsize("a"), "ImageDraw.textsize, which Pillow"),  # type: ignore[attr-defined]
        (lambda: collections.Mapping, "collections.Mapping, which newer versions of Python lack"),  # type: ignore[attr-defined]
        (lambda: time.clock, "time.clock, which"),  # type: ignore[attr-defined]
        (lambda: exec("from numpy import float_"), "numpy.float_, which"),
        (lambda: exec("from PIL.Image import ANTIALIAS"), "PIL.Image.ANTIALIAS, which Pillow 10 removed"),
        (lambda: exec("from collections import Iterable"), "collections.Iterable, which newer versions of Python"),
        (lambda: exec("from collections import nothing"), ""),
        (lambda: np.nothing, ""),  # type: ignore[attr-defined]
        (lambda: SimpleNamespace().float, ""),
        (lambda: {}["numpy.float"], ""),
    ],
)
def test_the_hint_is_for_removed_names_only(names: Any, make: Any, named: str) -> None:
    hint = names.hint_for(_error(make))
    assert bool(hint) == bool(named)
    assert named in hint
    missing = ModuleNotFoundError("No module named 'distutils'", name="distutils")
    assert "the module distutils" in names.hint_for(missing)
    assert names.hint_for(ModuleNotFoundError("No module named 'clip'", name="clip")) == ""


def test_the_module_is_valid_in_the_python_of_the_sdk() -> None:
    """A script may start another interpreter than the one of clipmlu."""
    for path in compat_path().rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 7))


def test_names_that_a_library_has_are_left_alone(names: Any) -> None:
    library = ModuleType("numpy")
    for name in ("inf", "nan", "float64", "prod", "isin", "bool_"):
        setattr(library, name, getattr(np, name))
    library.bool = np.bool_  # type: ignore[attr-defined]
    library.in1d = "own"  # type: ignore[attr-defined]
    names.add_to_numpy(library)
    added: Any = library
    assert (added.bool, added.in1d, added.int, added.NINF, added.bool8) == (np.bool_, "own", int, -np.inf, np.bool_)
    assert not hasattr(library, "trapz"), "what it would stand for is not there"
    np.testing.assert_array_equal(added.asscalar(np.array([7])), 7)


def test_sizes_of_texts_are_those_of_their_boxes(names: Any) -> None:
    class Font:
        def getbbox(self, text: str, *_more: Any) -> tuple[float, ...]:
            return 1, 2, 10.0 * len(text), 12

    names.add_to_fonts(SimpleNamespace(FreeTypeFont=Font, ImageFont=type("ImageFont", (Font,), {})))
    made: Any = Font()
    assert made.getsize("abc") == (30, 12)


def test_the_module_for_newer_pythons_has_the_function_of_the_old_one() -> None:
    spec = importlib.util.spec_from_file_location("old_util", compat_path() / "last" / "distutils" / "util.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [module.strtobool(word) for word in ("true", "Yes", "0", "off")] == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="invalid truth value 'maybe'"):
        module.strtobool("maybe")
    assert REPOSITORY in compat_path().parents
