"""The driver on the emulated SDK in this process or in a worker, and what must not be left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from clipmlu.magicmind.backend import load_emulated_sdk
from clipmlu.magicmind.client.worker_client import WorkerClient
from clipmlu.magicmind.driver.building import build
from clipmlu.magicmind.driver.running import Runner
from clipmlu.magicmind.driver.sdk import Cards
from clipmlu.magicmind.emulator import faults
from mlu.small import OUT, RANGES, WEIGHT, WIDTH, children, worker_options, write_graph
from support import wait_until


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("CLIPMLU_EMULATOR_", "CLIPMLU_MLU_", "CLIPMLU_WORKER_")) or name == "MLU_VISIBLE_DEVICES":
            monkeypatch.delenv(name)
    faults.reset()
    yield
    faults.reset()


@pytest.fixture
def python37() -> str:
    """An interpreter of Python 3.7 that has NumPy."""
    python = os.environ.get("CLIPMLU_TEST_PYTHON37") or shutil.which("python3.7")
    if python is None:
        pytest.skip("no python3.7; set CLIPMLU_TEST_PYTHON37 to one that has NumPy")
    command = [python, "-c", "import sys, numpy; print(sys.version_info[:2])"]
    if subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() != "(3, 7)":
        pytest.skip(f"'{python}' is no Python 3.7 with NumPy; set CLIPMLU_TEST_PYTHON37")
    return python


@pytest.fixture(params=["strict", "lenient"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both readings of what is not known about the SDK."""
    monkeypatch.setenv("CLIPMLU_EMULATOR_MODE", request.param)
    return str(request.param)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """``y = relu(x) @ w``."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="blocks.0/Relu"),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="blocks.0/MatMul"),
    ]
    float32 = TensorProto.FLOAT
    return write_graph(
        tmp_path / "graph.onnx", nodes, [("x", float32, [2, WIDTH])], [("y", float32, [2, OUT])], {"w": WEIGHT}
    )


@pytest.fixture
def spec(graph: Path, tmp_path: Path) -> dict[str, Any]:
    """A build of ``graph`` that takes 1 to 16 rows."""
    return {
        "onnx": str(graph),
        "output": str(tmp_path / "graph.mm"),
        "precision": "force_float32",
        "archs": {"mtp_372": [2, 6, 8]},
        "mutable": True,
        "inputs": [{"shape": [4, WIDTH], "min": [1, WIDTH], "max": [16, WIDTH]}],
    }


@pytest.fixture
def sdk() -> Any:
    """The emulated runtime module."""
    return load_emulated_sdk()


@pytest.fixture
def cards(sdk: Any) -> Cards:
    return Cards(sdk)


@pytest.fixture
def model(sdk: Any, cards: Cards, spec: dict[str, Any]) -> Path:
    """The built file of ``spec``."""
    build(sdk, cards, spec)
    faults.reset()
    return Path(spec["output"])


@pytest.fixture
def open_runner(sdk: Any, cards: Cards, model: Path) -> Iterator[Callable[..., Runner]]:
    runners = []

    def open_one(**options: Any) -> Runner:
        runners.append(Runner(sdk, cards, str(model), **{"ranges": RANGES, **options}))
        return runners[-1]

    yield open_one
    for runner in runners:
        runner.close()


@pytest.fixture
def client_for(model: Path) -> Iterator[Callable[..., WorkerClient]]:
    """Makes clients, closes them, and checks that they leave no process behind."""
    clients = []
    before = children()

    def make(**changes: Any) -> WorkerClient:
        clients.append(WorkerClient(worker_options(**changes)))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    wait_until(lambda: not children() - before)
    assert children() == before
