"""``main`` of the emulated ``mm_run``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence

from clipmlu.magicmind.emulator import emulated_version
from clipmlu.magicmind.emulator.mm_run import output
from clipmlu.magicmind.emulator.mm_run.measure import input_shapes, load_model, make_inputs, measure_cards
from clipmlu.magicmind.emulator.mm_run.request import ToolError, parse_arguments

_ABORTED = 134
"""Exit code that a shell gives for the abort of the real tool."""
_USAGE = "usage: mm_run --magicmind_model FILE [--input_dims N,C,H,W ...] [--batch_size N ...] [--devices N ...] [--iterations N] ..."


def main(words: Sequence[str]) -> int:
    """Run the tool with its arguments, and return its exit code."""
    if "--help" in words:
        _print([_USAGE, output.NOTICE])
        return 0
    if words and words[0] in ("-h", "--h"):  # what READMEs of the zoo call: the usage, then the abort
        _print([_USAGE, output.NOTICE])
        return _ABORTED
    try:
        _run(words)
    except ToolError as error:
        sys.stderr.write(f"mm_run (emulated): {error}\n")
        return _ABORTED
    return 0


def _run(words: Sequence[str]) -> None:
    request = parse_arguments(words)
    begin = time.perf_counter()
    model = load_model(request)
    model_ms = 1000 * (time.perf_counter() - begin)
    shapes = input_shapes(model, request)
    inputs = make_inputs(model, shapes, request)
    _print(output.parameters(request, shapes))
    _print(output.facts(model, request, emulated_version(), model_ms))
    names = model.get_input_names()
    for result in measure_cards(model, inputs, request):
        _print(output.summary(result, names, shapes, request))
    _print([output.NOTICE])


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
