"""The speed of a bundle behind a server: the load scenarios through HTTP, with image files as the queries."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clipmlu.backends import get_backend
from clipmlu.backends.provenance import provenance_of
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.errors import InputError, OptionError, SessionError, reason_of
from clipmlu.files.read import read_small_file
from clipmlu.measure.machine import children_peak_memory_bytes, describe_machine
from clipmlu.measure.speed.http import HttpClient, ServedGraph, model_route, parse_server_url
from clipmlu.measure.speed.loads import ScenarioResult, SpeedOptions, measure_scenario
from clipmlu.measure.speed.speed import SpeedReport, TowerSpeed, image_files
from clipmlu.specs import TowerName
from clipmlu.steps import StartStep, no_steps

MOST_REQUESTS = 128
"""Largest number of requests at a time, and so of threads and connections of the client."""
_MOST_FILES = 512
_MOST_BYTES = 512 * 2**20
_LOCAL = ("batch_size", "threads", "devices", "workers")


class Server(NamedTuple):
    """A running server.

    Attributes:
        url: its URL.
        name: name of the model that it serves.
        headers: headers of every request, such as an API key.
        start_s: seconds from its start to its first answer; 0 if it ran before.
    """

    url: str
    name: str
    headers: Mapping[str, str]
    start_s: float = 0.0


def measure_served(
    bundle: CompiledBundle,
    server: Server,
    options: SpeedOptions,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
) -> SpeedReport:
    """Measure the image tower of a bundle that a server serves.

    Every query is one HTTP request; latencies end with the whole answer. Offline and in the server scenario each request holds
    one image, in multi-stream ``queries_per_stream`` images, and three batches of requests run at a time (at most
    ``MOST_REQUESTS``).

    Args:
        bundle: the bundle, which the server must serve.
        server: the server.
        options: options of the measurement; those of a pipeline in this process may not be set.
        on_note: called with a line for the user before each scenario.
        on_step: begins each scenario; see ``clipmlu.steps``.

    Raises:
        OptionError: the URL is none, or an option is the server's own.
        SessionError: the server does not answer, or serves another bundle.
        InputError: an image cannot be read.
    """
    check_served_options(options)
    with HttpClient(parse_server_url(server.url), server.headers) as client, image_files(options) as files:
        _check_served(client, server.name, bundle)
        graph = ServedGraph(client, server.name, _read(files))
        start = time.perf_counter()
        graph.submit(0, 1).result()
        first_s = time.perf_counter() - start
        requests = min(MOST_REQUESTS, 3 * bundle.compilation.batch_size)
        results = tuple(_measure(graph, options, requests, on_note, on_step))
    return _report(bundle, server, first_s, requests, results)


def check_served_options(options: SpeedOptions) -> None:
    """Check that options can be measured through HTTP.

    Raises:
        OptionError: another graph than the image tower, or an option of a pipeline in this process.
    """
    if options.tower not in (None, "image"):
        raise OptionError(f"tower is '{options.tower}'; through http the image tower is measured; leave tower out")
    defaults = {field.name: field.default for field in dataclasses.fields(SpeedOptions)}
    for name in _LOCAL:
        if getattr(options, name) != defaults[name]:
            raise OptionError(
                f"{name.replace('_', ' ')} is the server's own; leave it out, or give it to clipmlu serve"
            )


def _measure(
    graph: ServedGraph, options: SpeedOptions, requests: int, on_note: Callable[[str], None], on_step: StartStep
) -> Iterator[ScenarioResult]:
    at_once = dataclasses.replace(options, in_flight=requests)
    for scenario in options.scenarios:
        on_note(f"measuring requests with images, {scenario}")
        images = options.queries_per_stream if scenario == "multi-stream" else 1
        with on_step(f"requests with images, {scenario}"):
            yield measure_scenario([graph], "image", scenario, images, at_once, on_step=on_step)


def _check_served(client: HttpClient, name: str, bundle: CompiledBundle) -> None:
    found = client.get(model_route(name))
    parameters = found.get("parameters") if isinstance(found, dict) else None
    digest = parameters.get("bundle_digest") if isinstance(parameters, dict) else None
    if digest != bundle.digest:
        other = "does not say which bundle that is" if digest is None else f"has the digest {str(digest)[:12]}"
        raise SessionError(
            f"Model '{name}' of server '{client.address.url}' {other}; expected bundle '{bundle.path}' "
            f"({bundle.digest[:12]}). Start the server with this bundle, or give the bundle that it serves."
        )


def _read(files: Sequence[Path]) -> list[bytes]:
    contents: list[bytes] = []
    for path in files[:_MOST_FILES]:
        try:
            contents.append(read_small_file(path))
        except OSError as error:
            raise InputError(f"Cannot read image '{path}': {reason_of(error)}") from error
        if sum(map(len, contents)) > _MOST_BYTES:
            break
    return contents


def _report(
    bundle: CompiledBundle, server: Server, first_s: float, requests: int, results: tuple[ScenarioResult, ...]
) -> SpeedReport:
    tower: TowerName = "image"
    placement = bundle.compilation.placement(tower)
    return SpeedReport(
        provenance=provenance_of(bundle, (0,)),
        transport="http",
        dynamic_shape=bundle.compilation.dynamic_shape,
        batch_size=bundle.compilation.batch_size,
        threads=0,
        in_flight=requests,
        open_s=server.start_s,
        towers=(
            TowerSpeed(
                tower=tower,
                target=placement.target,
                precision=placement.precision,
                kernels=get_backend(placement.backend).kernels(placement.precision),
                emulated=placement.emulated,
                load_s=0.0,
                first_batch_s=first_s,
                scenarios=results,
            ),
        ),
        pipeline=None,
        peak_memory_bytes=None,
        worker_peak_memory_bytes=children_peak_memory_bytes(),
        machine=describe_machine(),
    )
