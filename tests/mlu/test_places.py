"""Who gets a place on a worker that serves an address, and what is left of a client that goes without a word."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmlu.errors import BackendUnavailableError
from clipmlu.magicmind.client.program import worker_digest
from clipmlu.magicmind.driver.greeting import send_greeting
from clipmlu.magicmind.driver.wire import Connection
from mlu.small import altered_worker, open_request, reference, rows
from mlu.test_serving import (  # noqa: F401 - fixtures, taken by name
    SECRET,
    check_batches,
    client,
    descendants,
    serve,
)
from support import wait_until


def greeted(served: Any) -> Connection:
    connection = Connection(served.connect())
    send_greeting(connection, SECRET.encode(), worker_digest())
    return connection


def test_full_worker_says_so_and_a_place_that_is_free_again_is_used(
    serve: Any,  # noqa: F811
    client: Any,  # noqa: F811
    model: Path,
    tmp_path: Path,
) -> None:
    quick = altered_worker(tmp_path, "ADMISSION_SECONDS = 5.0", "ADMISSION_SECONDS = 0.1")
    served = serve("tcp", file=quick, arguments=["--max-clients", "1"])
    first = client(served, driver=quick)
    check_batches(first, model, 1)
    second = client(served, driver=quick)
    for _ in range(2):
        with pytest.raises(BackendUnavailableError, match=r"all 1 places are taken \(--max-clients\)") as caught:
            second.open_session(open_request(model))
        assert served.address in str(caught.value)
        assert "\n" not in str(caught.value)
    assert len(descendants(served.process.pid)) == 1
    first.close()
    wait_until(lambda: not descendants(served.process.pid))
    check_batches(second, model, 1)


def test_client_that_asks_for_nothing_gives_its_place_back_by_default(
    serve: Any,  # noqa: F811
    client: Any,  # noqa: F811
    model: Path,
    tmp_path: Path,
) -> None:
    """An hour, unless --idle-seconds says otherwise; here the hour is short."""
    quick = altered_worker(tmp_path, "IDLE_SECONDS = 3600.0", "IDLE_SECONDS = 0.4")
    served = serve("tcp", file=quick, arguments=["--max-clients", "1"])
    idle = client(served, driver=quick)
    opened = idle.open_session(open_request(model))
    wait_until(lambda: not descendants(served.process.pid))
    wait_until(lambda: "nothing was asked for 0.4 s" in served.log.read_text())
    np.testing.assert_allclose(idle.submit(opened, [rows(2, 1)]).result()[0], reference(rows(2, 1)), atol=1e-6)
    assert idle.restarts == 0


@pytest.mark.parametrize("end", ["client", "worker"])
def test_upload_that_is_interrupted_leaves_no_file(serve: Any, tmp_path: Path, end: str) -> None:  # noqa: F811
    served = serve("unix")
    connection = greeted(served)
    connection.send({"op": "put", "id": 1, "name": "half", "offset": 0}, [np.ones(5000, np.uint8)])
    assert connection.receive()[0]["id"] == 1
    (uploaded,) = served.scratch.glob("clipmlu-worker-*/*/half")
    assert uploaded.stat().st_size == 5000
    connection._stream.sendall(struct.pack("<4sIQ", b"CMW1", 50, 4000) + b'{"op": "pu')
    if end == "client":
        connection.close()
        wait_until(lambda: not uploaded.parent.exists())
        return
    pids = [served.process.pid, *descendants(served.process.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    served.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert uploaded.exists()
    other = served.scratch / "clipmlu-worker-of-the-user"
    other.mkdir()
    (other / "notes").write_text("no lock: not ours")
    environment = {**os.environ, "TMPDIR": str(served.scratch)}
    os.unlink(served.address.removeprefix("unix:"))
    command = [sys.executable, str(served.file), "--serve", served.address]
    with served.log.open("w") as log:
        served.process = subprocess.Popen(command, env=environment, stderr=log, text=True)
    wait_until(lambda: "serving on" in served.log.read_text())
    assert not uploaded.parent.parent.exists()
    assert (other / "notes").exists()
    (other / "notes").unlink()
    other.rmdir()
    connection.close()


def test_strangers_of_the_clients_own_host_who_never_stop_do_not_lock_it_out(
    serve: Any,  # noqa: F811
    client: Any,  # noqa: F811
    model: Path,
) -> None:
    served = serve("tcp", arguments=["--max-clients", "1"])
    stop = threading.Event()
    held: list[socket.socket] = []

    def pester() -> None:
        for number in range(1500):
            if stop.is_set():
                return
            try:
                held.append(served.connect())
                held[-1].sendall([b"", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 16][number % 3])
            except OSError:  # it was dropped at once
                continue
            time.sleep(0.002)

    strangers = threading.Thread(target=pester)
    strangers.start()
    wait_until(lambda: len(held) > 100)
    try:
        check_batches(client(served), model, 4)
    finally:
        stop.set()
        strangers.join()
        for stream in held:
            stream.close()
    assert "Traceback" not in served.log.read_text()


MALFORMED = [
    b"\0" * 16,
    b"GET / HTTP/1.1\r\nHost: " + b"x" * 60_000,
    struct.pack("<4sIQ", b"CMW1", 1 << 31, 0),
    struct.pack("<4sIQ", b"CMW1", 2, 0) + b"[]",
    struct.pack("<4sIQ", b"CMW1", 4000, 0) + b'{"\\u001b[2J\\n' + b"y" * 4000,
    struct.pack("<4sIQ", b"CMW1", 9, 0) + b'{"a": 1,}',
]


@pytest.mark.parametrize("stage", ["stranger", "greeted"])
def test_each_malformed_frame_is_one_line_of_the_log(serve: Any, stage: str) -> None:  # noqa: F811
    served = serve("tcp")
    before = len(served.log.read_text().splitlines())
    for number, frame in enumerate(MALFORMED, 1):
        if stage == "greeted":
            connection = greeted(served)
        else:
            connection = Connection(served.connect())
            connection.receive()
        connection._stream.sendall(frame)
        wait_until(lambda count=before + number: len(served.log.read_text().splitlines()) >= count)  # type: ignore[misc]
        connection.close()
    wait_until(lambda: not descendants(served.process.pid))
    lines = served.log.read_text().splitlines()[before:]
    assert len(lines) == len(MALFORMED), lines
    start = (
        "clipmlu worker: ended a connection: "
        if stage == "greeted"
        else "clipmlu worker: refused a client of 127.0.0.1: "
    )
    assert all(line.startswith(start) and line.isprintable() and len(line) < 450 for line in lines), lines


def test_descriptors_of_a_stranger_are_not_kept(serve: Any) -> None:  # noqa: F811
    """A socket file that others may write to: each frame may bring some."""
    served = serve("unix")
    folder = Path(f"/proc/{served.process.pid}/fd")
    before = len(list(folder.iterdir()))
    null = os.open(os.devnull, os.O_RDONLY)
    for _ in range(5):
        with served.connect() as stream:
            Connection(stream).receive()
            stream.sendmsg([b"C"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("4i", *[null] * 4))])
    os.close(null)
    wait_until(lambda: served.log.read_text().count("refused a client") == 5)
    wait_until(lambda: len(list(folder.iterdir())) <= before)
