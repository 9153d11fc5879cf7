"""The emulator's environment variables, and its switches for questions that public sources leave open.

Variables, all optional:

    CLIPMLU_EMULATOR_MODE        strict (default): every open question is answered by the strictest behaviour under
                                 which all public samples still run; lenient: by the most permissive
    CLIPMLU_EMULATOR_SWITCHES    single answers that differ from the mode, such as "asnumpy_is_view=0,check_shapes=1"
    CLIPMLU_EMULATOR_DEVICES     number of emulated cards, default 1; 0 is a host without a card
    CLIPMLU_EMULATOR_ARCH        architecture of all cards: mtp_372 (default), mtp_592 or tp_322
    CLIPMLU_EMULATOR_CLUSTERS    clusters of each card, default 8 (MLU370 logs show 6 or 8; api section 5)
    CLIPMLU_EMULATOR_LATENCY_MS  time added to every enqueue, spent on the queue's own thread, default 0; "2,2,20" gives
                                 each card its own, and the last one to all further cards
    CLIPMLU_EMULATOR_THREADS     CPU threads of one engine, default 0 (onnxruntime decides)
    CLIPMLU_EMULATOR_MM_RUN_ITERATIONS  largest number of batches of a thread of the emulated tool ``mm_run``, whatever its
                                 options say; default 0: no limit. A CPU needs minutes for the numbers of public scripts
    CLIPMLU_EMULATOR_FAULTS      injected failures, see ``clipmlu.magicmind.emulator.faults``
    CLIPMLU_EMULATOR_FAULT_LOG   file that records injected faults; a recorded fault is not injected again, in any
                                 process
    MLU_VISIBLE_DEVICES          the vendor's own: comma-separated indices of the cards that a process sees
    MM_CPP_MIN_LOG_LEVEL         the vendor's own: 3 hides the refusals on stderr, see ``emulator.log``

The numbers at the switches are those of section 7 of docs/magicmind-api.md ("api"), the record of public evidence.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from typing import Literal

PREFIX = "CLIPMLU_EMULATOR_"
VISIBLE_DEVICES = "MLU_VISIBLE_DEVICES"
ARCHS = ("mtp_372", "mtp_592", "tp_322")
"""Values that ``get_mlu_arches_from_param`` of the samples accepts (MC model_process.py)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switches:
    """One answer to each open question; True is the strict one.

    Attributes:
        check_shapes: 7.1: ``enqueue`` rejects a shape outside ``dim_range`` or other than a static model's.
        check_rank: 7.2: ``from_numpy`` rejects an array of another rank.
        narrow_casts: 7.2: ``from_numpy`` accepts the tensor's own type, the pairs of types in public scripts (api 2.13)
            and nothing else.
        refuse_overflow: 7.2: ``from_numpy`` rejects values beyond INT32 or UINT8 instead of wrapping them, and
            fractions instead of rounding them.
        inputs_stay_lent: 7.2, 7.6: the card uses the array given to ``from_numpy`` and the tensor itself until
            ``queue.sync()``; overwriting them earlier makes the results invalid.
        refuse_64bit: api 3: 64-bit inputs or outputs without ``type64to32_conversion`` fail the build.
        poison_before_sync: 7.5: outputs hold NaN (or the smallest integer) until ``queue.sync()``.
        asnumpy_is_view: 7.5: ``asnumpy`` returns a view of the tensor's memory, which the next enqueue overwrites.
        fixed_output_lists: 7.6: a non-empty list of outputs is an error if the shapes change (WeNet clears it first).
        one_queue_per_context: 7.7: a context with pending work on one queue rejects another queue.
        device_per_thread: 7.7, 7.15: ``Device.active()`` affects the calling thread only, and a context runs only if
            its card is the active one (C++: "per thread: set device").
        refuse_after_fork: 7.7: objects created before a fork do not work in the child.
        refuse_unknown_keys: 7.8: ``parse_from_string`` rejects keys and values that no public source shows.
        static_by_default: 7.9: without ``graph_shape_mutable`` the shapes are fixed if all are known.
        equal_calibration_lengths: 7.10: calibration data of unequal lengths are an error.
        calibrate_once: 7.10: a network can be calibrated once only.
        calibration_needs_device: S#14624841615: calibration without a card needs ``set_remote``.
        limit_opset: 7.12: ONNX opsets beyond 11 are errors.
        closed_operators: 7.12: operators that no public sample needs are errors.
        refuse_external_data: 7.12: weights outside the ONNX file are errors.
        dims_fixed_after_calibrate: 7.16: ``set_dimension`` fails after the calibration.
        silent_returns: 7.17: ``Tensor.to``, ``resize`` and ``reshape`` return None.
        absent_boxes_are_undefined: 7.25: rows of a detection output behind the number of boxes hold NaN, not 0.
        square_detections: 7.26: ``set_image_shape`` takes two equal sizes only; else height comes first.
        opaque_status: api 2.1: a Status has ``ok``, ``error_message`` and ``str`` only, and is always truthy.
    """

    check_shapes: bool = True
    check_rank: bool = True
    narrow_casts: bool = True
    refuse_overflow: bool = True
    inputs_stay_lent: bool = True
    refuse_64bit: bool = True
    poison_before_sync: bool = True
    asnumpy_is_view: bool = True
    fixed_output_lists: bool = True
    one_queue_per_context: bool = True
    device_per_thread: bool = True
    refuse_after_fork: bool = True
    refuse_unknown_keys: bool = True
    static_by_default: bool = True
    equal_calibration_lengths: bool = True
    calibrate_once: bool = True
    calibration_needs_device: bool = True
    limit_opset: bool = True
    closed_operators: bool = True
    refuse_external_data: bool = True
    dims_fixed_after_calibrate: bool = True
    silent_returns: bool = True
    absent_boxes_are_undefined: bool = True
    square_detections: bool = True
    opaque_status: bool = True


SWITCH_NAMES = tuple(field.name for field in dataclasses.fields(Switches))
STRICT = Switches()
LENIENT = Switches(**dict.fromkeys(SWITCH_NAMES, False))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked environment variables, which the top of this module describes."""

    mode: Literal["strict", "lenient"] = "strict"
    switches: Switches = STRICT
    devices: int = 1
    arch: str = "mtp_372"
    clusters: int = 8
    latency_ms: tuple[float, ...] = (0.0,)
    threads: int = 0
    mm_run_iterations: int = 0
    faults: str = ""
    fault_log: str = ""
    visible: tuple[int, ...] | None = None

    @property
    def device_count(self) -> int:
        """Number of cards that this process sees."""
        return self.devices if self.visible is None else len(self.visible)

    def latency_of(self, device: int) -> float:
        """Milliseconds that are added to every enqueue on a card."""
        return self.latency_ms[min(device, len(self.latency_ms) - 1)]


FIELDS = (
    "MODE",
    "SWITCHES",
    "DEVICES",
    "ARCH",
    "CLUSTERS",
    "LATENCY_MS",
    "THREADS",
    "MM_RUN_ITERATIONS",
    "FAULTS",
    "FAULT_LOG",
)


def current() -> Settings:
    """Return the current settings.

    Raises:
        ValueError: a variable cannot be parsed; the message names it.
    """
    environ = os.environ
    return _parse(tuple(environ.get(PREFIX + name, "") for name in FIELDS), environ.get(VISIBLE_DEVICES))


def switches() -> Switches:
    """Return the current switches."""
    return current().switches


@functools.lru_cache(maxsize=32)
def _parse(values: tuple[str, ...], visible: str | None) -> Settings:
    given = dict(zip(FIELDS, values, strict=True))
    mode = given["MODE"] or "strict"
    if mode not in ("strict", "lenient"):
        raise ValueError(f"{PREFIX}MODE is '{mode}'; expected strict or lenient")
    arch = given["ARCH"] or "mtp_372"
    if arch not in ARCHS:
        raise ValueError(f"{PREFIX}ARCH is '{arch}'; expected one of {', '.join(ARCHS)}")
    devices = int(_number(given, "DEVICES", 1))
    return Settings(
        mode="strict" if mode == "strict" else "lenient",
        switches=_switches(STRICT if mode == "strict" else LENIENT, given["SWITCHES"]),
        devices=devices,
        arch=arch,
        clusters=int(_number(given, "CLUSTERS", 8)),
        latency_ms=tuple(_checked("LATENCY_MS", text, 0) for text in given["LATENCY_MS"].split(",")),
        threads=int(_number(given, "THREADS", 0)),
        mm_run_iterations=int(_number(given, "MM_RUN_ITERATIONS", 0)),
        faults=given["FAULTS"],
        fault_log=given["FAULT_LOG"],
        visible=None if visible is None else _visible(visible, devices),
    )


def _number(given: dict[str, str], name: str, default: float) -> float:
    return _checked(name, given[name], default)


def _checked(name: str, text: str, default: float) -> float:
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise ValueError(f"{PREFIX}{name} is '{text}'; expected a number, 0 or more")
    return value


def _switches(base: Switches, text: str) -> Switches:
    changes: dict[str, bool] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = item.partition("=")
        if name not in SWITCH_NAMES or value not in ("0", "1"):
            raise ValueError(f"{PREFIX}SWITCHES holds '{item}'; expected NAME=0 or NAME=1, NAME from {SWITCH_NAMES}")
        changes[name] = value == "1"
    return dataclasses.replace(base, **changes)


def _visible(text: str, devices: int) -> tuple[int, ...]:
    """Return the indices up to the first that is not a card, as CUDA does for its similar variable (inferred)."""
    found: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if not part.isdigit() or int(part) >= devices:
            break
        found.append(int(part))
    return tuple(found)
