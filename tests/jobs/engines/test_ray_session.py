"""The start of Ray and the connection to it: one line for each failure, and no folder that stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipmlu.errors import BackendUnavailableError
from clipmlu.jobs.engines import ray_session
from clipmlu.jobs.engines.options import EngineOptions
from clipmlu.jobs.engines.ray_session import open_ray

pytestmark = pytest.mark.ray
HERE = EngineOptions(engine="ray", processes=1)
STARTUP = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    return pytest.importorskip("ray", reason="needs the extra ray")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder below which Ray's temporary folder is made."""
    monkeypatch.setattr(ray_session, "_TEMPORARY", str(tmp_path))
    return tmp_path


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken but does not listen."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_that_nobody_listens_at_is_refused_at_once(ray: Any, closed_port: int, form: str) -> None:
    """Ray itself tries for more than five minutes."""
    address, started = form.format(closed_port), time.monotonic()
    with (
        pytest.raises(
            BackendUnavailableError, match=rf"^Cannot use Ray at '{address}': 127\.0\.0\.1:\d+ does not answer"
        ),
        open_ray(EngineOptions(engine="ray", ray_address=address), None),
    ):
        raise AssertionError("it was opened")
    assert time.monotonic() - started < 20


def test_a_start_that_times_out_on_a_busy_machine_is_tried_once_more(
    ray: Any, monkeypatch: pytest.MonkeyPatch, temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = []

    def init(**arguments: Any) -> None:
        folders.append(arguments["_temp_dir"])
        Path(arguments["_temp_dir"], "session").mkdir(parents=True)
        if len(folders) == 1:
            raise Exception(STARTUP)

    monkeypatch.setattr(ray, "init", init)
    with open_ray(HERE, None):
        assert len(set(folders)) == 2
        assert os.path.isdir(folders[1])
    assert list(temporary.iterdir()) == []
    [message] = [record.getMessage() for record in caplog.records if record.name.startswith("clipmlu")]
    assert message.startswith("Ray did not start (The current node timed out during startup.")


def test_a_start_that_fails_twice_is_one_line_and_leaves_nothing(
    ray: Any, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    def init(**arguments: Any) -> None:
        raise Exception(STARTUP)

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(
            BackendUnavailableError, match=r"^Cannot use Ray on this machine: The current node timed out"
        ) as info,
        open_ray(HERE, None),
    ):
        raise AssertionError("it was opened")
    assert "\n" not in str(info.value)
    assert list(temporary.iterdir()) == []


def test_a_failed_start_leaves_no_process(ray: Any, monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    daemons = []

    def init(**arguments: Any) -> None:
        command = [
            sys.executable,
            "-c",
            "import time; time.sleep(600)",
            f"--session-dir={arguments['_temp_dir']}/session",
        ]
        daemons.append(subprocess.Popen(command))
        shown = Path(f"/proc/{daemons[-1].pid}/cmdline")
        while b"--session-dir" not in shown.read_bytes():  # empty for a moment after the start
            time.sleep(0.001)
        raise Exception(STARTUP)

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(BackendUnavailableError, match="timed out"), open_ray(HERE, None):
        raise AssertionError("it was opened")
    assert [daemon.wait(timeout=10) for daemon in daemons] == [-9, -9]


def test_the_address_auto_with_a_variable_of_a_cluster_that_has_ended_is_refused_at_once(
    ray: Any, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself tries for two minutes, and then ends the process."""
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with (
        pytest.raises(
            BackendUnavailableError, match=rf"^Cannot use Ray at '127.0.0.1:{closed_port}': .* does not answer"
        ),
        open_ray(EngineOptions(engine="ray", ray_address="auto"), None),
    ):
        raise AssertionError("it was opened")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("127.0.0.1:{}", r"^Cannot use Ray at '127\.0\.0\.1:{0}': 127\.0\.0\.1:{0} does not answer"),
        (None, "^Cannot use Ray at 'auto': no cluster runs on this machine"),
    ],
)
def test_the_address_auto_after_the_end_of_the_last_cluster_is_refused_at_once(
    ray: Any, closed_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stored: str | None, message: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray._private.services, "find_gcs_addresses", set)  # of the machine: other programs may use Ray
    (tmp_path / "ray").mkdir()
    if stored is not None:
        (tmp_path / "ray" / "ray_current_cluster").write_text(stored.format(closed_port))
    with (
        pytest.raises(BackendUnavailableError, match=message.format(closed_port)),
        open_ray(EngineOptions(engine="ray", ray_address="auto"), None),
    ):
        raise AssertionError("it was opened")


def test_a_signal_during_the_start_of_ray_is_the_programs_own(
    ray: Any, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    """``ray.init`` sets a handler that would end the process with exit code 15."""
    seen: list[int] = []

    def init(**_arguments: Any) -> None:
        ray._private.utils.set_sigterm_handler(lambda *_: sys.exit(15))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    setting, earlier = ray._private.utils.set_sigterm_handler, signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with open_ray(HERE, None):
            assert seen == [1]
        assert ray._private.utils.set_sigterm_handler is setting
    finally:
        signal.signal(signal.SIGTERM, earlier)


KILLED = """
import os, signal, sys
from pathlib import Path
import ray
from clipmlu.jobs.engines import ray_session
from clipmlu.jobs.engines.options import EngineOptions

def init(**arguments):
    Path(arguments["_temp_dir"], "session").mkdir(parents=True)
    os.kill(os.getpid(), signal.SIGKILL)

ray.init = init
ray_session._TEMPORARY = sys.argv[1]
with ray_session.open_ray(EngineOptions(engine="ray"), None):
    pass
"""


def test_the_folder_of_a_killed_process_is_removed_by_the_next_one(
    ray: Any, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(temporary)], check=False)
    assert len(list(temporary.iterdir())) == 1
    monkeypatch.setattr(ray, "init", lambda **_arguments: None)
    with open_ray(HERE, None):
        assert len(list(temporary.iterdir())) == 1
    assert list(temporary.iterdir()) == []
