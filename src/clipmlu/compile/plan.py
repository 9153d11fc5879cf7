"""Options of a compilation, and the placement of each tower."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from clipmlu.arguments import check_fields
from clipmlu.backends import TARGETS, Backend, SessionOptions, backend_for_target, choose_target
from clipmlu.bundle.manifest import Compilation, Placement
from clipmlu.compile.quantisation import QuantisationChoice, resolve_quantisation
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.data.calibration_set import CalibrationSet
from clipmlu.errors import OptionError, PrecisionError, wrong_choice
from clipmlu.graph.pixels import NORMALISATION_KEY
from clipmlu.specs import (
    CalibrationRecord,
    Layout,
    MluBuild,
    PositiveInt,
    Precision,
    QuantisationOptions,
    TextTarget,
    TowerName,
)

DEFAULT_BATCH_SIZE = 32
DEFAULT_MAX_BATCH = 64


LowerTarget = Literal["mlu"]
"""Targets whose parser reads lowered graphs; see ``lower_bundle``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """Options of a compilation; validated on construction.

    Attributes:
        target: ``cpu``, ``openvino``, ``mlu``, ``emulated-mlu``, or ``auto`` for the first available target that offers
            the precision.
        precision: arithmetic of the compiled graphs, also under its short name such as ``"fp16"``.
        batch_size: rows of a batch; the fixed size if static, the preferred one if dynamic.
        dynamic_shape: allow batches of 1..``max_batch`` rows; otherwise partial batches are padded and trimmed.
        max_batch: the largest batch if dynamic; None for 64, or ``batch_size`` if that is larger.
        text_target: target of the text tower, which is compiled in float32 there; None for ``target``.
        mlu: build options for MLU cards; None for the defaults. Not allowed for other targets.
        quantisation: options of the modes that quantise, or a choice of named ones with changes; None for those that
            are recommended for the target. Not allowed for other modes.
        calibration: data for the modes that quantise: options, or the set itself.
        calibration_digest: required digest of the calibration data; None for any.
        seen_images: content digests of other images that influenced the options and must not be evaluated.
        calibration_server: ``ip:port`` of a card that calibrates for a host without one.
        min_cosine: smallest cosine similarity of a compiled embedding and its float32 reference; None for the
            precision's default, ``parity.MIN_COSINE``.
        min_agreement: smallest share of images with the same best class as in float32; None for the precision's
            default, ``parity.MIN_AGREEMENT``.
        check: run the compiled graphs before publication; False to build for a card that is not in this machine.
        uint8_input: let the graph that takes images take uint8 pixels, a quarter of the bytes, and normalise them
            itself.
        session: options of the compilation itself: card and worker.
        overwrite: replace a bundle at the output path.
    """

    target: str = "auto"
    precision: Precision = Precision.FORCE_FLOAT32
    batch_size: PositiveInt = DEFAULT_BATCH_SIZE
    dynamic_shape: bool = True
    max_batch: PositiveInt | None = None
    text_target: str | None = None
    mlu: MluBuild | None = None
    quantisation: QuantisationOptions | QuantisationChoice | None = None
    calibration: CalibrationOptions | CalibrationSet | None = None
    calibration_digest: str | None = None
    seen_images: tuple[str, ...] = ()
    calibration_server: str | None = None
    min_cosine: float | None = None
    min_agreement: float | None = None
    check: bool = True
    uint8_input: bool = False
    session: SessionOptions = dataclasses.field(default_factory=lambda: SessionOptions(busy_wait=False))
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.target not in ("auto", *TARGETS):
            raise OptionError(wrong_choice("target", self.target, ("auto", *TARGETS)))
        if self.text_target is not None and self.text_target not in TARGETS:
            raise OptionError(wrong_choice("text target", self.text_target, get_args(TextTarget)))
        if self.max_batch is not None and not self.dynamic_shape and self.max_batch != self.batch_size:
            raise OptionError(
                f"max batch is {self.max_batch}, but a static shape takes exactly {self.batch_size}; leave one of them out"
            )
        if self.batch_size > self.largest_batch:
            raise OptionError(
                f"batch size {self.batch_size} is larger than max batch {self.max_batch}; raise --max-batch"
            )
        if self.min_cosine is not None and not -1 <= self.min_cosine <= 1:
            raise OptionError(f"smallest cosine is {self.min_cosine}; expected -1 to 1")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise OptionError(f"smallest agreement is {self.min_agreement}; expected 0 to 1")

    @property
    def largest_batch(self) -> int:
        """The largest batch of the compiled bundle."""
        if not self.dynamic_shape:
            return self.batch_size
        return self.max_batch if self.max_batch is not None else max(DEFAULT_MAX_BATCH, self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompilationPlan:
    """The placement of each tower.

    Attributes:
        main: placement of all towers, except the following.
        text_tower: placement of the text tower if it differs.
        mlu: build options for MLU cards, or None without a card target.
        quantisation: options of the quantisation, or None for a mode without.
        why_target: a line that says what the target ``auto`` took and why; empty if the target was named.
    """

    main: Placement
    text_tower: Placement | None
    mlu: MluBuild | None
    quantisation: QuantisationOptions | None
    why_target: str = ""

    def placement(self, tower: TowerName) -> Placement:
        """Return the placement of a tower."""
        return self.text_tower if tower == "text" and self.text_tower is not None else self.main

    def facts(self, options: CompileOptions, source_digest: str, calibration: CalibrationRecord | None) -> Compilation:
        """Return the manifest's record without measurements."""
        emulated = self.main.emulated or (self.text_tower is not None and self.text_tower.emulated)
        return Compilation(
            target=self.main.target,
            backend=self.main.backend,
            precision=self.main.precision,
            dynamic_shape=options.dynamic_shape,
            batch_size=options.batch_size,
            max_batch=options.largest_batch,
            emulated=emulated,
            source_digest=source_digest,
            parity=(),
            text_tower=self.text_tower,
            mlu=self.mlu,
            quantisation=self.quantisation,
            calibration=calibration,
            uint8_input=options.uint8_input,
        )


def plan_compilation(options: CompileOptions) -> CompilationPlan:
    """Choose the placement of each tower, before slow work begins.

    Raises:
        UnknownNameError: there is no such target.
        BackendUnavailableError: its runtime cannot be used on this machine.
        PrecisionError: it does not offer the precision.
        OptionError: an option does not apply to it, or a mode that quantises has no calibration data.
    """
    if options.precision.bits is None:
        _refuse_quantisation(options)
    target, backend, why = choose_target(options.target, options.precision)
    quantisation = check_arithmetic(options, target, backend)
    if not backend.has_cards and options.mlu is not None:
        raise OptionError(f"target '{target}' has no MLU cards; leave out the MLU options")
    if options.mlu is not None:
        _refuse_normalisation(options.mlu)
    main = Placement(target=target, backend=backend.name, precision=options.precision, emulated=backend.emulated)
    mlu = (options.mlu or MluBuild()) if backend.has_cards else None
    return CompilationPlan(
        main=main,
        text_tower=_placement_of_text(options, main),
        mlu=mlu,
        quantisation=quantisation,
        why_target=why,
    )


def check_arithmetic(options: CompileOptions, target: str, backend: Backend) -> QuantisationOptions | None:
    """Check that a backend offers the precision, with the given data and options of quantisation.

    Returns:
        The complete options of the quantisation; None for a mode without.

    Raises:
        PrecisionError: it does not offer the precision.
        OptionError: calibration data or options are missing, or given for a mode that quantises nothing.
    """
    if options.precision.bits is None:
        _refuse_quantisation(options)
    if options.precision not in backend.precisions:
        offered = ", ".join(each.value for each in backend.precisions)
        raise PrecisionError(
            f"Target '{target}' does not offer the precision '{options.precision.value}' yet. It offers: {offered}. "
            f"{backend.why_not(options.precision)}".rstrip()
        )
    require_calibration(options.precision, options)
    if options.precision.bits is None:
        return None
    return resolve_quantisation(options.quantisation, backend, options.precision)


def require_calibration(precision: Precision, options: CompileOptions) -> None:
    """Check that there are calibration data for a precision that quantises.

    Raises:
        OptionError: there are none.
    """
    if precision.bits is not None and options.calibration is None:
        raise OptionError(
            f"precision {precision.value} needs calibration data: give --calib DATASET, "
            "or --calib imagefolder:PATH of images that you do not evaluate later"
        )


def check_layout(plan: CompilationPlan, layout: Layout) -> None:
    """Check that a layout has a text tower if a separate placement is given for it.

    Raises:
        OptionError: the layout is ``joint``.
    """
    if plan.text_tower is not None and layout == "joint":
        raise OptionError("the joint layout has no separate text tower; leave --text-target out")


def _refuse_quantisation(options: CompileOptions) -> None:
    if options.calibration is not None:
        raise OptionError(f"precision {options.precision.value} quantises nothing; leave --calib out")
    if options.quantisation is not None:
        raise OptionError(f"precision {options.precision.value} quantises nothing; leave out the quantisation options")


def _refuse_normalisation(mlu: MluBuild) -> None:
    """Raise if the build configuration makes the input uint8; only the option records that in the manifest."""
    wrapped = mlu.build_config.get("builder_config")
    if NORMALISATION_KEY in mlu.build_config or (isinstance(wrapped, dict) and NORMALISATION_KEY in wrapped):
        raise OptionError(
            f"the build configuration has '{NORMALISATION_KEY}', which --uint8-input writes with the model's own mean and "
            "standard deviation; leave it out of --build-config, and give --uint8-input for uint8 pixels"
        )


def _placement_of_text(options: CompileOptions, main: Placement) -> Placement | None:
    if options.text_target is None or options.text_target == main.target:
        return None
    target, backend = backend_for_target(options.text_target, Precision.FORCE_FLOAT32)
    if backend.has_cards:
        raise OptionError(
            f"text target is '{target}'; expected cpu or openvino, or no value for the target of the image tower"
        )
    return Placement(target=target, backend=backend.name, precision=Precision.FORCE_FLOAT32, emulated=backend.emulated)
