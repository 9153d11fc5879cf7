"""The emulated SDK's log on stderr: one line for each refusal, so that a script that ignores a Status shows its reason.

The line has the form of the SDK's own (OFA-Sys/Chinese-CLIP issue 328; the SDK's ``mm_run`` README, S#14487021415):

    2024-07-14 05:28:21.361150: ERROR:  magicmind/cc/internal/mm_parser_core.h:57]  Internal: Onnx mlir graph is illegal

The place in the SDK's sources becomes ``emulated MagicMind`` and the name of the call. The vendor's variable
MM_CPP_MIN_LOG_LEVEL applies (Cambricon/catch, Pytorch_tools.rst): 2 leaves errors only, 3 nothing that is written here.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import threading

LEVEL_VARIABLE = "MM_CPP_MIN_LOG_LEVEL"
_LEVELS = {"WARNING": 1, "ERROR": 2}


class _Thread(threading.local):
    """Settings of the calling thread."""

    shows_statuses = True


_thread = _Thread()


def log_refusal(call: str, kind: str, reason: str) -> None:
    """Write why a call failed.

    Args:
        call: the SDK's function.
        kind: name of the Code.
        reason: text of the Status.
    """
    shown = kind.replace("_", " ").capitalize()  # of the kinds, a public log shows ``Internal`` only
    _write("ERROR", call, f"{shown}: {reason.removeprefix(f'{call}: ')}")


def log_status(call: str, kind: str, reason: str) -> None:
    """Write why a call returns a bad Status, unless this thread's caller shows it: see ``hide_statuses``."""
    if _thread.shows_statuses:
        log_refusal(call, kind, reason)


def log_warning(call: str, text: str) -> None:
    """Write about a call that succeeds but has a consequence that its caller may not expect."""
    _write("WARNING", call, text)


def hide_statuses() -> None:
    """Write no bad Status of this thread from now on: clipmlu's driver raises each as an error with the same text."""
    _thread.shows_statuses = False


def _write(level: str, call: str, text: str) -> None:
    lowest = os.environ.get(LEVEL_VARIABLE, "")
    if sys.stderr is None or (lowest.isdigit() and int(lowest) > _LEVELS[level]):
        return
    with contextlib.suppress(OSError, ValueError):  # a closed stream must not change what the call returns
        now = datetime.datetime.now().isoformat(" ", "microseconds")
        sys.stderr.write(
            f"{now}: {level}:  emulated MagicMind, {call}]  {text}\n"
        )  # a script's own stream may lack flush()
