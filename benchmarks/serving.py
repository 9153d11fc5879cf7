"""The server under load, with JPEGs as the bodies of its requests.

    python benchmarks/serving.py [BUNDLE] [--quick] [--rounds N] [--json FILE]

BUNDLE is a compiled one; without it ViT-B/32 with random weights is compiled for the fastest CPU target, and with ``--quick`` the
demo model. locust (https://locust.io) sends the requests to ``/v1/classify`` of a server that is started on loopback; it is installed
once into an environment of its own in ``--work``. The load is bounded in time and in number, and client and server share the
cores.

1. Sustained rate: clients that send one image after the other, in alternation with ``classifier.predict`` on the same files in this
   process (offline).
2. One client alone, and half of the sustained rate at random times: latencies.
3. Three times the sustained rate at random times: latency of the accepted requests, share of refused ones, and half of the
   rate again directly afterwards.
4. Memory (PSS) of a server of the demo model over many requests with small images.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _bundles import DEFAULT_WORK, cpu_targets, obtain_demo, obtain_exported
from _images import obtain_images
from _memory import descendants, pss_kib
from _progress import note
from _timing import print_machine, print_table, write_json
from PIL import Image

import clipmlu

LOCUST = "locust==2.47.0"
LABELS = [f"class {number}" for number in range(100)]
FILES = 256
_RAMP_S = 2.0  # connections are opened, and batches are not yet full
_MOST_USERS = 512
_TICKS = os.sysconf("SC_CLK_TCK")


class Plan(NamedTuple):
    """How long the parts run.

    Attributes:
        rounds: rounds of the sustained rate.
        seconds: seconds of each part.
        requests: requests of the memory test.
        memory_s: seconds after which it ends in any case.
    """

    rounds: int
    seconds: float
    requests: int
    memory_s: float


FULL = Plan(3, 14.0, 100_000, 230.0)
QUICK = Plan(1, 5.0, 4_000, 12.0)


class Load(NamedTuple):
    """The requests of one run of locust after its first seconds: for each the start, the answer, both in seconds, and the status."""

    records: list[tuple[float, float, int]]
    seconds: float

    @property
    def accepted(self) -> list[float]:
        """Latencies of the answered requests in milliseconds."""
        return sorted((end - start) * 1e3 for start, end, status in self.records if status == 200)

    @property
    def rate(self) -> float:
        """Answered requests per second."""
        return len(self.accepted) / self.seconds

    def count(self, *statuses: int) -> int:
        """Return the number of requests with one of these statuses."""
        return sum(status in statuses for _start, _end, status in self.records)

    def facts(self) -> dict[str, Any]:
        """Return the figures of the run."""
        latencies = self.accepted or [float("nan")]
        answers = self.count(200), self.count(429)
        return {
            "requests": len(self.records),
            "answered_per_second": round(self.rate, 2),
            "p50_ms": round(statistics.median(latencies), 2),
            "p99_ms": round(latencies[len(latencies) * 99 // 100], 2),
            "max_ms": round(latencies[-1], 2),
            "refused_share": round(answers[1] / max(1, len(self.records)), 4),
            "errors": len(self.records) - sum(answers),
        }


class Locust:
    """Runs locust in an environment of its own.

    Args:
        work: folder of the environment and of results.
        url: the server.
        files: the images.
    """

    def __init__(self, work: Path, url: str, files: Sequence[Path]) -> None:
        self._python = _locust_python(work)
        self._output = work / "serving-requests.json"
        self._url = url
        self._files = [str(path) for path in files]

    def run(self, users: int, seconds: float, rate: float | None = None, requests: int | None = None) -> Load:
        """Send requests.

        Args:
            users: clients at a time.
            seconds: seconds of the run.
            rate: requests per second of all clients, at random times; None for one after the other.
            requests: the run ends after so many.
        """
        plan = {
            "path": "/v1/classify",
            "images": self._files,
            "rate": None if rate is None else rate / users,
            "requests": requests,
            "output": str(self._output),
        }
        self._output.unlink(missing_ok=True)
        script = Path(__file__).with_name("_serving_load.py")
        command = [str(self._python), "-m", "locust", "-f", str(script), "--headless", "--only-summary"]
        command += ["-u", str(users), "-r", str(users), "-H", self._url, "-t", f"{seconds:.0f}s", "-L", "ERROR"]
        environment = {**os.environ, "SERVING_LOAD": json.dumps(plan)}
        _settle(f"{self._url}{plan['path']}", Path(self._files[0]))
        with self._output.with_suffix(".log").open("wb") as log:
            subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=seconds + 90, check=False)
        records = [(start, end, status) for start, end, status in json.loads(self._output.read_text())]
        if not records:
            raise SystemExit(
                f"no request was answered: see {self._output.with_suffix('.log')} and the server's log beside it"
            )
        begin = min(start for start, _end, _status in records)
        ramp = min(_RAMP_S, seconds / 3)
        kept = [record for record in records if begin + ramp <= record[1] <= begin + seconds]
        return Load(kept, min(seconds, max(end for _start, end, _status in records) - begin) - ramp)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="where things are made and kept")
    parser.add_argument("--exported", type=Path, help="exported ViT-B-32 to compile; made if left out")
    parser.add_argument("--quick", action="store_true", help="a minute, with the demo model")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    plan = QUICK if given.quick else FULL
    plan = plan._replace(rounds=given.rounds or plan.rounds)
    given.work.mkdir(parents=True, exist_ok=True)
    demo = obtain_demo(given.work)
    bundle = given.bundle or (demo if given.quick else _compiled(given))
    files = obtain_images(given.work / "serving-jpegs", FILES)
    print_machine()
    results = {
        "bundle": str(bundle),
        **_measure(bundle, files, given.work, plan),
        "memory": _memory(demo, given.work, plan),
    }
    _print(results)
    write_json(given.json, {"benchmark": "serving", **results})


def _measure(bundle: Path, files: Sequence[Path], work: Path, plan: Plan) -> dict[str, Any]:
    with clipmlu.load(bundle, busy_wait=False) as model, _server(bundle, work) as (url, pid):
        classifier = model.classifier(LABELS, cache=False)
        users = min(3 * model.batch_size, 128)
        locust = Locust(work, url, files)
        offline, sustained, costs = [], [], []
        for number in range(plan.rounds):
            offline.append(_offline(classifier, files, plan.seconds - _RAMP_S))
            before = _cpu_seconds(pid)
            load = locust.run(users, plan.seconds)
            costs.append((_cpu_seconds(pid) - before) / max(1, len(load.accepted)) * (1 - _RAMP_S / plan.seconds))
            sustained.append(load)
            note(f"round {number + 1}: offline {offline[-1]:.1f}, served {load.rate:.1f} images/s")
        rate = statistics.median(load.rate for load in sustained)
        alone = locust.run(1, plan.seconds)
        half = locust.run(min(64, users), plan.seconds, rate / 2)
        note("three times the sustained rate")
        over = locust.run(_MOST_USERS, plan.seconds, 3 * rate)
        after = locust.run(min(64, users), plan.seconds, rate / 2)
        return {
            "users": users,
            "offline_images_per_second": offline,
            "sustained_images_per_second": [load.rate for load in sustained],
            "share_of_offline": statistics.median(
                load.rate / own for load, own in zip(sustained, offline, strict=True)
            ),
            "server_core_ms_per_image": statistics.median(costs) * 1e3,
            "sustained": sustained[-1].facts(),
            "alone": alone.facts(),
            "half": half.facts(),
            "overload": {"sent_per_second": round(3 * rate, 1), **over.facts()},
            "afterwards": after.facts(),
        }


def _memory(demo: Path, work: Path, plan: Plan) -> dict[str, Any]:
    """Send many small images to a server of the demo model, and watch its memory."""
    files = _small_images(work / "serving-small")
    with _server(demo, work) as (url, pid):
        locust = Locust(work, url, files)
        locust.run(16, 3.0)  # what the first requests allocate
        samples: list[tuple[float, int]] = []
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(1.0):
                samples.append((time.perf_counter(), sum(map(pss_kib, descendants(pid)))))

        first = sum(map(pss_kib, descendants(pid)))
        thread = threading.Thread(target=watch)
        thread.start()
        try:
            load = locust.run(16, plan.memory_s, requests=plan.requests)
        finally:
            stop.set()
            thread.join()
        late = samples[len(samples) // 2 :]
        slope = statistics.linear_regression(*zip(*late, strict=True)).slope if len(late) > 1 else 0.0
        return {
            **load.facts(),
            "first_mib": first / 1024,
            "last_mib": samples[-1][1] / 1024,
            "peak_mib": max(memory for _moment, memory in samples) / 1024,
            "kib_per_1000_requests": slope / max(load.rate, 1e-9) * 1000,
        }


def _offline(classifier: Any, files: Sequence[Path], seconds: float) -> float:
    """Return the images per second of ``predict`` from files, for at least so many seconds."""
    classifier.predict(files[:64])
    begun, images = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        images += len(classifier.predict(files))
    return images / (time.perf_counter() - begun)


@contextlib.contextmanager
def _server(bundle: Path, work: Path) -> Iterator[tuple[str, int]]:
    """Serve a bundle on a free port; gives URL and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "clipmlu", "serve", str(bundle), "--labels", ",".join(LABELS), "--port", str(port)]
    log = work / "serving.log"
    with log.open("wb") as stream, subprocess.Popen(command, stderr=stream, stdout=stream) as process:
        try:
            _wait(url, process, log)
            yield url, process.pid
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def _settle(url: str, file: Path) -> None:
    """Wait until the server has answered what earlier runs sent, and one image more."""
    request = urllib.request.Request(url, file.read_bytes(), {"Content-Type": "image/jpeg"})  # noqa: S310
    for _attempt in range(60):
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=60):  # noqa: S310
            return
        time.sleep(0.5)  # it is still busy
    raise SystemExit("the server does not answer a single image")


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _attempt in range(600):
        if process.poll() is not None:
            raise SystemExit(f"the server did not start: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/ready", timeout=5):  # noqa: S310
            return
        time.sleep(0.1)
    raise SystemExit("the server did not answer within a minute")


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of those below it."""
    total = 0
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def _locust_python(work: Path) -> Path:
    python = work / "locust" / "bin" / "python"
    if not python.exists():
        note(f"installing {LOCUST}")
        venv.create(work / "locust", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", LOCUST], check=True)
    return python


def _compiled(given: argparse.Namespace) -> Path:
    target = "openvino" if "openvino" in cpu_targets() and _is_installed("openvino") else "cpu"
    path: Path = given.work / f"serving-{target}"
    if not path.exists():
        exported = obtain_exported(given)
        note(f"compiling for {target}")
        # With random weights all images have nearly the same result, so agreement has no meaning.
        options = clipmlu.CompileOptions(
            target=target, batch_size=32, dynamic_shape=True, min_cosine=-1.0, min_agreement=0.0
        )
        clipmlu.compile_bundle(exported, path, options)
    return path


def _is_installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def _small_images(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.jpg" for number in range(16)]
    for number, path in enumerate(paths):
        Image.effect_noise((64, 64), 20 + number).convert("RGB").save(path, quality=85)
    return paths


def _print(results: dict[str, Any]) -> None:
    offline, served = (statistics.median(results[f"{name}_images_per_second"]) for name in ("offline", "sustained"))
    print(
        f"offline {offline:.1f} images/s, served {served:.1f} images/s with {results['users']} clients: "
        f"{results['share_of_offline']:.3f} of offline; the server uses {results['server_core_ms_per_image']:.1f} core-ms an image\n"
    )
    names = {
        "sustained": "as fast as it answers",
        "alone": "one client alone",
        "half": "half of that, at random times",
        "overload": f"three times that ({results['overload']['sent_per_second']:.0f}/s)",
        "afterwards": "half again, directly afterwards",
        "memory": "small images, demo model",
    }
    keys = ("requests", "answered_per_second", "p50_ms", "p99_ms", "max_ms", "refused_share", "errors")
    print_table(
        ["load", "requests", "answered/s", "p50 ms", "p99 ms", "max ms", "refused (429)", "other errors"],
        [(text, *(results[name][key] for key in keys)) for name, text in names.items()],
    )
    memory = results["memory"]
    print(
        f"\nMemory of the server over {memory['requests']:,} requests: {memory['first_mib']:.1f} MiB at the beginning, "
        f"{memory['last_mib']:.1f} at the end, {memory['peak_mib']:.1f} at most; "
        f"in the second half {memory['kib_per_1000_requests']:+.1f} KiB per 1,000 requests."
    )


if __name__ == "__main__":
    main()
