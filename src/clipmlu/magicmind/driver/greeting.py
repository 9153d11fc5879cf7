"""The greeting of a connection: both sides prove the secret and compare versions before any request."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable
from typing import Any

from . import FILE_NAME
from .errors import GreetingError, ProtocolError
from .secret import SECRET_VARIABLE
from .values import Fields, printable, show_value
from .wire import MAX_HEADER, Connection, close_all

PROTOCOL = 1
MAX_GREETING = 1 << 12  # bytes that a client may send before it has proved the secret
GREETING_SECONDS = 5.0
ADMISSION_SECONDS = 5.0  # how long a client waits for a place, which its previous connection may still have
_WRITE_AGAIN = f"write it again with: clipmlu worker --write PATH, and start {FILE_NAME} in its place"


def accept_greeting(
    connection: Connection, secret: bytes | None, digest: str, on_accept: Callable[[Fields], Fields] = lambda _hello: {}
) -> None:
    """Greet a client, on the worker's side; refuse clients without the secret and other versions.

    Args:
        connection: a new connection.
        secret: the secret that the client must prove; None for no proof.
        digest: SHA-256 of this worker's file, which the client must have too.
        on_accept: receives the client's greeting and returns fields of the reply, or raises a GreetingError to refuse.

    Raises:
        GreetingError: the client was refused and got the reason.
        ProtocolError, EOFError, DeadlineError: the other side is not a clipmlu client.
    """
    deadline = time.monotonic() + GREETING_SECONDS
    nonce = os.urandom(32).hex()
    connection.send(
        {"clipmlu_worker": PROTOCOL, "digest": digest, "nonce": nonce, "auth": secret is not None}, deadline=deadline
    )
    hello, _payload, descriptors = connection.receive(deadline, MAX_GREETING, 0)
    close_all(descriptors)
    answer: Fields = {"ok": True}
    problem = ""
    if secret is not None:
        theirs = str(hello.get("nonce", ""))
        proof = _proof(secret, "client", nonce, theirs)
        if len(theirs) < 32 or not _same(proof, hello.get("proof")):
            problem = "the secret is wrong or missing"
        else:
            answer["proof"] = _proof(secret, "server", nonce, theirs)
    if not problem and hello.get("digest") != digest:
        problem = (
            f"this worker is another version of the driver ({digest[:12]}) than the client's "
            f"({str(hello.get('digest'))[:12]}); {_WRITE_AGAIN}"
        )
    try:
        if problem:
            raise GreetingError(problem)
        answer.update(on_accept(hello))
    except GreetingError as error:
        connection.send({"ok": False, "error": str(error)}, deadline=deadline + ADMISSION_SECONDS)
        raise
    connection.send(answer, deadline=deadline + ADMISSION_SECONDS)


def send_greeting(
    connection: Connection,
    secret: bytes | None,
    digest: str,
    *,
    replaces: str | None = None,
    needs_secret: bool = False,
    seconds: float = GREETING_SECONDS,
) -> Fields:
    """Greet a worker, on the client's side; return its reply.

    Raises:
        GreetingError: it is another version, does not know the secret, or refuses the client.
        ProtocolError, EOFError, DeadlineError: the other side is not a clipmlu worker.
    """
    deadline = time.monotonic() + seconds
    theirs, _payload, _none = connection.receive(deadline, MAX_GREETING, 0)
    if "clipmlu_worker" not in theirs or not isinstance(theirs.get("nonce"), str):
        raise ProtocolError("what answers there is no clipmlu worker")
    if theirs.get("digest") != digest or theirs["clipmlu_worker"] != PROTOCOL:
        raise GreetingError(
            f"the worker is another version of the driver ({show_value(str(theirs.get('digest'))[:12])}) than ours "
            f"('{digest[:12]}'); {_WRITE_AGAIN}"
        )
    if needs_secret and not theirs.get("auth"):
        raise GreetingError("the worker does not ask for a secret, which it must over TCP")
    if theirs.get("auth") and secret is None:
        raise GreetingError(f"the worker asks for a secret; set {SECRET_VARIABLE}")
    nonce = os.urandom(32).hex()
    hello: Fields = {"digest": digest, "nonce": nonce, "replaces": replaces}
    proved = secret is not None and theirs.get("auth")
    if secret is not None and proved:
        hello["proof"] = _proof(secret, "client", str(theirs["nonce"]), nonce)
    connection.send(hello, deadline=deadline)
    answer, _payload, _none = connection.receive(deadline, MAX_HEADER, 0)
    if not answer.get("ok"):
        raise GreetingError(f"the worker refuses: {printable(str(answer.get('error')), 400)}")
    if secret is not None and proved:
        proof = _proof(secret, "server", str(theirs["nonce"]), nonce)
        if not _same(proof, answer.get("proof")):
            raise GreetingError("what answers there does not know the secret")
    return answer


def _proof(secret: bytes, side: str, server_nonce: str, client_nonce: str) -> str:
    text = f"clipmlu worker {PROTOCOL} {side} {server_nonce} {client_nonce}"
    return hmac.new(secret, text.encode("utf-8", "backslashreplace"), hashlib.sha256).hexdigest()


def _same(proof: str, given: Any) -> bool:
    return hmac.compare_digest(proof.encode(), str(given).encode("utf-8", "backslashreplace"))
