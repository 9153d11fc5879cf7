"""The driver in a process of its own: whatever happens to it, each batch is answered once and in order."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmlu.errors import BackendUnavailableError, SessionError
from clipmlu.magicmind.client.worker_client import WorkerClient
from clipmlu.magicmind.driver.errors import DriverError
from mlu.small import altered_worker, children, open_request, reference, rows, worker_options
from support import wait_until

ClientFor = Callable[..., WorkerClient]


def run_all(
    client: WorkerClient, model: Path, count: int, ahead: int = 4, after: Callable[[int], None] = lambda _results: None
) -> list[Any]:
    """Send ``count`` batches, a few ahead; check each result and the order in which they come.

    ``after`` is called with the number of results so far, while a few batches are on their way.
    """
    opened = client.open_session(open_request(model))
    done: list[int] = []
    pending = []
    results = []
    for seed in range(count):
        future = client.submit(opened, [rows(1 + seed % 7, seed)])
        future.add_done_callback(lambda _future, seed=seed: done.append(seed))
        pending.append(future)
        if len(pending) > ahead:
            results.append(pending.pop(0).result()[0])
            after(len(results))
    results += [future.result()[0] for future in pending]
    for seed, result in enumerate(results):
        np.testing.assert_allclose(result, reference(rows(1 + seed % 7, seed)), atol=1e-6)
    assert done == list(range(count)), "once each, and in order"
    return results


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("shared_memory", [True, False])
def test_many_batches(client_for: ClientFor, model: Path, shared_memory: bool) -> None:
    client = client_for(shared_memory=shared_memory)
    run_all(client, model, 60)
    assert client._shares_memory is shared_memory
    assert client.restarts == 0


FAULTS = {
    "enqueue:5:crash": (2, 20),
    "sync:4:crash": (2, 20),
    "from_numpy:4:crash": (2, 20),
    "create_i_context:2:crash": None,
    "enqueue:5:device_lost": (2, 20),
    "sync:4:device_lost": (2, 20),
    "enqueue:4:nan": (0, 0),
    "enqueue:8:nan,enqueue:9:nan": (0, 8),
}
"""Fault -> fewest and most restarts; None: the fault would strike each time."""
REPEATS = ("sync:4:crash", "from_numpy:4:crash", "enqueue:5:device_lost")
"""Three seconds each; others like them stay."""
SOCKET_TOO = ("enqueue:4:nan",)


@pytest.mark.parametrize(
    ("fault", "shared_memory"),
    [
        *(pytest.param(fault, True, marks=pytest.mark.slow if fault in REPEATS else ()) for fault in FAULTS),
        *(pytest.param(fault, False, marks=() if fault in SOCKET_TOO else pytest.mark.slow) for fault in FAULTS),
    ],
)
def test_worker_that_dies_is_replaced_and_its_batches_are_sent_again(
    client_for: ClientFor,
    model: Path,
    tmp_path: Path,
    fault: str,
    shared_memory: bool,
) -> None:
    settings = {"faults": fault}
    restarts = FAULTS[fault]
    if restarts is None:  # once is enough
        settings["fault_log"] = str(tmp_path / "faults.log")
        restarts = (1, 1)
    client = client_for(emulator=settings, shared_memory=shared_memory)
    run_all(client, model, 9)
    assert restarts[0] <= client.restarts <= restarts[1]


@pytest.mark.parametrize(
    "fault",
    ["enqueue:4:hang", *(pytest.param(f, marks=pytest.mark.slow) for f in ("sync:6:hang", "from_numpy:5:hang"))],
)
def test_worker_that_hangs_is_ended_and_replaced(
    client_for: ClientFor, model: Path, tmp_path: Path, fault: str
) -> None:
    settings = {"faults": fault, "fault_log": str(tmp_path / "faults.log")}
    client = client_for(emulator=settings, run_seconds=3.0)
    run_all(client, model, 12)
    assert client.restarts == 1


def test_worker_killed_from_outside_again_and_again(client_for: ClientFor, model: Path) -> None:
    client = client_for(emulator={"latency_ms": 5})

    def kill(results: int) -> None:
        if results in (3, 9):
            assert client._link is not None
            assert client._link._process is not None
            os.kill(client._link._process.pid, signal.SIGKILL)

    run_all(client, model, 20, after=kill)
    assert client.restarts == 2


@pytest.mark.parametrize(
    "garbage",
    [
        "os.write(self._connection.fileno(), b'no frame at all, but long enough to be read as one')",
        "arrays = [a.astype('float64') for a in arrays]",
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in (  # those and more of them, without a process: test_answers.py
                "request.fields['id'] = 12345",
                "self._connection.send({'id': request.fields.get('id'), 'arrays': [{'dtype': 'float32', 'shape': [9, 9], 'offset': 0}]})",
                "fields = {'error': 'no object'}",
                "arrays = []",
                "self._connection.send({'id': request.fields.get('id'), 'arrays': [{'dtype': 'object', 'shape': [1], 'offset': 0}]})",
                "self._connection.send({'id': request.fields.get('id'), 'arrays': 7})",
            )
        ),
    ],
)
def test_garbage_ends_the_worker_and_costs_nothing(
    client_for: ClientFor, model: Path, tmp_path: Path, garbage: str
) -> None:
    flag = tmp_path / "happened"
    old = '        header = {**fields, "id": request.fields.get("id")}\n'
    planted = (
        "        import os\n"
        "        global COUNT\n"
        "        COUNT = globals().get('COUNT', 0) + (request.fields.get('op') == 'run')\n"
        f"        if COUNT == 5 and not os.path.exists({str(flag)!r}):\n"
        f"            open({str(flag)!r}, 'w').close()\n"
        f"            {garbage}\n" + old
    )
    client = client_for(driver=altered_worker(tmp_path, old, planted))
    run_all(client, model, 20)
    assert flag.exists()
    assert client.restarts == 1


def test_repeated_failure_is_told_with_the_end_of_the_log(client_for: ClientFor, model: Path, tmp_path: Path) -> None:
    old = '        self.outputs = []\n        checked("enqueue"'
    new = (
        '        print("CNRT error: 0x1234 in the vendor\'s log", file=sys.stderr, flush=True)\n        os.abort()\n'
        + old
    )
    client = client_for(driver=altered_worker(tmp_path, old, new), max_failures=2)
    opened = client.open_session(open_request(model))
    futures = [client.submit(opened, [rows(2, seed)]) for seed in range(3)]
    for future in futures:
        with pytest.raises(
            SessionError, match=r"(?s)failed 2 times in a row: 1\. .*killed by SIGABRT.*2\. .*CNRT error: 0x1234"
        ):
            future.result()


def test_after_giving_up_the_next_batch_is_tried_again(client_for: ClientFor, model: Path, tmp_path: Path) -> None:
    old = '        self.outputs = []\n        checked("enqueue"'
    new = "        if feeds[0].flat[0] == 666:\n            os.abort()\n" + old
    client = client_for(driver=altered_worker(tmp_path, old, new), max_failures=2)
    opened = client.open_session(open_request(model))
    poison = rows(2, 0)
    poison[0, 0] = 666
    with pytest.raises(SessionError, match="failed 2 times in a row"):
        client.submit(opened, [poison]).result()
    np.testing.assert_allclose(client.submit(opened, [rows(2, 1)]).result()[0], reference(rows(2, 1)), atol=1e-6)


def test_error_of_one_batch_does_not_touch_the_others(
    client_for: ClientFor, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client = client_for(emulator={"faults": "enqueue:3:status"})
    opened = client.open_session(open_request(model))
    futures = [client.submit(opened, [rows(2 if seed != 5 else 99, seed)]) for seed in range(8)]
    for seed, future in enumerate(futures):
        if seed in (2, 5):
            with pytest.raises(DriverError) as caught:
                future.result()
            assert caught.value.kind == ("status" if seed == 2 else "shape")
        else:
            np.testing.assert_allclose(future.result()[0], reference(rows(2, seed)), atol=1e-6)
    assert client.restarts == 0
    assert capfd.readouterr().err == ""  # the worker's log stays with the worker


def test_several_sessions_survive_a_restart(client_for: ClientFor, model: Path) -> None:
    client = client_for()
    sessions = [client.open_session(open_request(model)) for _ in range(3)]
    for round_number in range(2):
        futures = [client.submit(each, [rows(3, number)]) for number, each in enumerate(sessions)]
        for number, future in enumerate(futures):
            np.testing.assert_allclose(future.result()[0], reference(rows(3, number)), atol=1e-6)
        assert client._link is not None
        process = client._link._process
        assert process is not None
        if round_number == 0:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    client.close_session(sessions[0])
    with pytest.raises(DriverError, match="no session"):
        client.submit(sessions[0], [rows(1, 0)]).result()


def test_idle_worker_ends_and_comes_back(client_for: ClientFor, model: Path) -> None:
    client = client_for(idle_seconds=1.0)
    before = children()
    opened = client.open_session(open_request(model))
    wait_until(lambda: client._link is None)
    wait_until(lambda: children() == before)
    np.testing.assert_allclose(client.submit(opened, [rows(2, 1)]).result()[0], reference(rows(2, 1)), atol=1e-6)
    assert client.restarts == 0


def test_absent_interpreter_and_absent_sdk_are_told(model: Path) -> None:
    options = dataclasses.replace(worker_options(), python="/nowhere/python3.7")
    client = WorkerClient(options)
    with pytest.raises(BackendUnavailableError, match=r"Cannot start the MagicMind worker with '/nowhere/python3\.7'"):
        client.open_session(open_request(model))
    client.close()
    client = WorkerClient(dataclasses.replace(worker_options(), environment=dict(os.environ)))
    with pytest.raises(DriverError, match="No module named 'magicmind'") as caught:
        client.open_session(open_request(model))
    assert caught.value.kind == "import"
    client.close()


def test_program_that_is_no_worker_is_told(model: Path) -> None:
    client = WorkerClient(dataclasses.replace(worker_options(), python="/bin/false", max_failures=2))
    with pytest.raises(BackendUnavailableError, match=r"failed 2 times in a row: 1\. it does not greet"):
        client.open_session(open_request(model))
    client.close()


def test_closing_fails_what_is_in_flight_and_refuses_more(client_for: ClientFor, model: Path) -> None:
    client = client_for(emulator={"faults": "enqueue:1:hang"})
    opened = client.open_session(open_request(model))
    future = client.submit(opened, [rows(1, 0)])
    client.close()
    with pytest.raises(SessionError, match="closed"):
        future.result()
    with pytest.raises(SessionError, match="closed"):
        client.submit(opened, [rows(1, 0)])


def _shared_memory_files() -> set[str]:
    """Names in /dev/shm, without the semaphores of multiprocessing, which other tests use at the same time."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.mp-")}


def test_nothing_is_left_when_the_main_process_is_killed(model: Path, tmp_path: Path) -> None:
    """Not even with a worker that hangs in the SDK, and no file in shared memory."""
    before = _shared_memory_files()
    script = tmp_path / "main.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from mlu.small import altered_worker, open_request, rows, worker_options\n"
        "from clipmlu.magicmind.client.worker_client import WorkerClient\n"
        "client = WorkerClient(worker_options(emulator={'faults': 'from_numpy:2:hang'}))\n"
        f"opened = client.open_session(open_request(Path({str(model)!r})))\n"
        "client.submit(opened, [rows(1, 0)]).result()\n"
        "client.submit(opened, [rows(1, 0)])\n"
        "time.sleep(0.5)\n"
        "print(client._link._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as main:
        assert main.stdout is not None
        worker = int(main.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        main.kill()
    wait_until(lambda: not Path(f"/proc/{worker}").exists())
    assert _shared_memory_files() == before


def test_interrupted_client_does_not_wait_for_a_worker_that_hangs(client_for: ClientFor, model: Path) -> None:
    """Closing asks a worker with nothing to do to end by itself, for up to five seconds; one that hangs is ended."""
    client = client_for(emulator={"faults": "sync:1:hang"})
    opened = client.open_session(open_request(model))
    future = client.submit(opened, [rows(1, 0)])
    time.sleep(0.3)
    assert client._link is not None
    process = client._link._process
    assert process is not None
    client.close_session(opened)
    client.close()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(SessionError, match="closed"):
        future.result()
