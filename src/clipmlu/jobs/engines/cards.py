"""Cards for the workers of a job: which they share, and one for each Ray worker."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from clipmlu.backends import get_backend
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import BackendUnavailableError
from clipmlu.jobs.engines.options import EngineOptions

try:
    import fcntl
except ImportError:  # Windows, for which there is no SDK
    fcntl = None  # type: ignore[assignment]

CARD_RESOURCE = "mlu"
"""Name of the Ray resource that counts the cards of a machine: ``ray start --resources='{"mlu": 4}'``."""

_WAIT_SECONDS = 30.0  # the process that had the card before may still be ending


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cards:
    """The cards that the workers of a job share.

    Attributes:
        indices: their indices, with Ray on every machine; None for all cards of each machine of a Ray cluster.
    """

    indices: tuple[int, ...] | None


def choose_cards(encoder: Encoder, engine: EngineOptions) -> Cards | None:
    """Return the cards that the workers of an engine share, or None if there is one worker in this process, or no card.

    With the address of a Ray cluster, they are all cards of its machines, unless an encoder with other cards is given.

    Args:
        encoder: the encoder that each worker will load.
        engine: the engine.

    Raises:
        BackendUnavailableError: all cards were chosen, and the SDK cannot be reached, or reports none.
    """
    recipe = encoder.recipe()
    if (
        engine.is_this_process
        or not get_backend(encoder.runnable.compilation.placement(encoder.runnable.image_graph).backend).has_cards
    ):
        return None
    unchosen = recipe.devices == "all" or (recipe.devices is None and recipe.options.device == 0)
    return Cards(indices=None if engine.ray_address is not None and unchosen else encoder.devices)


def lock_card(indices: Sequence[int], *, wait_seconds: float = _WAIT_SECONDS) -> int:
    """Take the first card that no other worker on this machine has, and return its index.

    A lock on a file in the folder for temporary files is held until this process ends, however it ends. Ray gives no indices
    for a resource that it does not know, and a card must not have two workers, of two jobs either.

    Raises:
        BackendUnavailableError: other workers have all of them.
    """
    limit = time.monotonic() + wait_seconds
    while True:
        for index in indices:
            if _lock(Path(tempfile.gettempdir()) / f"clipmlu-card-{index}.lock"):
                return index
        if time.monotonic() >= limit:
            raise BackendUnavailableError(
                f"All cards of this machine ({', '.join(map(str, indices)) or 'none'}) are used by other workers of clipmlu. "
                f"End those jobs, or start Ray here with fewer: --resources='{{\"{CARD_RESOURCE}\": N}}'"
            )
        time.sleep(0.2)


def _lock(path: Path) -> bool:
    """Lock a file of any user for the rest of this process."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True
