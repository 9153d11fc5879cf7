"""Strangers who hold connections, clients that ask for files of others, and frames that are no frames."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.errors import BackendUnavailableError
from clipmlu.magicmind.client.program import write_worker
from clipmlu.magicmind.client.worker_client import WorkerClient
from clipmlu.magicmind.driver.address import remove_stale
from clipmlu.magicmind.driver.errors import DriverError, GreetingError, ProtocolError
from clipmlu.magicmind.driver.files import FileAccess
from clipmlu.magicmind.driver.onnx_file import check_holds_its_weights
from clipmlu.magicmind.driver.request import Request
from clipmlu.magicmind.driver.secret import read_secret
from clipmlu.magicmind.driver.service import Service
from clipmlu.magicmind.driver.wire import KEEPALIVE, Connection
from mlu.test_serving import check_batches, client, serve  # noqa: F401 - fixtures, taken by name
from support import wait_until

HELD = [
    b"",
    b"C",
    struct.pack("<4sIQ", b"CMW1", 4000, 0) + b"{",
    struct.pack("<4sIQ", b"CMW1", 10, 1 << 60),
    b"GET / H",
]


def test_client_gets_in_while_hundreds_of_strangers_hold_connections(serve: Any, client: Any, model: Path) -> None:  # noqa: F811
    served = serve("tcp")
    strangers = []
    for number in range(300):
        strangers.append(served.connect())
        if HELD[number % len(HELD)]:
            strangers[-1].sendall(HELD[number % len(HELD)])
    check_batches(client(served), model, 2)
    for stranger in strangers:
        stranger.close()
    assert "Traceback" not in served.log.read_text()


def test_host_that_dies_is_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as stream:
        Connection(stream)
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        found = [stream.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name, _ in KEEPALIVE]
    assert found[0] + found[1] * found[2] == 90


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 4000,
        b'{"nonce": "\\ud800' + b"x" * 40 + b'", "proof": "\xc3\xa9"}',
        b'{"a": ' + b"9" * 3000 + b"}",
        b'{"a": NaN}',
        b"\xff\xfe",
    ],
)
def test_strangers_header_is_one_line_in_the_log(serve: Any, header: bytes) -> None:  # noqa: F811
    served = serve("tcp")
    with served.connect() as stream:
        connection = Connection(stream)
        connection.receive()
        stream.sendall(struct.pack("<4sIQ", b"CMW1", len(header), 0) + header)
        wait_until(lambda: "refused a client" in served.log.read_text())
    lines = served.log.read_text().splitlines()
    assert len(lines) == 2, lines
    assert lines[1].startswith("clipmlu worker: refused a client of 127.0.0.1: ")


@pytest.mark.parametrize(
    "fields",
    [
        {"op": "open"},
        {"op": "open", "model": 7},
        {"op": "open", "model": "x", "depth": 1 << 40},
        {"op": ["open"]},
        {"op": "run", "session": []},
        {"op": "close", "session": {}},
        {"op": "have", "path": 3, "size": "x", "sha256": 1},
        {"op": "put", "name": "x", "offset": -1},
        {"op": "put", "name": "x", "offset": 0},
        {"op": "get", "path": "upload:none", "offset": 0},
        {"op": "get", "path": "a\0b", "offset": 0},
        {"op": "build"},
        {"op": "build", "spec": {"onnx": 1, "output": 2, "precision": 3, "archs": 4, "inputs": 5}},
        {"op": "check_slot"},
    ],
)
def test_request_that_makes_no_sense_is_answered(fields: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    service = Service(file_access=FileAccess([]))
    request = Request(fields)
    with pytest.raises(DriverError) as caught:
        service.runner(request) if fields["op"] == "run" else service.answer(request)
    service.close()
    assert caught.value.kind == "spec"
    assert capfd.readouterr().err == ""


def test_offset_that_no_file_has_is_answered() -> None:
    with pytest.raises(DriverError, match="cannot be read: at 9223372036854775807: Invalid argument"):
        Service().answer(Request({"op": "get", "path": __file__, "offset": (1 << 63) - 1}))


def test_folder_that_is_no_text_is_answered(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="is no path"):
        FileAccess([str(tmp_path)]).folder("\ud800")


@pytest.mark.parametrize(("header", "length"), [({}, 1 << 30), ({"arrays": 7}, 9), ({"arrays": [{"a": 1}]}, 9)])
def test_payload_that_the_header_does_not_list_takes_no_memory(header: dict[str, Any], length: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        text = json.dumps(header).encode()
        ours.sendall(struct.pack("<4sIQ", b"CMW1", len(text), length) + text)
        with pytest.raises(ProtocolError, match=r"payload of|bad list|bad array"):
            Connection(theirs).receive(time.monotonic() + 5)


def test_only_regular_files_in_the_roots_are_read(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-2"
    root.mkdir()
    outside.mkdir()
    for path in (root / "a", root / "secret", outside / "b"):
        path.write_bytes(b"content")
    os.symlink(outside / "b", root / "link")
    os.symlink(outside, root / "folder")
    os.symlink(root / "secret", root / "to-secret")
    os.link(outside / "b", root / "hard")
    os.mkfifo(root / "pipe")
    file_access = FileAccess([str(root)], [str(root / "secret")])
    with file_access.open(str(root / "a")) as stream:
        assert stream.read() == b"content"
    refused = [outside / "b", root / "../root-2/b", root / "link", root / "folder/b", root / "hard", root / "pipe"]
    for path in [*refused, root / "secret", root / "to-secret", root, root / "none", "/proc/self/environ", "/dev/zero"]:
        with pytest.raises(DriverError, match="cannot be read"):
            file_access.open(str(path))
    with pytest.raises(DriverError, match="outside the folders"):
        FileAccess(["/"]).open("/proc/self/environ")
    os.unlink(root / "hard")
    for operation in ("get", "open"):
        request = Request({"op": operation, "path": str(outside / "b"), "model": str(outside / "b"), "offset": 0})
        with pytest.raises(DriverError, match="outside the folders"):
            Service(file_access=file_access).answer(request)


def test_uploaded_graph_brings_no_file_of_the_worker_back(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [weight]))
    onnx.save(model, tmp_path / "own.onnx")
    check_holds_its_weights(str(tmp_path / "own.onnx"))
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DriverError, match="weights in other files are refused here"):
        check_holds_its_weights(str(tmp_path / "other.onnx"))
    service = Service(scratch=str(tmp_path), file_access=FileAccess([str(tmp_path)]))
    inputs = [{"shape": [1, 4]}]
    for name, more, reason in (
        ("other.onnx", {}, "weights in other files are refused here"),
        ("own.onnx", {"extra": {"debug": [{"dump_dir": "/etc"}]}}, "outside the folders"),
        ("own.onnx", {"toolchain": "/etc"}, "outside the folders"),
    ):
        spec = {"onnx": str(tmp_path / name), "output": "upload:m", "precision": "force_float32", "archs": {}, **more}
        with pytest.raises(DriverError, match=reason):
            service.answer(Request({"op": "build", "spec": {**spec, "inputs": inputs}}))
    (tmp_path / "none.onnx").write_bytes(b"\xff" * 50)
    with pytest.raises(DriverError, match="it is no ONNX file"):
        check_holds_its_weights(str(tmp_path / "none.onnx"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "cannot be read: No such file"),
        ("empty", "is empty"),
        ("pipe", "it is no regular file"),
        ("open", "is open to every user of this machine; run: chmod 600"),
        ("long", "is longer than"),
    ],
)
def test_secret_file_that_cannot_be_used_is_one_line(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind != "missing":
        path.write_bytes({"empty": b"\n", "open": b"x" * 20, "long": b"x" * 5000}[kind])
        path.chmod(0o644 if kind == "open" else 0o600)
    with pytest.raises(GreetingError, match=message):
        read_secret(str(path))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp:localhost:99999", "has the port 99999; expected 1 to 65535"),
        ("tcp:localhost:0", "has the port 0; expected 1 to 65535"),
        ("fd:5", "is no address"),
        ("tcp:" + "a" * 70 + ":9310", "cannot connect"),
    ],
)
def test_address_that_is_wrong_is_one_line(model: Path, address: str, message: str) -> None:
    from mlu.small import open_request

    worker = WorkerClient(WorkerOptions(address=address, max_failures=1))
    with pytest.raises(BackendUnavailableError, match=message) as caught:
        worker.open_session(open_request(model))
    worker.close()
    assert "\n" not in str(caught.value)


def test_file_of_the_user_is_not_taken_for_a_stale_socket(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(GreetingError, match="exists and is no socket"):
        remove_stale(str(tmp_path / "notes.txt"))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["no folder", "a port in use"])
def test_address_that_cannot_be_listened_on_is_named(kind: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        place = f"127.0.0.1:{used.getsockname()[1]}" if kind == "a port in use" else f"{tmp_path}/none/mlu.sock"
        reason = "Address already in use" if kind == "a port in use" else "No such file or directory"
        address = f"{'tcp' if kind == 'a port in use' else 'unix'}:{place}"
        done = subprocess.run(
            [sys.executable, write_worker(tmp_path), "--serve", address],
            env={**os.environ, "CLIPMLU_WORKER_SECRET": "0123456789abcdef" * 2},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"clipmlu worker: cannot listen on '{place}': {reason};")
    assert done.stderr.count("\n") == 1
