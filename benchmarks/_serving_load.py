"""Load of ``serving.py``, run by locust: image files to one route, one after the other or at random times.

The environment variable ``SERVING_LOAD`` holds the plan as JSON: ``path`` of the route, ``images`` (files), ``rate`` (requests per second
of each user at random times; null for one request after the other), ``requests`` (after so many the run ends; null for no limit)
and ``output``, the file that gets ``[seconds of the start, seconds of the answer, status]`` of each request.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import time
from pathlib import Path
from typing import Any

import gevent
from geventhttpclient.connectionpool import ConnectionPool
from locust import FastHttpUser, events, task

PLAN = json.loads(os.environ["SERVING_LOAD"])
BODIES = [Path(path).read_bytes() for path in PLAN["images"]]
HEADERS = {"Content-Type": "image/jpeg"}
RECORDS: list[tuple[float, float, int]] = []
NUMBERS = itertools.count()


def _send_at_once(_pool: ConnectionPool, connection: socket.socket) -> None:
    """Send the end of a body without waiting for the answer to its beginning, as other clients do; else each takes 40 ms more."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


ConnectionPool.after_connect = _send_at_once


class Client(FastHttpUser):
    """A client with a connection of its own."""

    network_timeout = 60.0
    connection_timeout = 60.0

    def on_start(self) -> None:
        """Begin at a random time, as if requests had come before."""
        self.random = random.Random(next(NUMBERS))
        self.due = time.perf_counter()
        if PLAN["rate"] is not None:
            gevent.sleep(self.wait_time())

    def wait_time(self) -> float:
        """Return the seconds until the next request; a late answer delays none of those that follow."""
        if PLAN["rate"] is None:
            return 0.0
        self.due += self.random.expovariate(PLAN["rate"])
        return max(0.0, self.due - time.perf_counter())

    @task
    def send(self) -> None:
        """Send one image."""
        body = BODIES[next(NUMBERS) % len(BODIES)]
        begun = time.perf_counter()
        with self.client.post(PLAN["path"], data=body, headers=HEADERS, name="image", catch_response=True) as answer:
            RECORDS.append((begun, time.perf_counter(), answer.status_code))
            answer.success()  # serving.py counts
        if PLAN["requests"] is not None and len(RECORDS) >= PLAN["requests"]:
            self.environment.runner.quit()


@events.quitting.add_listener
def write(**_facts: Any) -> None:
    """Write the requests of the run."""
    Path(PLAN["output"]).write_text(json.dumps(RECORDS))
