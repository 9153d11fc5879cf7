"""The command line of ``mm_run`` (api 4.2, 4.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_FLAGS = ("bind_cluster", "disable_data_copy", "host_async", "kernel_capture", "trace_pmu")
_NOT_EMULATED = {
    "run_config": "groups of shapes; give --input_dims",
    "plugin": "plugins, which hold code for cards",
    "trace_path": "traces of a card",
    "debug_path": "dumps of the tool; a script's ContextDumpInfo works",
    "perf_path": "the profiler of a card",
}
"""Options whose files or effects the emulator lacks, and what they are about."""


class ToolError(Exception):
    """The tool ends with a message; the real one aborts (api 4.2)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options of one run, with the tool's defaults.

    Attributes:
        magicmind_model: the model file.
        input_dims: shape of each input; empty for the model's own.
        batch_size: first size of each input; empty for the model's own.
        batch_name: name under which it was given: ``batch`` in tools of SDKs up to 1.0.1, which print the old format.
        input_files: raw content of each input; empty for random data.
        output_path: folder for the raw results; None for none.
        devices: indices of the cards.
        threads: threads for each card, each with its own context.
        warmup: milliseconds before the measurement.
        duration: shortest measurement in milliseconds.
        iterations: smallest number of batches of each thread.
        avg_runs: batches of one group of the printed averages.
        others: options that change nothing here, as given.
    """

    magicmind_model: str
    input_dims: tuple[tuple[int, ...], ...] = ()
    batch_size: tuple[int, ...] = ()
    batch_name: str = ""
    input_files: tuple[str, ...] = ()
    output_path: str | None = None
    devices: tuple[int, ...] = (0,)
    threads: int = 1
    warmup: int = 200
    duration: int = 3000
    iterations: int = 100
    avg_runs: int = 100
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_old(self) -> bool:
        """Whether to print the format of SDKs up to 1.0.1: their tools name the option ``--batch`` (api 4.3)."""
        return self.batch_name == "batch"


def parse_arguments(words: Sequence[str]) -> Request:
    """Return the options of a command line.

    Raises:
        ToolError: an option is unknown, given twice, not emulated, or has a wrong value.
    """
    given = _options_of(words)
    if "magicmind_model" not in given:
        raise ToolError("--magicmind_model is required")
    values: dict[str, Any] = {name: _READERS[name](name, texts) for name, texts in given.items() if name in _READERS}
    batches = [name for name in ("batch", "batch_size") if name in values]
    if len(batches) == 2:
        raise ToolError("--batch and --batch_size are the same option of different versions; give one")
    for name in batches:
        values |= {"batch_size": values.pop(name), "batch_name": name}
    others = {name: " ".join(texts) for name, texts in given.items() if name not in _READERS}
    return Request(**values, others=others)


def _options_of(words: Sequence[str]) -> dict[str, list[str]]:
    """Map each option to its words; ``--key value value ...`` (api 4.2)."""
    given: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word[2:]
            _check_name(name, given)
            given[name] = []
        elif not name:
            raise ToolError(f"'{word}' stands before any option")
        else:
            given[name].append(word)
    for name, texts in given.items():
        if not texts:
            raise ToolError(f"--{name} has no value")
    return given


def _check_name(name: str, given: Mapping[str, object]) -> None:
    if name in _NOT_EMULATED:
        raise ToolError(f"--{name} is not emulated: {_NOT_EMULATED[name]}")
    if name not in _READERS and name not in _OTHERS:
        raise ToolError(f"unknown option --{name}; known: {', '.join(f'--{each}' for each in (*_READERS, *_OTHERS))}")
    if name in given:
        raise ToolError(f"--{name} is given twice")


def _text(name: str, texts: Sequence[str]) -> str:
    if len(texts) != 1:
        raise ToolError(f"--{name} has {len(texts)} values; expected one")
    return texts[0]


def _texts(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(piece for text in texts for piece in text.split(","))


def _number(name: str, texts: Sequence[str]) -> int:
    return _whole(name, _text(name, texts))


def _positive(name: str, texts: Sequence[str]) -> int:
    number = _number(name, texts)
    if number < 1:
        raise ToolError(f"--{name} is {number}; expected 1 or more")
    return number


def _numbers(name: str, texts: Sequence[str]) -> tuple[int, ...]:
    return tuple(_whole(name, piece) for piece in _texts(name, texts))


def _first_number(name: str, texts: Sequence[str]) -> int:
    return max(1, _numbers(name, texts)[0])


def _shapes(name: str, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    return tuple(() if text == "_" else _numbers(name, [text]) for text in texts)


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ToolError(f"--{name} is '{text}'; expected a whole number, 0 or more")
    return int(text)


_READERS: dict[str, Callable[[str, Sequence[str]], Any]] = {
    "magicmind_model": _text,
    "input_dims": _shapes,
    "batch_size": _numbers,
    "batch": _numbers,
    "input_files": _texts,
    "output_path": _text,
    "devices": _numbers,
    "threads": _positive,
    "warmup": _number,
    "duration": _number,
    "iterations": _positive,
    "avg_runs": _first_number,
}
_OTHERS = (*_FLAGS, "buffer_depth", "infer_depth", "trace_time")
"""Options about how a card is fed and traced; they are accepted, printed, and change nothing here."""
