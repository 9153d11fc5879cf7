"""One enqueue, from the call to the synchronised result."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from clipmlu.emulator.status import Code, StatusError
from clipmlu.emulator.types import Array

if TYPE_CHECKING:
    from clipmlu.emulator.tensor import Tensor

_log = logging.getLogger("clipmlu.emulator")
Feed = Callable[[], Array]


class Job:
    """Work on a queue.

    Args:
        compute: runs the graph; called on the queue's thread.
        inputs: tensors that are lent until ``sync``.
        outputs: tensors that are written by ``sync``.

    Attributes:
        done: set when the results (or the error) are there.
        results: the outputs on the card, or None before and after a failure.
    """

    def __init__(self, compute: Callable[[], list[Array]], inputs: list[Tensor], outputs: list[Tensor]) -> None:
        self._compute = compute
        self._inputs = inputs
        self._outputs = outputs
        self._spoiled = ""
        self.done = threading.Event()
        self.results: list[Array] | None = None
        self.error: StatusError | None = None
        for tensor in inputs:
            tensor.lend(self)

    def run(self) -> None:
        """Compute; called by the queue's thread."""
        try:
            self.results = self._compute()
        except StatusError as error:
            self.error = error
        except Exception as error:  # the runtime's own errors are many; a thread must not die of one
            self.error = StatusError(Code.INTERNAL, f"enqueue: the graph failed: {' '.join(str(error).split())}")
        finally:
            self.done.set()

    def spoil(self, reason: str) -> None:
        """The results are garbage, because the caller broke a rule of asynchronous work."""
        if not self._spoiled:
            _log.warning("emulated MagicMind: results are spoiled: %s", reason)
        self._spoiled = reason

    def publish(self) -> None:
        """Let the caller see the results; called by ``sync``.

        Raises:
            StatusError: the work failed.
        """
        for tensor in self._inputs:
            tensor.give_back(self)
        if self.error is not None:
            raise self.error
        assert self.results is not None, "a job without an error has results"
        for index, (tensor, result) in enumerate(zip(self._outputs, self.results, strict=True)):
            if not self._spoiled and tensor.producer == (self, index):
                tensor.publish(result)
