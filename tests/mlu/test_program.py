"""The worker's file: the same everywhere, told when it is old, started from nowhere, and replaced while it runs."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.errors import BackendUnavailableError
from clipmlu.magicmind.client.program import worker_digest, write_worker
from clipmlu.magicmind.client.worker_client import WorkerClient
from mlu.small import altered_worker, open_request
from mlu.test_serving import check_batches, client, serve  # noqa: F401 - fixtures, taken by name

WRITE_AGAIN = r"write it again with: clipmlu worker --write PATH, and start clipmlu_worker\.pyz in its place"


def test_digest_is_that_of_the_file(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        written = write_worker(tmp_path)
    finally:
        os.umask(before)
    digest = hashlib.sha256(written.read_bytes()).hexdigest()
    command = [sys.executable, str(written), "--info"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)["driver"]
    assert told == worker_digest() == digest
    assert written.stat().st_mode & 0o777 == 0o755


def test_program_names_what_its_interpreter_lacks(tmp_path: Path) -> None:
    written = str(write_worker(tmp_path))
    older = (
        f"import runpy, sys; sys.argv = [{written!r}, '--info']; "
        f"sys.version_info, sys.version = (3, 6, 15), '3.6.15 (default)'; runpy.run_path({written!r}, run_name='__main__')"
    )
    commands = {
        f"this program needs Python 3.7 or newer; {sys.executable} is 3.6.15": ["-c", older],
        f"this program needs NumPy, which {sys.executable} cannot import: No module named 'numpy'": ["-S", written],
    }
    for message, arguments in commands.items():
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=60, check=False
        )
        assert (done.returncode, done.stderr.strip()) == (1, message)


def test_permissions_of_a_pipe_or_device_stay(tmp_path: Path) -> None:
    """``--write /dev/null`` by root must not take the device from everybody else."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    pipe.chmod(0o666)
    with subprocess.Popen(["/bin/cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        write_worker(pipe)
        assert hashlib.sha256(reader.stdout.read()).hexdigest() == worker_digest()
    assert pipe.stat().st_mode & 0o777 == 0o666


@pytest.fixture
def former_worker(tmp_path: Path) -> Iterator[str]:
    """Greets once as ``clipmlu_worker.py`` of the version before archives did, with the digest of that file."""
    with socket.socket(socket.AF_UNIX) as listener, tempfile.TemporaryDirectory(prefix="clipmlu-test-") as folder:
        listener.bind(f"{folder}/s")
        listener.listen()
        listener.settimeout(20)

        def greet() -> None:
            stream, _ = listener.accept()
            digest = "5d41402abc4b2a76b9719d911017c592ae1b3b2c4f1a5e0f0c0d1f3b7a9e8c61"
            hello = {"clipmlu_worker": 1, "digest": digest, "nonce": "0" * 64, "auth": False, "arrays": []}
            header = json.dumps(hello).encode()
            with stream:
                stream.sendall(struct.pack("<4sIQ", b"CMW1", len(header), 0) + header)
                stream.recv(1)

        thread = threading.Thread(target=greet)
        thread.start()
        yield f"unix:{folder}/s"
        thread.join()


def test_copy_from_before_archives_is_told_to_be_old(former_worker: str, model: Path) -> None:
    worker = WorkerClient(WorkerOptions(address=former_worker))
    with pytest.raises(BackendUnavailableError) as caught:
        worker.open_session(open_request(model))
    worker.close()
    ours = worker_digest()[:12]
    assert str(caught.value) == (
        f"MagicMind worker '{former_worker}': the worker is another version of the driver ('5d41402abc4b') than ours "
        f"('{ours}'); write it again with: clipmlu worker --write PATH, and start clipmlu_worker.pyz in its place."
    )


def test_older_archive_is_told_to_be_old(serve: Any, client: Any, model: Path, tmp_path: Path) -> None:  # noqa: F811
    older = altered_worker(tmp_path, "IDLE_SECONDS = 3600.0", "IDLE_SECONDS = 1800.0")
    digest = hashlib.sha256(older.read_bytes()).hexdigest()
    served = serve("unix", file=older)
    with pytest.raises(BackendUnavailableError, match=f"another version of the driver .'{digest[:12]}'.*{WRITE_AGAIN}"):
        client(served).open_session(open_request(model))


def test_client_of_another_version_is_told_by_the_worker(serve: Any, client: Any, model: Path) -> None:  # noqa: F811
    from clipmlu.magicmind.driver.wire import Connection

    connection = Connection(serve("unix", secret=None).connect())
    assert connection.receive()[0]["digest"] == worker_digest()
    connection.send({"digest": "0" * 64, "nonce": "0" * 64})
    error = connection.receive()[0]["error"]
    connection.close()
    assert error.startswith(
        f"this worker is another version of the driver ({worker_digest()[:12]}) than the client's (000000000000)"
    )
    assert error.endswith(WRITE_AGAIN.replace("\\", ""))


def test_file_that_is_replaced_under_a_serving_worker_changes_nothing_until_it_is_started_again(
    serve: Any,  # noqa: F811
    client: Any,  # noqa: F811
    model: Path,
    tmp_path: Path,
) -> None:
    served = serve("unix")
    newer = tmp_path / "newer"
    newer.write_text("raise SystemExit('this version knows no such options')\n")
    for replace in (
        lambda: served.file.write_bytes(newer.read_bytes()),
        lambda: newer.replace(served.file),
        served.file.unlink,
    ):
        replace()
        check_batches(client(served), model, 2)
    assert "Traceback" not in served.log.read_text()


@pytest.mark.parametrize("memory", [True, False], ids=["in memory", "in a file without a name"])
def test_worker_started_here_leaves_nothing_in_any_folder(
    client_for: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bool
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "/nonexistent" if memory else str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None if memory else str(folder))
    if not memory:  # another system than Linux
        monkeypatch.delattr(os, "memfd_create")
    worker = client_for(shared_memory=memory)
    check_batches(worker, model, 3)
    assert worker._link is not None
    assert worker._link._process is not None
    os.kill(worker._link._process.pid, 9)
    check_batches(worker, model, 3)
    assert list(folder.iterdir()) == []
