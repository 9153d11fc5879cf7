"""Requests and answers with random damage, the same in each run: one line for each, no traceback, no wrong numbers."""

from __future__ import annotations

import json
import random
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.errors import ClipmluError
from clipmlu.magicmind.client.answers import HostFacts
from clipmlu.magicmind.client.peer import fetch_file
from clipmlu.magicmind.client.worker_client import WorkerClient
from clipmlu.magicmind.driver.arrays import layout_of
from clipmlu.magicmind.driver.channel import SocketChannel
from clipmlu.magicmind.driver.errors import DriverError, ProtocolError
from clipmlu.magicmind.driver.files import FileAccess
from clipmlu.magicmind.driver.service import Service
from clipmlu.magicmind.driver.serving import serve_requests
from clipmlu.magicmind.driver.wire import Connection
from mlu.small import OUT, WIDTH, open_request, rows
from mlu.test_answers import HONEST, FakeWorker, worker  # noqa: F401 - a fixture, taken by name

VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 1 << 31, 1 << 62, 10**30, 1.5, "", "x", "1", "\u00e9\ud800", "a\nb\u001b[2J"),
    *([], {}, [[]], [None], {"a": 1}, "upload:x", "upload:model", "../x", "/etc/passwd", "\0", "float16", "int64"),
)


class Damage:
    """Damages frames, by a seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def value(self, value: Any, share: float) -> Any:
        """A JSON value with about that share of its parts exchanged or left out."""
        if self.dice.random() < share:
            return self.dice.choice(VALUES)
        if isinstance(value, dict):
            return {key: self.value(each, share) for key, each in value.items() if self.dice.random() > share / 3}
        if isinstance(value, list):
            return [self.value(each, share) for each in value]
        return value

    def frame(self, fields: dict[str, Any], arrays: list[Any]) -> bytes:
        """A frame whose header, bytes or length is damaged, or nothing."""
        listed, length = layout_of(arrays)
        payload = bytearray(length)
        for entry, array in zip(listed, arrays, strict=True):
            payload[entry["offset"] : entry["offset"] + array.nbytes] = array.tobytes()
        text = json.dumps(self.value({**fields, "arrays": listed}, self.dice.choice([0, 0.03, 0.1]))).encode()
        frame = bytearray(struct.pack("<4sIQ", b"CMW1", len(text), len(payload)) + text + payload)
        if self.dice.random() < 0.15:
            frame[self.dice.randrange(len(frame))] = self.dice.randrange(256)
        if self.dice.random() < 0.1:
            del frame[self.dice.randrange(len(frame)) :]
        return bytes(frame)


def test_damaged_requests_are_refused_in_one_line(
    sdk: Any, model: Path, spec: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes = {"blocks.0/Relu": "float16", "blocks.0/MatMul": {"inputs": {"0": "float16"}, "outputs": {}}}
    quantised = {"precision": "qint8_mixed_float32", "calibration": {"algorithm": "linear", "data": [{"arrays": [0]}]}}
    spec = {**spec, "output": "upload:built"}
    opening = ({"op": "open", "id": 1, "model": str(model), "ranges": [[[1, WIDTH], [16, WIDTH]]], "depth": 2}, [])
    run = ({"op": "run", "id": 2, "session": 1}, [rows(3, 0)])
    others: list[tuple[dict[str, Any], list[Any]]] = [
        opening,
        run,
        ({"op": "build", "id": 3, "spec": {**spec, "nodes": nodes, "outputs": [{"dtype": "float16"}]}}, []),
        ({"op": "build", "id": 4, "spec": {**spec, **quantised}}, [rows(4, 0)]),
        ({"op": "have", "id": 5, "path": str(model), "size": 10, "sha256": "x"}, []),
        ({"op": "put", "id": 6, "name": "model", "offset": 0}, [np.zeros(9, np.uint8)]),
        ({"op": "get", "id": 7, "path": str(model), "offset": 3}, []),
        ({"op": "close", "id": 8, "session": 1}, []),
        ({"op": "check_slot", "id": 9, "reply": {"slot": 1, "offset": 64}}, [np.zeros(16, np.uint8)]),
        ({"op": "share", "slot": 1, "size": 1 << 16}, []),
        ({"op": "info", "id": 10}, []),
    ]
    damage = Damage(12)
    told: list[str] = []
    (tmp_path / "scratch").mkdir()
    for _ in range(300):
        ours, theirs = socket.socketpair()
        for request in (opening, run, damage.dice.choice(others), damage.dice.choice(others)):
            ours.sendall(damage.frame(*request))
        ours.shutdown(socket.SHUT_WR)
        connection = Connection(theirs)
        file_access = FileAccess([str(tmp_path)])
        service = Service(load=lambda: sdk, scratch=str(tmp_path / "scratch"), file_access=file_access)
        try:
            serve_requests(SocketChannel(connection, 5), service)
        except ProtocolError as error:
            told.append(str(error))
        finally:
            connection.close()
            ours.close()
    assert len(told) > 100
    assert all(text.isprintable() for text in told)
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith("clipmlu worker: cannot map shared memory") for line in lines), lines[:5]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_damaged_answers_are_told_in_one_line(worker: FakeWorker, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "model").write_bytes(b"model")
    damage = Damage(34)
    struck = ""

    def reply(connection: Connection, header: dict[str, Any], _more: Any) -> None:
        operation = header["op"]
        arrays: list[Any] = [np.ones((3, OUT), np.float32)] if operation == "run" else []
        if operation == "get":
            arrays = [np.zeros(5, np.uint8)]
        fields = {"id": header["id"], **HONEST[operation]}
        if operation != struck:
            connection.send(fields, arrays)
            return
        connection._stream.sendall(damage.frame(fields, arrays))
        connection._stream.shutdown(socket.SHUT_WR)

    worker.replies.update(dict.fromkeys(HONEST, reply))
    told: list[str] = []
    right = 0
    for number in range(200):
        struck = ["open", "run", "have", "info", "get"][number % 5]
        client = WorkerClient(
            WorkerOptions(address=worker.address, max_failures=1, shared_memory=False, run_seconds=2, open_seconds=2)
        )
        try:
            if struck in ("open", "run", "have"):
                opened = client.open_session(open_request(tmp_path / "model"))
                (result,) = client.submit(opened, [rows(3, 0)]).result()
                assert (result.shape, result.dtype) == ((3, OUT), np.float32)
            elif struck == "info":
                facts = client.execute(lambda exchange: exchange({"op": "info"}, ()).read(HostFacts), 2)
                assert isinstance(facts.emulated, bool)
            else:
                client.execute(lambda exchange: fetch_file(exchange, "upload:x", tmp_path / "fetched", 5), 2)
                assert (tmp_path / "fetched").stat().st_size == 5
            right += 1
        except (ClipmluError, DriverError) as error:
            told.append(str(error))
        finally:
            client.close()
    assert min(len(told), right) > 50
    assert all(text.isprintable() and len(text) < 4000 for text in told)
