"""Serialised models: recognised, checked, and bound to an architecture (magicmind-api.md 2.11, 7.13)."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from clipmlu.magicmind.emulator import MAGIC, is_emulated_model
from clipmlu.magicmind.emulator.container import read_container
from mlu.emulator.calls import build, calibrate, configure, linear, parse, precision

W = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def saved(mm: ModuleType, tmp_path: Path) -> Path:
    model = build(mm, parse(mm, linear(tmp_path / "m.onnx", W)), configure(mm, {"archs": [{"mtp_372": [6, 8]}]}))
    assert model.serialize_to_file(str(tmp_path / "model")).ok()
    return tmp_path / "model"


def _load(mm: ModuleType, path: Path) -> Any:
    return mm.Model().deserialize_from_file(str(path))


def test_a_file_says_what_it_is(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    assert content.startswith(MAGIC)
    assert b'"emulated": true' in content
    assert is_emulated_model(saved)
    assert not is_emulated_model(tmp_path / "m.onnx")
    assert not is_emulated_model(tmp_path / "nothing")


def test_building_twice_gives_the_same_bytes(mm: ModuleType, saved: Path, tmp_path: Path) -> None:
    model = build(mm, parse(mm, tmp_path / "m.onnx"), configure(mm, {"archs": [{"mtp_372": [6, 8]}]}))
    assert model.serialize_to_file(str(tmp_path / "again")).ok()
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("position", [len(MAGIC) + 10, len(MAGIC) + 60, -1])
def test_altered_files_are_refused(mm: ModuleType, mode: str, saved: Path, position: int) -> None:
    content = bytearray(saved.read_bytes())
    content[position] ^= 1
    saved.write_bytes(content)
    assert "damaged" in str(_load(mm, saved))


def test_foreign_missing_short_and_newer_files_are_refused(
    mm: ModuleType, mode: str, saved: Path, tmp_path: Path
) -> None:
    assert "was not written by the emulated" in str(_load(mm, tmp_path / "m.onnx"))
    assert "there is no model file" in str(_load(mm, tmp_path / "nothing"))
    content = saved.read_bytes()
    saved.write_bytes(content[: len(MAGIC) + 8])
    assert "cut short" in str(_load(mm, saved))
    saved.write_bytes(MAGIC + b"\x09" + content[len(MAGIC) + 1 :])
    assert "format version 9" in str(_load(mm, saved))


def test_a_failed_read_leaves_no_engine(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    model = mm.Model()
    assert not model.deserialize_from_file(str(tmp_path / "nothing")).ok()
    assert model.create_i_engine() is None
    assert model.get_input_num() == 0
    assert not model.serialize_to_file(str(tmp_path / "x")).ok()


def test_writing_where_nothing_can_be_written(mm: ModuleType, saved: Path, tmp_path: Path) -> None:
    model = mm.Model()
    assert model.deserialize_from_file(str(saved)).ok()
    assert "cannot write" in str(model.serialize_to_file(str(tmp_path / "no" / "such" / "folder")))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [("ARCH", "mtp_592", "built for mtp_372; device 0 is mtp_592"), ("CLUSTERS", "4", "built for [6, 8] clusters")],
)
def test_another_card_refuses_the_model(
    mm: ModuleType,
    mode: str,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(f"CLIPMLU_EMULATOR_{variable}", value)
    model = mm.Model()
    assert model.deserialize_from_file(str(saved)).ok()
    assert model.create_i_engine() is None
    assert message in capfd.readouterr().err


def test_the_header_lists_every_quantised_tensor(mm: ModuleType, tmp_path: Path) -> None:
    network, config = parse(mm, linear(tmp_path / "m.onnx", W)), configure(mm, precision("qint8_mixed_float32"))
    assert calibrate(mm, network, config, [np.ones((2, 3), np.float32) * 127]).ok()
    facts = build(mm, network, config)._info.quantisation
    assert set(facts) == {"x", "w"}
    assert (facts["x"].scale, facts["x"].bits, facts["x"].maximum) == ((1.0,), 8, 127.0)


def _rewrite(path: Path, change: Callable[[dict[str, Any]], Any], graph: bytes | None = None) -> None:
    """Another header, or another graph, with the digest that it needs."""
    header, content = read_container(path)
    text = json.dumps(change(header)).encode()
    body = struct.pack("<Q", len(text)) + text + (content if graph is None else graph)
    path.write_bytes(MAGIC + struct.pack("<I", 1) + hashlib.sha256(body).digest() + body)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: [header],
        lambda header: {},
        lambda header: {**header, "inputs": 1},
        lambda header: {**header, "inputs": [1]},
        lambda header: {
            **header,
            "inputs": [{"name": "x", "dtype": "FLOAT32", "dims": 1, "minimum": None, "maximum": None}],
        },
        lambda header: {
            **header,
            "outputs": [{"name": "x", "dtype": "QUAD", "dims": [], "minimum": None, "maximum": None}],
        },
        lambda header: {**header, "quantisation": {"x": {}}},
    ],
)
def test_header_of_other_shapes_is_a_status(mm: ModuleType, saved: Path, change: Any) -> None:
    _rewrite(saved, change)
    assert str(saved) in str(_load(mm, saved))
    assert not _load(mm, saved).ok()


def test_deep_header_is_a_status(mm: ModuleType, saved: Path) -> None:
    body = struct.pack("<Q", 100_005) + b'{"a":' + b"[" * 100_000
    saved.write_bytes(MAGIC + struct.pack("<I", 1) + hashlib.sha256(body).digest() + body)
    assert "nested too deeply" in str(_load(mm, saved))


def test_control_flow_in_a_model_file_is_a_status(mm: ModuleType, saved: Path) -> None:
    inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [])])
    node = helper.make_node("If", ["x"], ["y"], name="branch", then_branch=inner, else_branch=inner)
    graph = helper.make_model(helper.make_graph([node], "g", [], []))
    _rewrite(saved, lambda header: header, graph.SerializeToString())
    assert "node 'branch' (If) contains a subgraph" in str(_load(mm, saved))
