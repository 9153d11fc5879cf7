"""Damaged graphs are one line that names the file, before any pass sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from clipmlu.compile.lowering import lower_tower
from clipmlu.errors import CompileError
from support import write_exported


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported(tmp_path_factory.mktemp("damaged") / "tiny").path / "image.onnx"


def _set(target: object, **fields: object) -> None:
    for name, value in fields.items():
        setattr(target, name, value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, 7), "bytes; its shape (7"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, -1), "has the shape (-1"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, 10**12), "bytes; its shape (1000000000000"),
        (lambda m: _set(m.graph.initializer[0], data_type=99), "99"),
        (lambda m: m.graph.initializer.__delitem__(0), "topologically sorted"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "nope"), "input 'nope'"),
        (lambda m: m.graph.node[0].input.__delitem__(slice(None)), "has input size 0"),
        (lambda m: m.graph.node.append(m.graph.node[0]), "multiple times"),
        (lambda m: m.graph.node[0].attribute.__delitem__(slice(None)), "Required attribute"),
        (lambda m: m.opset_import.__delitem__(slice(None)), "opset"),
        (lambda m: _set(m.graph.output[0], name="nope"), "nothing makes the output 'nope'"),
    ],
)
def test_damaged_graph_is_one_line(
    damage: Callable[[onnx.ModelProto], None],
    words: str,
    graph_file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = onnx.load(graph_file)
    damage(model)
    path = tmp_path / "image.onnx"
    onnx.save(model, path)
    with pytest.raises(CompileError) as caught:
        lower_tower(path, tmp_path / "lowered.onnx")
    message = str(caught.value)
    assert message.startswith(f"The graph '{path}' is damaged: ")
    assert message.endswith("Export the model again, as a new bundle.")
    assert words in message
    assert len(message.splitlines()) == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"\xff\xff", None])
def test_file_that_is_no_graph_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "image.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CompileError, match=r"^Cannot read the graph '.*image\.onnx': .*\. Export the model again\.$"):
        lower_tower(path, tmp_path / "lowered.onnx")
