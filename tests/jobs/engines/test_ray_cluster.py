"""Failures of Ray after its start are errors of one line; Ray is a stub, and the head node a socket."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from clipmlu.errors import SessionError
from clipmlu.jobs.engines.ray_cluster import HeadNode, RayCluster


class _Ray:
    """A connected Ray whose calls raise an exception."""

    def __init__(self, error: Exception, exceptions: Any) -> None:
        self.error, self.exceptions = error, exceptions
        self.util = SimpleNamespace(client=SimpleNamespace(ray=SimpleNamespace(is_connected=lambda: True)))

    def _fail(self, *_arguments: object, **_options: object) -> Any:
        raise self.error

    wait = get = nodes = kill = remote = _fail


@pytest.fixture
def exceptions() -> Any:
    return pytest.importorskip("ray", reason="needs the extra ray").exceptions


@pytest.mark.parametrize("kind", ["system", "client"])
def test_a_ray_that_is_gone_is_one_line(exceptions: Any, kind: str) -> None:
    error = exceptions.RaySystemError("gone\nfor good") if kind == "system" else ConnectionError("gone\nfor good")
    cluster = RayCluster(_Ray(error, exceptions))
    calls = (
        lambda: cluster.wait(["call"], 1),
        lambda: cluster.get("call"),
        cluster.nodes,
        lambda: cluster.start(object, {}, ()),
    )
    for call in calls:
        with pytest.raises(SessionError, match=r"^Ray cannot be reached any more: .*Look at its head node") as caught:
            call()
        assert "\n" not in str(caught.value)
    cluster.kill("actor")


def test_a_lost_actor_and_an_error_of_its_method_are_raised_as_they_are(exceptions: Any) -> None:
    for error in (exceptions.ActorDiedError(), exceptions.RayTaskError("run", "traceback", ValueError("a defect"))):
        with pytest.raises(type(error)):
            RayCluster(_Ray(error, exceptions)).get("call")


def test_a_head_node_that_does_not_answer_for_too_long_is_an_error() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = listening.getsockname()
        head, patient = HeadNode(address, every=0, limit=0), HeadNode(address, every=0, limit=600)
        head.check()
        assert head.answered
    with pytest.raises(SessionError, match=rf"head node 127\.0\.0\.1:{address[1]} has not answered for 0 s"):
        head.check()
    patient.check()
    assert not patient.answered
