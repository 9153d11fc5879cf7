"""All probes, in the order in which they run and are reported, and the questions that have no probe."""

from __future__ import annotations

from . import (
    arithmetic,
    binding,
    building,
    calibration,
    concurrency,
    defaults,
    devices,
    foundation,
    inputs,
    limits,
    mistakes,
    models,
    parsing,
    tensors,
)
from .probe import Probe

_MODULES = (
    foundation,
    inputs,
    models,
    tensors,
    concurrency,
    mistakes,
    defaults,
    calibration,
    arithmetic,
    parsing,
    devices,
    binding,
    limits,
    building,
)
PROBES = {each.name: each for module in _MODULES for each in vars(module).values() if isinstance(each, Probe)}
"""Maps names to probes; the probes of a module are in the order of their definition."""

LEFT_OUT = (
    (
        "throughput",
        "7.19",
        "What are throughput and latency of CLIP on a card?",
        "measure with: clipmlu bench --tool mm_run",
    ),
    (
        "memory",
        "7.20",
        "What are the limits of memory and batch size?",
        "running a card out of memory is not safe on a shared one",
    ),
    (
        "torch-mlu",
        "7.21",
        "Does MagicMind work with tensors of torch_mlu?",
        "needs torch_mlu, which the probes do without",
    ),
    (
        "foreign-memory",
        "7.29",
        "What does set_data_address check, and how long does the memory live?",
        "reading memory that is gone is not safe on a shared card",
    ),
)
"""(name, issue, question, reason) of each question without a probe."""
