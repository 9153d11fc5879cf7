"""Repeating requests to a hub: what may succeed later, how often, and after which pause."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar

from clipmlu.data.url.retry_after import parse_retry_after
from clipmlu.steps import SECONDS, StartStep

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How requests to a hub are repeated.

    Attributes:
        pauses_s: seconds before each further attempt, if the server asks for no other pause; their number is the number of
            further attempts without progress.
        longest_pause_s: longest pause that a server may ask for; a longer one is an error at once.
        sleep: waits a number of seconds.
    """

    pauses_s: tuple[float, ...] = (1.0, 4.0, 15.0)
    longest_pause_s: float = 60.0
    sleep: Callable[[float], None] = time.sleep


RETRIES = RetryPolicy()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interruption:
    """A failure after which another attempt may succeed.

    Attributes:
        reason: what happened, such as ``answers 429``; the server is the subject.
        pause_s: seconds that the server asks to wait, or None.
        has_progress: whether the attempt received a part that is kept, so that the attempts are counted anew.
    """

    reason: str
    pause_s: float | None = None
    has_progress: bool = False


def interruption_of_status(status: int, retry_after: str | None) -> Interruption | None:
    """Return the interruption that an HTTP status means: too many requests, or an error inside the server; otherwise None.

    Args:
        status: HTTP status code.
        retry_after: the header ``Retry-After``.
    """
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Interruption(reason=f"answers {status}", pause_s=parse_retry_after(retry_after))
    return None


def repeat(
    ask: Callable[[], Result],
    interruption_of: Callable[[Exception], Interruption | None],
    *,
    server: str,
    policy: RetryPolicy,
    on_step: StartStep,
) -> Result:
    """Call a function until it succeeds, or fails for good.

    Args:
        ask: the request.
        interruption_of: returns why another attempt may succeed after an exception, or None.
        server: name of the server, for the step that shows a pause.
        policy: number of attempts and pauses.
        on_step: begins a step for each pause.

    Raises:
        Exception: that of the last attempt.
    """
    attempt = 0
    while True:
        try:
            return ask()
        except Exception as error:  # each caller knows the exceptions of its HTTP library
            found = interruption_of(error)
            if found is None:
                raise
            attempt = 0 if found.has_progress else attempt
            if attempt == len(policy.pauses_s) or (found.pause_s or 0.0) > policy.longest_pause_s:
                raise
            pause = policy.pauses_s[attempt] if found.pause_s is None else found.pause_s
        attempt += 1
        with on_step(f"waiting, since '{server}' {found.reason}", total=pause, unit=SECONDS):
            policy.sleep(pause)
