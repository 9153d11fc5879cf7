"""One side of a comparison in its own process: set-up, then one run for each line on stdin.

Separate processes keep thread pools apart, give every side the same cores, and allow another Python. ``SideProcess`` is
the caller's end; ``python _side.py`` is the child, which imports only the parts of clipmlu that a side needs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from _timing import Sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a side.

    Attributes:
        side: ``module:function``; the function takes the settings and returns a map from name to action.
        files: the images of one run.
        labels: the class names.
        threads: CPU threads for computing; the process is bound to as many cores.
        batch_size: images per batch.
        bundle: a bundle's directory, for sides that use one.
        work: a directory for files that a side creates and keeps.
        option: additional setting of some sides.
    """

    side: str
    files: tuple[str, ...]
    labels: tuple[str, ...]
    threads: int
    batch_size: int
    bundle: str
    work: str
    option: str = ""


Action = Callable[[], Any]


class SideError(Exception):
    """A side cannot run on this machine; the message gives the reason."""


class SideProcess:
    """A side in a child process.

    Attributes:
        name: name for tables.
        items: number of images of one run.
        setup_seconds: time to load, compile and warm up.
        answer: result of the first, untimed run: the best class of each image, or None.
        facts: further facts of the side, such as the seconds of compilation.
    """

    def __init__(self, name: str, settings: Settings, python: str = sys.executable) -> None:
        self.name = name
        self.items = len(settings.files)
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        threads = str(settings.threads)
        environment = {
            **os.environ,
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
            **dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "1"),
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._process = subprocess.Popen(
            [python, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        try:
            ready = self._ask(json.dumps(dataclasses.asdict(settings)))
        except SideError:
            self.close()
            raise
        self.setup_seconds: float = ready["seconds"]
        self.answer: Any = ready["value"]
        self.facts: dict[str, float] = ready["facts"]

    def run(self, action: str = "run") -> Sample:
        """Run once."""
        return Sample(self.items, self._ask(action)["seconds"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended: the log below has the reason
        reply = self._process.stdout.readline()
        if not reply:
            self._log.seek(0)
            last = self._log.read().strip().splitlines()[-1:] or ["no message"]
            raise SideError(f"its process ended: {last[0]}")
        answer: dict[str, Any] = json.loads(reply)
        if "error" in answer:
            raise SideError(answer["error"])
        return answer


def main() -> None:
    """Run the child: settings on the first line, then one action for each line."""
    warnings.simplefilter("ignore")
    settings = Settings(**json.loads(sys.stdin.readline()))
    # Libraries print to stdout, so the answers use a separate descriptor.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.threads])
    try:
        start = time.perf_counter()
        module, _, function = settings.side.partition(":")
        actions: dict[str, Action] = getattr(import_module(module), function)(settings)
        value = actions["run"]()  # warm-up
        facts = actions["facts"]() if "facts" in actions else {}
        _reply(channel, {"seconds": time.perf_counter() - start, "value": value, "facts": facts})
    except ModuleNotFoundError as error:
        missing = (error.name or str(error)).partition(".")[0]
        _reply(channel, {"error": f"the package '{missing}' is not installed in {sys.executable}"})
        return
    except Exception as error:  # the error is the child's answer
        text = " ".join(str(error).split())[:300]
        _reply(channel, {"error": f"{type(error).__name__}: {text}"})
        return
    for line in sys.stdin:
        action = actions[line.strip()]
        start = time.perf_counter()
        action()
        _reply(channel, {"seconds": time.perf_counter() - start})


def _reply(channel: IO[str], answer: dict[str, Any]) -> None:
    channel.write(json.dumps(answer) + "\n")
    channel.flush()


def scratch(settings: Settings, name: str) -> Path:
    """Return a path in the directory for files of the sides."""
    Path(settings.work).mkdir(parents=True, exist_ok=True)
    return Path(settings.work) / name


if __name__ == "__main__":
    # Import it by its own name, so that the sides' modules share it.
    import_module("_side").main()
