"""The driver is for Python 3.7: its syntax, its imports, and the functions that it calls; and it runs there."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.errors import SessionError
from clipmlu.magicmind.archive import package_files
from clipmlu.magicmind.client.peer import OpenRequest
from clipmlu.magicmind.client.program import PACKAGE, worker_digest, write_worker
from clipmlu.magicmind.client.worker_client import WorkerClient
from mlu.small import tower

SOURCES = {path: content.decode() for path, content in package_files("clipmlu.magicmind.driver", PACKAGE).items()}
SOURCE = SOURCES["clipmlu_worker/command.py"]
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
ALLOWED = frozenset(
    [
        *("__future__", "argparse", "array", "collections", "collections.abc", "contextlib", "ctypes", "difflib"),
        *(
            "faulthandler",
            "functools",
            "hashlib",
            "hmac",
            "importlib",
            "json",
            "mmap",
            "os",
            "platform",
            "re",
            "select",
        ),
        *("errno", "fcntl", "stat"),
        *("shutil", "signal", "socket", "struct", "subprocess", "sys", "tempfile", "threading", "time", "traceback"),
        *("typing", "numpy", "magicmind.python"),
    ]
)
"""Modules of Python 3.7's standard library that the driver needs, NumPy, and the SDK."""

NEWER = {
    "ast": {"unparse"},
    "asyncio": {"to_thread", "TaskGroup", "timeout"},
    "contextlib": {"aclosing", "chdir"},
    "datetime": {"UTC"},
    "functools": {"cache", "cached_property", "singledispatchmethod"},
    "hashlib": {"file_digest"},
    "importlib": {"metadata", "resources"},
    "itertools": {"pairwise", "batched"},
    "math": {"prod", "comb", "perm", "dist", "isqrt", "lcm", "nextafter", "ulp"},
    "multiprocessing": {"shared_memory"},
    "os": {"memfd_create", "pidfd_open", "waitstatus_to_exitcode", "add_dll_directory", "posix_spawnp"},
    "select": {"POLLRDHUP"},
    "shlex": {"join"},
    "signal": {"raise_signal", "strsignal", "valid_signals"},
    "socket": {"create_server", "has_dualstack_ipv6", "send_fds", "recv_fds"},
    "statistics": {"fmean", "quantiles"},
    "sys": {"orig_argv", "stdlib_module_names", "unraisablehook"},
    "threading": {"excepthook", "get_native_id"},
    "typing": {"Protocol", "Literal", "Final", "TypedDict", "Annotated", "ParamSpec", "Self", "TypeAlias", "final"},
}
"""Module -> names that came after Python 3.7 (POLLRDHUP: absent from the 3.7 that was looked at)."""
NEWER_METHODS = frozenset({"removeprefix", "removesuffix", "bit_count", "is_relative_to", "with_stem", "readlink"})
NEWER_KEYWORDS = {
    "Popen": {"user", "group", "umask", "pipesize", "process_group"},
    "copytree": {"dirs_exist_ok"},
    "dataclass": {"kw_only", "slots", "match_args"},
    "hex": {"sep"},
    "rmtree": {"onexc"},
    "shutdown": {"cancel_futures"},
    "sum": {"start"},
    "unlink": {"missing_ok"},
    "zip": {"strict"},
}
BUILTIN_GENERICS = frozenset({"dict", "list", "tuple", "set", "frozenset", "type"})


def newer_than_37(source: str) -> list[str]:
    """What in a source Python 3.7 does not have; annotations are not evaluated there and do not count."""
    tree = ast.parse(source, feature_version=(3, 7))
    _strip_annotations(tree)
    dicts = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Dict, ast.DictComp))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return [finding for node in ast.walk(tree) for finding in _findings(node, dicts)]


def _strip_annotations(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None


def _findings(node: ast.AST, dicts: set[str]) -> list[str]:
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.attr in NEWER.get(node.value.id, ()):
            return [f"{node.value.id}.{node.attr}"]
        return [f".{node.attr}"] if node.attr in NEWER_METHODS else []
    if isinstance(node, ast.ImportFrom):
        newer = NEWER.get(node.module or "", set())
        return [f"{node.module}.{alias.name}" for alias in node.names if alias.name in newer]
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return [f"{name}({key.arg}=)" for key in node.keywords if key.arg in NEWER_KEYWORDS.get(name, ())]
    if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") in BUILTIN_GENERICS:
        return [f"{ast.unparse(node.value)}[...]"]
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.BitOr):
        sides = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.target, node.value]
        return ["dict | dict" for side in sides if isinstance(side, ast.Dict) or getattr(side, "id", "") in dicts][:1]
    return []


def imports(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


@every_source
def test_driver_is_valid_for_python_37_and_calls_nothing_newer(source: str) -> None:
    assert newer_than_37(source) == []


@every_source
def test_driver_imports_itself_the_standard_library_numpy_and_the_sdk_only(source: str) -> None:
    siblings = {path.removeprefix(f"{PACKAGE}/").removesuffix(".py") for path in SOURCES}
    assert imports(source) <= ALLOWED | {".", *(f".{name}" for name in siblings)}


def test_driver_imports_one_module_by_its_name() -> None:
    found = [line.strip() for source in SOURCES.values() for line in source.splitlines() if "import_module(" in line]
    assert found == ['return importlib.import_module("magicmind.python.runtime.parser")']


@pytest.mark.parametrize(
    ("planted", "named"),
    [
        ("import math\nmath.prod([1])", "math.prod"),
        ("from functools import cache", "functools.cache"),
        ("from typing import Protocol", "typing.Protocol"),
        ("from multiprocessing import shared_memory", "multiprocessing.shared_memory"),
        ("a = {}\nb = a | {}", "dict | dict"),
        ("a = {}\na |= {}", "dict | dict"),
        ("'x'.removeprefix('y')", ".removeprefix"),
        ("zip([], [], strict=True)", "zip(strict=)"),
        ("Fields = dict[str, int]", "dict[...]"),
        ("import select\nselect.POLLRDHUP", "select.POLLRDHUP"),
        ("import os\nos.memfd_create('x')", "os.memfd_create"),
    ],
)
def test_planted_newer_api_is_found(planted: str, named: str) -> None:
    assert named in newer_than_37(f"{SOURCE}\n{planted}\n")


@pytest.mark.parametrize(
    "planted",
    ["(x := 1)", "def f(a, /): pass", "match 1:\n    case 1: pass", "with (open('a'), open('b') as c): pass"],
)
def test_planted_newer_syntax_is_found(planted: str) -> None:
    with pytest.raises(SyntaxError):
        newer_than_37(f"{SOURCE}\n{planted}\n")


@pytest.mark.parametrize("planted", ["import clipmlu.errors", "from ..client import peer", "from .nothing import x"])
def test_planted_import_is_found(planted: str) -> None:
    with pytest.raises(AssertionError):
        test_driver_imports_itself_the_standard_library_numpy_and_the_sdk_only(f"{SOURCE}\n{planted}\n")


@every_source
def test_no_call_sits_in_an_assert(source: str) -> None:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            assert not [each for each in ast.walk(node.test) if isinstance(each, ast.Call)]


def test_real_python_37_runs_the_file(python37: str, tmp_path: Path) -> None:
    written = write_worker(tmp_path)
    done = subprocess.run([python37, str(written), "--info"], capture_output=True, text=True, timeout=60, check=True)
    facts = json.loads(done.stdout)
    assert facts["python"].startswith("3.7")
    assert facts["driver"] == worker_digest()
    assert "No module named 'magicmind'" in facts["problem"]


def test_real_python_37_serves_this_interpreter(python37: str, tmp_path: Path) -> None:
    """Greeting, shared memory, a session, batches in flight, a crash and the replay, with a stand-in for the SDK."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).with_name("stub_sdk"))}
    (tmp_path / "model").write_bytes(b"model")
    client = WorkerClient(WorkerOptions(python=python37, environment=environment, max_failures=2))
    try:
        opened = client.open_session(
            OpenRequest(model=tmp_path / "model", tower=tower(4, 4), ranges=(((1, 4), (9, 4)),))
        )
        batches = [np.full((2, 4), value, np.float32) for value in range(10)]
        pending = [client.submit(opened, [batch]) for batch in batches]
        for batch, future in zip(batches, pending, strict=True):
            np.testing.assert_array_equal(future.result()[0], 2 * batch)
        assert client._shares_memory
        with pytest.raises(SessionError, match=r"failed 2 times in a row.*killed by SIGKILL"):
            client.submit(opened, [np.full((1, 4), 666, np.float32)]).result()
        np.testing.assert_array_equal(client.submit(opened, [batches[3]]).result()[0], 2 * batches[3])
    finally:
        client.close()
