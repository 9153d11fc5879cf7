"""A worker that breaks down, or means harm, after the greeting: the client says so in one line, and gives no wrong numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import mmap
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.errors import ClipmluError, SessionError
from clipmlu.magicmind.client.peer import fetch_file, send_file
from clipmlu.magicmind.client.program import worker_digest
from clipmlu.magicmind.client.slots import Slot
from clipmlu.magicmind.client.worker_client import WorkerClient
from clipmlu.magicmind.driver.channel import SocketChannel
from clipmlu.magicmind.driver.errors import DriverError
from clipmlu.magicmind.driver.greeting import accept_greeting
from clipmlu.magicmind.driver.shared_memory import ADD_SEALS, GET_SEALS
from clipmlu.magicmind.driver.wire import PRELUDE, Connection
from mlu.small import OUT, WIDTH, open_request, reference, rows
from support import wait_until

PORTS = {
    "inputs": [{"shape": [-1, WIDTH], "dtype": "float32"}],
    "outputs": [{"shape": [-1, OUT], "dtype": "float32"}],
}
HONEST: dict[str, dict[str, Any]] = {
    "open": {"session": 1, "warnings": [], "depth": 2, "emulated": True, **PORTS},
    "run": {"times": {"compute": 0.5}},
    "have": {"have": True},
    "put": {},
    "close": {},
    "check_slot": {"token": ""},
    "info": {"python": "3.7.16", "numpy": "1.21.6", "sdk": None, "emulated": True, "cards": 1, "problem": None},
    "build": {"bytes": 5, "calibration_batches": 0, "warnings": [], **PORTS},
    "get": {},
}
LONG_SECONDS = 30
"""What waits for an answer that does not come takes longer: minutes, or for ever."""
Reply = Callable[[Connection, dict[str, Any], Any], None]


def answer(connection: Connection, header: dict[str, Any], changes: dict[str, Any], arrays: Any = None) -> None:
    """What the driver would answer, with changes; ``...`` leaves a field out."""
    fields = {"id": header.get("id"), **HONEST[header["op"]], **changes}
    if arrays is None:
        shape = header["arrays"][0]["shape"] if header["op"] == "run" else []
        arrays = [np.ones((shape[0], OUT), np.float32)] if header["op"] == "run" else []
    connection.send({key: value for key, value in fields.items() if value is not ...}, arrays)


class FakeWorker:
    """A process that greets as a worker does, and answers as a script says; stands at the socket.

    Args:
        replies: operation -> how it is answered; the others as the driver would.
    """

    def __init__(self, folder: str) -> None:
        self.address = f"unix:{folder}/fake.sock"
        self.replies: dict[str, Reply] = {}
        self.asked: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/fake.sock")
        self._listener.listen(8)
        self._streams: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            stream.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._streams.append(self._listener.accept()[0])
                threading.Thread(target=self._serve, args=(self._streams[-1],), daemon=True).start()

    def _serve(self, stream: socket.socket) -> None:
        connection = Connection(stream)
        with contextlib.suppress(EOFError, OSError, ValueError):
            accept_greeting(connection, None, worker_digest())
            while True:
                header, payload, descriptors = connection.receive()
                self.asked.append(header["op"])
                if header["op"] in self.replies:
                    self.replies[header["op"]](connection, header, (payload, descriptors))
                elif header["op"] not in ("share", "unshare"):
                    answer(connection, header, {})
                for descriptor in descriptors:
                    os.close(descriptor)


@pytest.fixture
def worker() -> Iterator[FakeWorker]:
    with tempfile.TemporaryDirectory() as folder:  # a Unix socket's path must be short
        fake = FakeWorker(folder)
        yield fake
        fake.close()


@pytest.fixture
def client(worker: FakeWorker) -> Iterator[WorkerClient]:
    quick = {"run_seconds": 20.0, "open_seconds": 20.0, "start_seconds": 20.0}
    made = WorkerClient(WorkerOptions(address=worker.address, max_failures=1, shared_memory=False, **quick))
    yield made
    made.close()


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    (tmp_path / "model").write_bytes(b"model")
    return tmp_path / "model"


def line_of(caught: pytest.ExceptionInfo[BaseException], address: str) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    assert len(text) < 1500
    assert address in text
    return text


def changed(changes: dict[str, Any]) -> Reply:
    return lambda connection, header, _more: answer(connection, header, changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"session": ...}, "answer to 'open' is not as expected: Object missing required field `session`"),
        ({"session": None}, r"Expected `int`, got `null` - at `\$.session`"),
        ({"session": "1"}, r"Expected `int`, got `str` - at `\$.session`"),
        ({"session": True}, r"Expected `int`, got `bool` - at `\$.session`"),
        ({"session": 10**30}, r"Expected `int` <= .* - at `\$.session`"),
        ({"depth": ...}, "missing required field `depth`"),
        ({"depth": 1 << 40}, r"Expected `int` <= 64 - at `\$.depth`"),
        ({"emulated": ...}, "missing required field `emulated`"),
        ({"emulated": "no"}, r"Expected `bool`, got `str` - at `\$.emulated`"),
        ({"warnings": "x"}, r"Expected `array`, got `str` - at `\$.warnings`"),
        ({"warnings": [7]}, r"Expected `str`, got `int` - at `\$.warnings"),
        ({"inputs": ...}, "missing required field `inputs`"),
        ({"outputs": ...}, "missing required field `outputs`"),
        ({"outputs": {}}, r"Expected `array`, got `object` - at `\$.outputs`"),
        ({"outputs": [{"shape": [1]}]}, r"missing required field `dtype` - at `\$.outputs\[0\]`"),
        ({"outputs": [{"shape": [1], "dtype": "object"}]}, r"Invalid enum value 'object' - at `\$.outputs"),
        ({"outputs": [{"shape": [10**30], "dtype": "int8"}]}, r"Expected `int` <= .* - at `\$.outputs"),
        ({"outputs": [{"shape": [1], "dtype": "a\n\u001b[2J"}]}, r"Invalid enum value 'a\\n\\x1b\[2J'"),
        ({"outputs": [{"shape": [1], "dtype": "\ud800"}]}, r"answer to 'open' holds a text that is no Unicode"),
        ({"id": ...}, r"an answer to request None instead of 2"),
        ({"id": 7}, r"an answer to request 7 instead of 2"),
        ({"id": "2"}, r"an answer to request '2' instead of 2"),
        ({"error": "no"}, r"an error that is none: 'no'"),
        ({"error": {"call": "x"}}, r"an error that is none"),
        ({"error": {"call": "x", "status": "y", "arguments": [], "kind": "\u001b[2J"}}, r"an error that is none"),
    ],
)
def test_answer_to_open_that_is_wrong_is_one_line(
    worker: FakeWorker, client: WorkerClient, model_file: Path, changes: dict[str, Any], message: str
) -> None:
    worker.replies["open"] = changed(changes)
    with pytest.raises(SessionError, match=message) as caught:
        client.open_session(open_request(model_file))
    assert "it sent invalid data" in line_of(caught, worker.address)


@pytest.mark.parametrize(
    ("fields", "arrays", "message"),
    [
        ({}, [], r"the results are nothing; expected float32 \[3, 5\]"),
        ({}, [np.ones((2, OUT), np.float32)], r"the results are float32 \[2, 5\]; expected float32 \[3, 5\]"),
        ({}, [np.ones((1, OUT), np.float32)], r"the results are float32 \[1, 5\]; expected float32 \[3, 5\]"),
        ({}, [np.ones((3, OUT - 1), np.float32)], r"the results are float32 \[3, 4\]; expected float32 \[3, 5\]"),
        ({}, [np.ones((OUT, 3), np.float32)], r"the results are float32 \[5, 3\]; expected float32 \[3, 5\]"),
        ({}, [np.ones(3 * OUT, np.float32)], r"the results are float32 \[15\]; expected float32 \[3, 5\]"),
        ({}, [np.ones((0, OUT), np.float32)], r"the results are float32 \[0, 5\]; expected float32 \[3, 5\]"),
        ({}, [np.ones((3, OUT), np.float16)], r"the results are float16 \[3, 5\]; expected float32 \[3, 5\]"),
        ({}, [np.ones((3, OUT), np.int32)], r"the results are int32 \[3, 5\]; expected float32 \[3, 5\]"),
        ({}, [np.ones((3, 1), np.float32)] * 2, r"float32 \[3, 1\], float32 \[3, 1\]; expected float32 \[3, 5\]"),
        ({}, [np.ones((999, OUT), np.float32)], r"of payload; allowed are"),
        ({"times": ...}, None, "answer to 'run' is not as expected: Object missing required field `times`"),
        ({"times": [1]}, None, r"Expected `object`, got `array` - at `\$.times`"),
        ({"times": {"compute": -1.0}}, None, r"Expected `float` >= 0.0 - at `\$.times"),
        ({"times": {"compute": 1e300}}, None, r"Expected `float` <= .* - at `\$.times"),
        ({"id": 3.0}, None, "an answer to request 3.0 instead of 3"),
    ],
)
def test_results_that_do_not_belong_to_the_batch_are_refused(
    worker: FakeWorker, client: WorkerClient, model_file: Path, fields: dict[str, Any], arrays: Any, message: str
) -> None:
    worker.replies["run"] = lambda connection, header, _more: answer(connection, header, fields, arrays)
    opened = client.open_session(open_request(model_file))
    with pytest.raises(SessionError, match=message) as caught:
        client.submit(opened, [rows(3, 0)]).result()
    line_of(caught, worker.address)


def test_right_answers_are_taken_and_counted(worker: FakeWorker, client: WorkerClient, model_file: Path) -> None:
    results = reference(rows(3, 0))
    times = {"copy_in": 0.25, "compute": 0.5, "napping": 9.0}
    worker.replies["run"] = lambda connection, header, _more: answer(connection, header, {"times": times}, [results])
    opened = client.open_session(open_request(model_file))
    for _ in range(3):
        np.testing.assert_array_equal(client.submit(opened, [rows(3, 0)]).result()[0], results)
    assert opened.clock.totals() == {"copy_in": (0.75, 9), "compute": (1.5, 9)}


def test_texts_of_the_other_side_become_one_line(worker: FakeWorker, client: WorkerClient, model_file: Path) -> None:
    rude = "a\nb\u001b[2J\u202e" + "x" * 100_000
    error = {"call": "enqueue", "status": rude, "arguments": [rude], "kind": "status"}
    worker.replies["open"] = changed({"error": error})
    with pytest.raises(DriverError) as caught:
        client.open_session(open_request(model_file))
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("enqueue(a b?[2J?xxx")
    assert len(str(caught.value)) < 3000
    worker.replies["open"] = changed({"warnings": [rude]})
    assert client.open_session(open_request(model_file)).facts.warnings[0].startswith("a b?[2J?xxx")


def test_worker_that_comes_back_with_another_model_is_refused(
    worker: FakeWorker, client: WorkerClient, model_file: Path
) -> None:
    opened = client.open_session(open_request(model_file))
    worker.replies["open"] = changed({"outputs": [{"shape": [-1, OUT], "dtype": "float16"}]})
    worker.replies["run"] = lambda connection, _header, _more: connection.abort()
    with pytest.raises(SessionError):
        client.submit(opened, [rows(3, 0)]).result()
    with pytest.raises(SessionError, match="the model has other inputs or outputs than before") as caught:
        client.submit(opened, [rows(3, 0)]).result()
    line_of(caught, worker.address)


def test_answers_that_nobody_asked_for_end_the_connection(
    worker: FakeWorker, client: WorkerClient, model_file: Path
) -> None:
    """They are neither kept, which costs memory, nor taken for the answer to the next request."""

    def twice(connection: Connection, header: dict[str, Any], _more: Any) -> None:
        answer(connection, header, {})
        answer(connection, {**header, "id": header["id"] + 1}, {}, [np.full((3, OUT), 666, np.float32)])

    worker.replies["run"] = twice
    opened = client.open_session(open_request(model_file))
    for _ in range(2):
        np.testing.assert_array_equal(client.submit(opened, [rows(3, 0)]).result()[0], np.ones((3, OUT)))
        wait_until(lambda: client._link is None)


@pytest.mark.parametrize("manner", ["never", "byte by byte", "half a frame"])
def test_answer_that_does_not_come_ends_with_the_deadline(
    worker: FakeWorker, client: WorkerClient, model_file: Path, manner: str
) -> None:
    def dawdle(connection: Connection, _header: dict[str, Any], _more: Any) -> None:
        stream = connection._stream
        if manner == "half a frame":
            stream.sendall(PRELUDE.pack(b"CMW1", 400, 0) + b"{")
        for byte in PRELUDE.pack(b"CMW1", 400, 0) * 40 if manner == "byte by byte" else b"":
            stream.sendall(bytes([byte]))
            time.sleep(0.02)

    worker.replies["run"] = dawdle
    opened = client.open_session(open_request(model_file))
    client.options = dataclasses.replace(client.options, run_seconds=0.3)  # the connection keeps 20 s for a frame
    begin = time.monotonic()
    with pytest.raises(SessionError, match=r"no answer within 0\.3 s") as caught:
        client.submit(opened, [rows(3, 0)]).result()
    line_of(caught, worker.address)
    assert time.monotonic() - begin < LONG_SECONDS


def test_upload_is_answered_within_the_time_for_a_batch(worker: FakeWorker, model_file: Path) -> None:
    """Not within that of a session or a build, which may be hours."""
    worker.replies["have"] = lambda _connection, _header, _more: None
    options = WorkerOptions(address=worker.address, max_failures=1, shared_memory=False, run_seconds=0.3)
    client = WorkerClient(options)
    begin = time.monotonic()
    with pytest.raises(SessionError, match=r"no answer to 'have' within 0\.3 s"):
        client.open_session(open_request(model_file))
    assert time.monotonic() - begin < LONG_SECONDS
    client.close()


def test_closing_does_not_wait_for_a_worker_that_does_not_read(worker: FakeWorker, model_file: Path) -> None:
    stop = threading.Event()
    worker.replies["open"] = lambda connection, header, _more: (answer(connection, header, {}), stop.wait(60))  # type: ignore[func-returns-value]
    client = WorkerClient(WorkerOptions(address=worker.address, shared_memory=False, run_seconds=60))
    opened = client.open_session(open_request(model_file))
    future = client.submit(opened, [np.zeros((1 << 20, WIDTH), np.float32)])
    begin = time.monotonic()
    client.close()
    assert time.monotonic() - begin < LONG_SECONDS
    stop.set()
    with pytest.raises(SessionError, match="closed"):
        future.result()


@pytest.mark.parametrize(
    ("operation", "changes", "arrays", "message"),
    [
        ("have", {"have": ...}, None, "answer to 'have' is not as expected: Object missing required field `have`"),
        ("have", {"have": "yes"}, None, r"Expected `bool`, got `str`"),
        ("put", {"have": True}, [np.zeros(0, np.uint8)], "answer to 'put' holds 1 arrays; expected 0"),
        ("get", {}, [], "answer to 'get' holds 0 arrays; expected 1"),
        ("get", {}, [np.zeros(2, np.uint8)] * 2, "answer to 'get' holds 2 arrays; expected 1"),
        ("get", {}, [np.zeros(0, np.uint8)], r"holds uint8 \[0\]; expected uint8, 5 to 5 bytes"),
        ("get", {}, [np.zeros(1, np.uint8)], r"holds uint8 \[1\]; expected uint8, 5 to 5 bytes"),
        ("get", {}, [np.zeros(6, np.uint8)], r"holds uint8 \[6\]; expected uint8, 5 to 5 bytes"),
        ("get", {}, [np.zeros(5, np.float32)], r"holds float32 \[5\]; expected uint8, 5 to 5 bytes"),
        ("get", {}, [np.zeros((1, 5), np.uint8)], r"holds uint8 \[1, 5\]; expected uint8, 5 to 5 bytes"),
    ],
)
def test_files_that_come_or_go_wrongly_are_one_line(
    worker: FakeWorker, client: WorkerClient, model_file: Path, operation: str, changes: Any, arrays: Any, message: str
) -> None:
    worker.replies["have"] = changed({"have": False})
    worker.replies[operation] = lambda connection, header, _more: answer(connection, header, changes, arrays)

    def there_and_back(exchange: Any) -> None:
        send_file(exchange, model_file)
        fetch_file(exchange, "upload:built", model_file.with_name("fetched"), 5)

    with pytest.raises(SessionError, match=message) as caught:
        client.execute(there_and_back, 5)
    line_of(caught, worker.address)
    assert [path.name for path in model_file.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("operation", "changes", "message"),
    [
        ("info", {"emulated": ...}, "answer to 'info' is not as expected: .*`emulated`"),
        ("info", {"sdk": "1.7"}, r"Expected `object \| null`, got `str` - at `\$.sdk`"),
        ("info", {"cards": "two"}, r"Expected `int \| null`, got `str` - at `\$.cards`"),
        ("info", {"python": 3.7}, r"Expected `str`, got `float` - at `\$.python`"),
        ("build", {"bytes": ...}, "answer to 'build' is not as expected: .*`bytes`"),
        ("build", {"bytes": 10**15}, r"Expected `int` <= .* - at `\$.bytes`"),
        ("build", {"bytes": 0}, r"Expected `int` >= 1 - at `\$.bytes`"),
        ("build", {"inputs": ...}, "missing required field `inputs`"),
        ("build", {"outputs": []}, "the model has 1 inputs and 0 outputs; the graph has 1 and 1"),
        ("build", {"warnings": None}, r"Expected `array`, got `null` - at `\$.warnings`"),
        ("build", {"calibration_batches": "many"}, r"Expected `int`, got `str` - at `\$.calibration_batches`"),
        ("get", {}, "answer to 'get' holds 0 arrays; expected 1"),
    ],
)
def test_build_that_is_answered_wrongly_is_one_line(
    worker: FakeWorker, client: WorkerClient, graph: Path, tmp_path: Path, operation: str, changes: Any, message: str
) -> None:
    from clipmlu.backends.base import GraphOptions, SourceGraph
    from clipmlu.magicmind.build import build_graph
    from clipmlu.specs import Precision
    from mlu.small import tower

    worker.replies[operation] = changed(changes)
    source = SourceGraph(name="image", path=graph, tower=tower(WIDTH, OUT))
    options = GraphOptions(precision=Precision.FORCE_FLOAT32, dynamic_shape=True, batch_size=4, max_batch=16)
    with pytest.raises(ClipmluError, match=message) as caught:
        build_graph(client, source, options, tmp_path, emulated=True)
    line_of(caught, worker.address)
    assert not list(tmp_path.glob("*.mm*"))


def test_emulated_model_file_that_is_none_is_one_line(
    worker: FakeWorker, client: WorkerClient, graph: Path, tmp_path: Path
) -> None:
    from clipmlu.backends.base import GraphOptions, SourceGraph
    from clipmlu.magicmind.build import build_graph
    from clipmlu.specs import Precision
    from mlu.small import tower

    five = [np.zeros(5, np.uint8)]
    worker.replies["get"] = lambda connection, header, _more: answer(connection, header, {}, five)
    source = SourceGraph(name="image", path=graph, tower=tower(WIDTH, OUT))
    options = GraphOptions(precision=Precision.FORCE_FLOAT32, dynamic_shape=True, batch_size=4, max_batch=16)
    with pytest.raises(ClipmluError, match="was not written by the emulated") as caught:
        build_graph(client, source, options, tmp_path, emulated=True)
    line_of(caught, worker.address)


def test_build_whose_answer_stops_in_the_middle_is_not_waited_for(worker: FakeWorker) -> None:
    """A build may take hours, its answer may not."""
    start = PRELUDE.pack(b"CMW1", 400, 0) + b"{"
    worker.replies["build"] = lambda connection, _header, _more: connection._stream.sendall(start)
    client = WorkerClient(WorkerOptions(address=worker.address, max_failures=1, shared_memory=False, run_seconds=0.3))
    begin = time.monotonic()
    with pytest.raises(SessionError, match=r"it stopped for 0\.3 s in the middle of an answer") as caught:
        client.execute(lambda exchange: exchange({"op": "build"}, ()), 60)
    line_of(caught, worker.address)
    assert time.monotonic() - begin < LONG_SECONDS
    client.close()


def test_doctor_names_a_worker_that_answers_wrongly(worker: FakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipmlu.doctor import _worker_finding

    worker.replies["info"] = changed({"sdk": ["1.7"]})
    finding = _worker_finding(WorkerOptions(address=worker.address))
    assert finding.status == "problem"
    assert "answer to 'info' is not as expected: Expected `object | null`, got `array`" in finding.found


# ---- shared memory


def test_worker_cannot_cut_off_shared_memory(worker: FakeWorker, model_file: Path) -> None:
    """The kernel kills who touches memory that is no longer there: SIGBUS, no exception."""
    refused: list[str] = []

    def cut(_connection: Connection, _header: dict[str, Any], more: Any) -> None:
        for call in (lambda: os.ftruncate(more[1][0], 0), lambda: os.ftruncate(more[1][0], 1 << 30)):
            try:
                call()
            except OSError as error:
                refused.append(str(error.strerror))

    token: list[Any] = []
    worker.replies["share"] = lambda *each: (cut(*each), token.append(os.dup(each[2][1][0])))  # type: ignore[func-returns-value]

    def check(connection: Connection, header: dict[str, Any], _more: Any) -> None:
        with mmap.mmap(token[0], header["arrays"][0]["shape"][0]) as memory:
            answer(connection, header, {"token": memory[:16].hex()})

    worker.replies["check_slot"] = check
    quick = {"run_seconds": 20.0, "open_seconds": 20.0, "start_seconds": 20.0}
    client = WorkerClient(WorkerOptions(address=worker.address, max_failures=1, **quick))
    opened = client.open_session(open_request(model_file))
    np.testing.assert_array_equal(client.submit(opened, [rows(3, 0)]).result()[0], np.ones((3, OUT)))
    client.close()
    for descriptor in token:
        os.close(descriptor)
    assert refused == ["Operation not permitted"] * 4


def test_memory_whose_size_may_change_is_not_taken(capfd: pytest.CaptureFixture[str]) -> None:
    """A client that passes such memory goes on without: it finds out that nothing arrives there."""
    plain = os.memfd_create("plain")
    os.ftruncate(plain, 1 << 16)
    slot = Slot(1 << 16)
    with tempfile.TemporaryFile() as file:
        file.truncate(1 << 16)
        ours, theirs = (Connection(end) for end in socket.socketpair())
        channel = SocketChannel(theirs)
        for number, descriptor in enumerate((plain, file.fileno(), slot.descriptor), 1):
            ours.send({"op": "share", "slot": number, "size": 1 << 16}, (), (descriptor,))
        ours.send({"op": "share", "slot": 9, "size": slot.size + 1}, (), (slot.descriptor,))
        ours.send({"op": "ping"})
        assert channel.receive(True).fields["op"] == "ping"
    assert list(channel._slots) == [3]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("clipmlu worker: cannot map shared memory: ") for line in lines)
    seals = fcntl.fcntl(slot.descriptor, fcntl.F_GET_SEALS)
    assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    assert (ADD_SEALS, GET_SEALS) == (fcntl.F_ADD_SEALS, fcntl.F_GET_SEALS)
    os.close(plain)
    slot.close()
    for end in (ours, theirs):
        end.close()


def test_memory_of_a_worker_that_was_lost_is_not_used_again(worker: FakeWorker, model_file: Path) -> None:
    """It may still write into it, while another one computes the same batch."""
    passed: list[int] = []
    inodes: list[int] = []

    def keep(_connection: Connection, _header: dict[str, Any], more: Any) -> None:
        passed.append(os.dup(more[1][0]))
        inodes.append(os.fstat(passed[-1]).st_ino)

    def check(connection: Connection, header: dict[str, Any], _more: Any) -> None:
        with mmap.mmap(passed[-1], 1 << 16) as memory:
            answer(connection, header, {"token": memory[:16].hex()})

    def once(connection: Connection, header: dict[str, Any], _more: Any) -> None:
        if worker.asked.count("run") == 1:
            connection.abort()
        else:
            answer(connection, header, {})

    worker.replies.update(share=keep, check_slot=check, run=once)
    client = WorkerClient(WorkerOptions(address=worker.address, max_failures=3))
    opened = client.open_session(open_request(model_file))
    np.testing.assert_array_equal(client.submit(opened, [rows(3, 0)]).result()[0], np.ones((3, OUT)))
    client.close()
    for descriptor in passed:
        os.close(descriptor)
    assert len(set(inodes)) == 4, "two checks and two batches"
