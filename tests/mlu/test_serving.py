"""A worker that is reached by address: strangers, other versions, oversized frames, and what it leaves behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.errors import BackendUnavailableError, OutputError, SessionError
from clipmlu.magicmind.backend import emulated_worker
from clipmlu.magicmind.client.peer import fetch_file, send_file
from clipmlu.magicmind.client.program import worker_digest, write_worker
from clipmlu.magicmind.client.worker_client import WorkerClient
from clipmlu.magicmind.driver.address import parse_address
from clipmlu.magicmind.driver.arrays import arrays_in, layout_of
from clipmlu.magicmind.driver.errors import DriverError, ProtocolError
from clipmlu.magicmind.driver.greeting import send_greeting
from clipmlu.magicmind.driver.secret import SECRET_VARIABLE
from clipmlu.magicmind.driver.values import DATA_TYPES
from clipmlu.magicmind.driver.wire import Connection
from mlu.small import altered_worker, children, open_request, reference, rows
from support import wait_until

SECRET = "correct horse battery staple"


class Served:
    """A serving process."""

    def __init__(self, address: str, process: subprocess.Popen[str], log: Path, scratch: Path, file: Path) -> None:
        self.address = address
        self.file = file
        self.process = process
        self.log = log
        self.scratch = scratch

    def connect(self) -> socket.socket:
        kind, where = parse_address(self.address)
        stream = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        stream.settimeout(10)
        stream.connect(where)
        return stream


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts workers that serve an address, ends them, and checks that nothing is left."""
    started: list[Served] = []
    folder = tempfile.mkdtemp(prefix="clipmlu-test-")  # a Unix socket's path must be short

    def start(
        kind: str = "unix",
        secret: str | None = SECRET,
        file: Path | None = None,
        arguments: Sequence[str] = (),
        folder_of_work: Path = tmp_path,
        **settings: Any,
    ) -> Served:
        address = f"unix:{folder}/{len(started)}.sock"
        if kind == "tcp":
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                address = f"tcp:127.0.0.1:{probe.getsockname()[1]}"
        scratch = tmp_path / f"scratch{len(started)}"
        scratch.mkdir()
        environment = dict(emulated_worker(**settings).environment or {})
        environment["TMPDIR"] = str(scratch)
        if secret is not None:
            environment[SECRET_VARIABLE] = secret
        log = tmp_path / f"served{len(started)}.log"
        file = file or write_worker(tmp_path, overwrite=True)
        command = [sys.executable, str(file), "--serve", address, *arguments]
        with log.open("w") as stream:
            process = subprocess.Popen(command, env=environment, stderr=stream, text=True, cwd=folder_of_work)
        started.append(Served(address, process, log, scratch, file))
        wait_until(lambda: "serving on" in log.read_text() or process.poll() is not None)
        return started[-1]

    yield start
    for served in started:
        pids = descendants(served.process.pid)
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(60)
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        assert list(served.scratch.glob("clipmlu*")) == []  # onnxruntime leaves a file of its own, .ses
    assert os.listdir(folder) == []
    os.rmdir(folder)


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Callable[..., WorkerClient]]:
    clients = []
    secret_file = tmp_path / "secret"
    secret_file.write_text(SECRET + "\n")
    secret_file.chmod(0o600)

    def make(served: Served, **changes: Any) -> WorkerClient:
        quick = {"run_seconds": 20.0, "open_seconds": 20.0, "start_seconds": 10.0, "secret_file": str(secret_file)}
        clients.append(WorkerClient(WorkerOptions(address=served.address, **{**quick, **changes})))
        return clients[-1]

    yield make
    for each in clients:
        each.close()


def check_batches(client: WorkerClient, model: Path, count: int = 12) -> None:
    opened = client.open_session(open_request(model))
    futures = [client.submit(opened, [rows(3, seed)]) for seed in range(count)]
    for seed, future in enumerate(futures):
        np.testing.assert_allclose(future.result()[0], reference(rows(3, seed)), atol=1e-6)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_batches_through_an_address(serve: Any, client: Any, model: Path, kind: str) -> None:
    worker = client(serve(kind))
    check_batches(worker, model)
    assert worker._shares_memory is (kind == "unix")


def test_unix_socket_is_the_owners_alone_and_needs_no_secret(serve: Any, client: Any, model: Path) -> None:
    served = serve("unix", secret=None)
    assert os.stat(served.address.removeprefix("unix:")).st_mode & 0o777 == 0o600
    check_batches(client(served, secret_file=None), model)


def test_several_clients_each_have_a_process_of_their_own(serve: Any, client: Any, model: Path) -> None:
    served = serve("unix")
    workers = [client(served) for _ in range(2)]
    for worker in workers:
        check_batches(worker, model)
    assert len(descendants(served.process.pid)) == 2


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("enqueue:5:crash", "unix"),
        pytest.param("enqueue:5:crash", "tcp", marks=pytest.mark.slow),
        *(
            pytest.param(fault, kind, marks=pytest.mark.slow)
            for fault in ("enqueue:6:device_lost", "sync:4:hang")
            for kind in ("unix", "tcp")
        ),
    ],
)
def test_crashes_and_hangs_over_an_address(
    serve: Any, client: Any, model: Path, tmp_path: Path, kind: str, fault: str
) -> None:
    seconds = 3.0 if "hang" in fault else 20.0
    worker = client(serve(kind, faults=fault, fault_log=str(tmp_path / "faults.log")), run_seconds=seconds)
    check_batches(worker, model)
    assert worker.restarts == 1


def test_log_of_a_worker_elsewhere_is_told(serve: Any, client: Any, model: Path, tmp_path: Path) -> None:
    old = '        self.outputs = []\n        checked("enqueue"'
    planted = '        print("CNRT error: 0x1234", file=sys.stderr, flush=True)\n        os.abort()\n' + old
    altered = altered_worker(tmp_path, old, planted)
    worker = client(serve("unix", file=altered), driver=altered, max_failures=2)
    opened = worker.open_session(open_request(model))
    with pytest.raises(SessionError, match=r"(?s)failed 2 times in a row: 1\. .*killed by SIGABRT.*CNRT error: 0x1234"):
        worker.submit(opened, [rows(1, 0)]).result()


def test_wrong_and_missing_secrets_are_refused(serve: Any, client: Any, model: Path, tmp_path: Path) -> None:
    served = serve("tcp")
    (tmp_path / "wrong").write_text("not the right secret at all")
    (tmp_path / "wrong").chmod(0o600)
    with pytest.raises(BackendUnavailableError, match="the worker refuses: the secret is wrong or missing"):
        client(served, secret_file=str(tmp_path / "wrong")).open_session(open_request(model))
    with pytest.raises(BackendUnavailableError, match="asks for a secret; set CLIPMLU_WORKER_SECRET"):
        client(served, secret_file=None).open_session(open_request(model))
    (tmp_path / "short").write_text("short")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(BackendUnavailableError, match="the secret has 5 characters; expected 16 or more"):
        client(served, secret_file=str(tmp_path / "short")).open_session(open_request(model))
    assert "the secret is wrong or missing" in served.log.read_text()
    assert SECRET not in served.log.read_text()
    assert descendants(served.process.pid) == [], "no process for a stranger"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tcp:127.0.0.1:0"], "TCP needs a shared secret"),
        (["tcp::9310"], "expected unix:PATH or tcp:HOST:PORT"),
        (["9310"], "expected unix:PATH or tcp:HOST:PORT"),
    ],
)
def test_tcp_without_a_secret_or_a_host_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(write_worker(tmp_path)), "--serve", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert message in done.stderr


def test_other_version_is_refused_by_either_side(serve: Any, client: Any, model: Path, tmp_path: Path) -> None:
    older = altered_worker(tmp_path, 'FILE_NAME = "clipmlu_worker.pyz"', 'FILE_NAME = "older.pyz"')
    served = serve("unix", file=older)
    with pytest.raises(BackendUnavailableError, match=r"another version of the driver.*clipmlu worker --write PATH"):
        client(served).open_session(open_request(model))
    connection = Connection(serve("unix", secret=None).connect())
    connection.receive()
    connection.send({"digest": "0" * 64, "nonce": "0" * 64})
    assert "another version" in connection.receive()[0]["error"]
    connection.close()


@pytest.mark.parametrize("stage", ["stranger", pytest.param("greeted", marks=pytest.mark.slow)])
def test_bad_and_oversized_frames_end_the_connection_and_nothing_else(
    serve: Any, client: Any, model: Path, stage: str
) -> None:
    served = serve("unix", secret=None)
    for frame in (
        struct.pack("<4sIQ", b"CMW1", 1 << 31, 0),
        struct.pack("<4sIQ", b"CMW1", 10, 1 << 60),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack("<4sIQ", b"CMW1", 4, 0) + b"{{{{",
        struct.pack("<4sIQ", b"CMW1", 2, 0) + b"[]",
    ):
        stream = served.connect()
        connection = Connection(stream)
        if stage == "greeted":
            send_greeting(connection, None, worker_digest())
        else:
            connection.receive()
        stream.sendall(frame)
        with contextlib.suppress(ProtocolError):
            while True:
                try:
                    header, _payload, _none = connection.receive(time.monotonic() + 5)
                except EOFError:
                    break
                assert "error" in header, frame
        connection.close()
    check_batches(client(served, secret_file=None), model, 2)


def test_arrays_that_leave_their_buffer_are_refused() -> None:
    buffer = np.zeros(64, np.uint8)
    for entry in (
        {"dtype": "float32", "shape": [17], "offset": 0},
        {"dtype": "float32", "shape": [1], "offset": 61},
        {"dtype": "float32", "shape": [-1], "offset": 0},
        {"dtype": "float32", "shape": [1 << 40, 1 << 40], "offset": 0},
        {"dtype": "float32", "shape": [True], "offset": 0},
        {"dtype": "object", "shape": [1], "offset": 0},
        {"dtype": "V8", "shape": [1], "offset": 0},
        {"dtype": "float32", "shape": [1] * 9, "offset": 0},
        {"dtype": "float32", "shape": [1], "offset": -4},
        {"dtype": "float32", "shape": [1], "offset": 0, "slot": 3},
        {"dtype": ["float32"], "shape": [1], "offset": 0},
        {"shape": [1]},
        7,
    ):
        with pytest.raises(ProtocolError):
            arrays_in({"arrays": [entry]}, buffer, {})
    with pytest.raises(DriverError, match="do not travel"):
        layout_of([np.array([object()])])


def test_all_types_and_empty_arrays_travel() -> None:
    ours, theirs = (Connection(end) for end in socket.socketpair())
    arrays = [np.arange(7).astype(name).reshape(7, 1) for name in DATA_TYPES.values()]
    arrays += [np.zeros((0, 3), np.float32), np.array(2.5, np.float32), np.arange(12.0).reshape(3, 4)[:, ::2]]
    ours.send({"a": 1}, arrays)
    header, payload, _none = theirs.receive()
    for sent, received in zip(arrays, arrays_in(header, payload, {}), strict=True):
        assert (sent.dtype, sent.shape) == (received.dtype, received.shape)
        np.testing.assert_array_equal(sent, received)
    ours.close()
    with pytest.raises(EOFError):
        theirs.receive()
    theirs.close()


def test_files_go_both_ways_where_paths_mean_nothing(serve: Any, client: Any, tmp_path: Path) -> None:
    worker = client(serve("tcp"))
    content = os.urandom(5003)
    (tmp_path / "model.bin").write_bytes(content)

    def action(exchange: Any) -> None:
        def elsewhere(fields: dict[str, Any], arrays: Any) -> Any:
            path = "/not/there" if fields["op"] == "have" else fields.get("path")
            return exchange({**fields, **({"path": path} if path else {})}, arrays)

        remote = send_file(elsewhere, tmp_path / "model.bin", chunk=1000)
        assert remote == f"upload:{hashlib.sha256(content).hexdigest()[:16]}-model.bin"
        fetch_file(exchange, remote, tmp_path / "back.bin", len(content))
        assert send_file(exchange, tmp_path / "model.bin") == str(tmp_path / "model.bin")

    worker.execute(action, 20)
    assert (tmp_path / "back.bin").read_bytes() == content
    for name in ("../x", "a/b", "", ".hidden", "x" * 300):
        with pytest.raises(DriverError, match="is no name for an uploaded file"):
            worker.execute(
                lambda exchange, name=name: exchange({"op": "put", "name": name, "offset": 0}, [np.zeros(1, np.uint8)]),
                9,
            )


def test_client_that_is_killed_leaves_no_hanging_process(serve: Any, model: Path) -> None:
    served = serve("unix", secret=None, faults="from_numpy:1:hang")
    connection = Connection(served.connect())
    send_greeting(connection, None, worker_digest())
    connection.send({"op": "open", "id": 1, "model": str(model)})
    session = connection.receive()[0]["session"]
    connection.send({"op": "run", "id": 2, "session": session}, [rows(1, 0)])
    time.sleep(0.5)
    assert descendants(served.process.pid)
    connection.close()
    wait_until(lambda: not descendants(served.process.pid))


def test_address_that_is_served_is_not_taken_and_a_stale_one_is(serve: Any, client: Any, model: Path) -> None:
    served = serve("unix", secret=None)
    command = [sys.executable, str(served.file), "--serve", served.address]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert "something is serving on" in done.stderr
    check_batches(client(served, secret_file=None), model, 1)


def test_nobody_at_the_address_is_told(tmp_path: Path, model: Path) -> None:
    worker = WorkerClient(WorkerOptions(address=f"unix:{tmp_path}/none.sock", max_failures=2, start_seconds=1))
    with pytest.raises(BackendUnavailableError, match=r"none.sock' failed 2 times in a row: 1\. cannot connect"):
        worker.open_session(open_request(model))
    worker.close()


def test_worker_command_writes_one_executable_file(tmp_path: Path) -> None:
    from clipmlu.cli.worker import worker_command

    before = children()
    done = CliRunner().invoke(worker_command, ["--write", str(tmp_path)])
    assert done.exit_code == 0
    written = tmp_path / "clipmlu_worker.pyz"
    assert os.access(written, os.X_OK)
    assert f"python3.7 {written.name} --serve unix:" in done.output
    facts = json.loads(
        subprocess.run([written, "--info"], check=True, capture_output=True, text=True, timeout=60).stdout
    )
    assert facts["driver"] == worker_digest()
    assert CliRunner().invoke(worker_command, ["--write", str(written), "--overwrite"]).exit_code == 0
    refused = CliRunner().invoke(worker_command, ["--write", "/proc/nowhere/x.py"])
    assert isinstance(refused.exception, OutputError)
    assert children() == before
