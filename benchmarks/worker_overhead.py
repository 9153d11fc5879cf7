"""The cost of keeping the SDK in a worker: one batch of 32 images there and in this process.

    python benchmarks/worker_overhead.py [--rounds N] [--latency-ms MS]

The graph is tiny (a mean over each image, then a small matrix), so that the transfer of the pixels dominates: 32 x 3 x
224 x 224 float32, 19.3 MB. The SDK is the emulated one; no figure was measured on a card. The variants alternate within
each round; the table gives medians, and the paired difference to this process.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.bundle.manifest import Tower
from clipmlu.magicmind.backend import emulated_worker, load_emulated_sdk
from clipmlu.magicmind.client.local import LocalPeer
from clipmlu.magicmind.client.peer import OpenRequest, Peer
from clipmlu.magicmind.client.program import write_worker
from clipmlu.magicmind.client.worker_client import WorkerClient
from clipmlu.magicmind.emulator import NOTICE
from clipmlu.specs import TensorSpec

BATCH, SIDE, DIM = 32, 224, 512
WARM_UP = 5


def write_graph(path: Path) -> None:
    """Write a graph: a mean over each channel, then a matrix of 3 x DIM."""
    weight = np.random.default_rng(0).standard_normal((3, DIM)).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], name="mean", axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"], name="project"),
    ]
    graph = helper.make_graph(
        nodes,
        "overhead",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [BATCH, DIM])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), str(path))


def build(peer: Peer, folder: Path) -> Path:
    """Build the graph; every variant runs the same file."""
    write_graph(folder / "graph.onnx")
    spec: dict[str, Any] = {
        "onnx": str(folder / "graph.onnx"),
        "output": str(folder / "graph.mm"),
        "precision": "force_float32",
        "archs": {"mtp_372": []},
        "mutable": False,
        "inputs": [{"shape": [BATCH, 3, SIDE, SIDE]}],
    }
    peer.execute(lambda exchange: exchange({"op": "build", "spec": spec}, ()), 60)
    return folder / "graph.mm"


@contextmanager
def served_over_tcp(folder: Path, settings: dict[str, Any]) -> Iterator[WorkerOptions]:
    """Yield a worker that listens on this host, like one on another host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp:127.0.0.1:{probe.getsockname()[1]}"
    secret = folder / "secret"
    secret.touch(0o600)  # the worker refuses a secret that everybody may read
    secret.write_text(os.urandom(16).hex())
    command = [sys.executable, str(write_worker(folder)), "--serve", address, "--secret-file", str(secret)]
    log = folder / "served.log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=emulated_worker(**settings).environment, stderr=stream)
    try:
        while "serving on" not in log.read_text():
            time.sleep(0.02)
        yield WorkerOptions(address=address, secret_file=str(secret))
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="time that the emulated card spends on a batch")
    options = parser.parse_args()
    os.environ["CLIPMLU_EMULATOR_LATENCY_MS"] = str(options.latency_ms)
    os.environ["CLIPMLU_EMULATOR_THREADS"] = "1"
    settings = {"latency_ms": options.latency_ms, "threads": 1}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers: dict[str, Peer] = {"this process": LocalPeer(load_emulated_sdk)}
        model = build(peers["this process"], folder)
        peers["worker, shared memory"] = WorkerClient(emulated_worker(**settings))
        peers["worker, socket"] = WorkerClient(
            WorkerOptions(
                python=sys.executable, environment=emulated_worker(**settings).environment, shared_memory=False
            )
        )
        served = stack.enter_context(served_over_tcp(folder, settings))
        peers["worker, TCP on this host"] = WorkerClient(served)
        for peer in peers.values():
            stack.callback(peer.close)
        ends = [
            TensorSpec(name="x", dtype="float32", shape=(BATCH, 3, SIDE, SIDE)),
            TensorSpec(name="y", dtype="float32", shape=(BATCH, DIM)),
        ]
        tower = Tower(file=model.name, inputs=(ends[0],), outputs=(ends[1],))
        request = OpenRequest(model=model, tower=tower, ranges=(((BATCH, 3, SIDE, SIDE),) * 2,))
        runs = {name: _runner(peer, request) for name, peer in peers.items()}
        batch = np.random.default_rng(1).standard_normal((BATCH, 3, SIDE, SIDE), dtype=np.float32)
        one = _measure(runs, options.rounds, lambda run: run(batch, 1))
        two = _measure(runs, max(1, options.rounds // 10), lambda run: run(batch, 10))
    print(f"{NOTICE}; {options.latency_ms:g} ms added to each batch")
    print(f"{'':26}  one batch at a time, ms  {'':10}  ten batches, two or more in flight, ms per batch")
    print(f"{'':26}  {'median':>8} {'p90':>8} {'difference':>12}    {'median':>8} {'difference':>12}")
    for name in runs:
        ones, twos = one[name], [each / 10 for each in two[name]]
        extra_one = statistics.median(a - b for a, b in zip(ones, one["this process"], strict=True))
        extra_two = statistics.median((a - b) / 10 for a, b in zip(two[name], two["this process"], strict=True))
        p90 = statistics.quantiles(ones, n=10)[-1]
        print(
            f"{name:26}  {statistics.median(ones):8.2f} {p90:8.2f} {extra_one:+12.2f}"
            f"    {statistics.median(twos):8.2f} {extra_two:+12.2f}"
        )


Run = Callable[[Any, int], None]


def _runner(peer: Peer, request: OpenRequest) -> Run:
    opened = peer.open_session(request)

    def run(batch: Any, count: int) -> None:
        for future in [peer.submit(opened, [batch]) for _ in range(count)]:
            future.result()

    return run


def _measure(runs: dict[str, Run], rounds: int, action: Callable[[Run], None]) -> dict[str, list[float]]:
    """Return milliseconds of each variant in each round; the variants alternate in changing order."""
    names = list(runs)
    for name in names:
        for _ in range(WARM_UP):
            action(runs[name])
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            action(runs[name])
            times[name].append((time.perf_counter() - start) * 1000)
    return times


if __name__ == "__main__":
    main()
