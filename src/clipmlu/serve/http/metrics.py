"""Figures for Prometheus: requests counted here, and the state of the service, which is read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from clipmlu._version import __version__
from clipmlu.serve.batching import BatchSizes
from clipmlu.serve.service import Service

_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LABELS = ("model", "device", "emulated")


class ServerMetrics:
    """The figures of one server.

    Args:
        service: the service.
    """

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter("clipmlu_requests", "Answered requests.", ("route", "code"), registry=self._registry)
        self._latency = Histogram(
            "clipmlu_request_seconds",
            "Seconds from a request to its answer.",
            ("route",),
            buckets=_LATENCIES,
            registry=self._registry,
        )
        self._rejected = Counter(
            "clipmlu_rejected", "Requests refused, by code of the error.", ("reason",), registry=self._registry
        )
        self._registry.register(_ServiceState(service))

    def count(self, route: str, status: int, seconds: float, reason: str | None) -> None:
        """Count a request.

        Args:
            route: path of its route; any other path would make figures without end.
            status: HTTP status, 499 for a client that left.
            seconds: time to its answer.
            reason: code of its error, or None.
        """
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)
        if reason is not None:
            self._rejected.labels(reason).inc()

    def render(self) -> bytes:
        """Return the figures in Prometheus' text format."""
        return bytes(generate_latest(self._registry))


class _ServiceState(Collector):
    """The state of the service, read when figures are asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        info = GaugeMetricFamily("clipmlu_info", "The version.", labels=("version",))
        info.add_metric((__version__,), 1)
        yield info
        ready = GaugeMetricFamily("clipmlu_ready", "1 if requests can be answered.")
        ready.add_metric((), 0 if self._service.why_not_ready() else 1)
        yield ready
        waiting = GaugeMetricFamily("clipmlu_queue_rows", "Rows that wait or are computed.", labels=(*_LABELS, "kind"))
        ready_rows = GaugeMetricFamily(
            "clipmlu_ready_rows", "Rows that are ready for the device.", labels=(*_LABELS, "kind")
        )
        in_flight = GaugeMetricFamily("clipmlu_batches_in_flight", "Batches on the device.", labels=(*_LABELS, "kind"))
        dropped = CounterMetricFamily(
            "clipmlu_dropped_rows", "Rows dropped because nobody waits for them.", labels=(*_LABELS, "kind")
        )
        rows = CounterMetricFamily("clipmlu_rows", "Rows that were computed.", labels=(*_LABELS, "kind"))
        fill = HistogramMetricFamily("clipmlu_batch_rows", "Rows of a batch.", labels=(*_LABELS, "kind"))
        stages = CounterMetricFamily(
            "clipmlu_stage_seconds", "Seconds in a stage.", labels=(*_LABELS, "graph", "stage")
        )
        restarts = CounterMetricFamily(
            "clipmlu_worker_restarts", "Workers of the SDK that were replaced.", labels=_LABELS
        )
        for model in self._service.models.values():
            labels = (model.name, ",".join(map(str, model.encoder.devices)), str(model.emulated).lower())
            for kind, batcher, limit in (
                ("images", model.images, model.admission.images),
                ("texts", model.texts, model.admission.texts),
            ):
                waiting.add_metric((*labels, kind), limit.waiting)
                ready_rows.add_metric((*labels, kind), batcher.waiting)
                in_flight.add_metric((*labels, kind), batcher.in_flight)
                dropped.add_metric((*labels, kind), batcher.dropped)
                buckets, total = _histogram(batcher.sizes)
                rows.add_metric((*labels, kind), total)
                fill.add_metric((*labels, kind), buckets, total)
            for graph, stage, spent in model.stage_totals():
                stages.add_metric((*labels, graph, stage), spent.seconds)
            restarts.add_metric(labels, model.encoder.worker_restarts())
        yield from (waiting, ready_rows, in_flight, dropped, rows, fill, stages, restarts)


def _histogram(sizes: BatchSizes) -> tuple[list[tuple[str, float]], float]:
    """Return the cumulative buckets and the sum."""
    counts = sizes.counts()
    largest = max(counts, default=1)
    bounds = [1 << power for power in range(largest.bit_length() + 1)]
    buckets = [(str(float(bound)), float(sum(n for rows, n in counts.items() if rows <= bound))) for bound in bounds]
    total = sum(counts.values())
    return [*buckets, ("+Inf", float(total))], float(sum(rows * n for rows, n in counts.items()))
