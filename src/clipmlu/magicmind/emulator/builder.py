"""Builder: compiles networks to models (api 2.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipmlu.errors import CalibrationError
from clipmlu.magicmind.emulator.config import BuilderConfig, BuildFacts
from clipmlu.magicmind.emulator.faults import hit
from clipmlu.magicmind.emulator.model import Model
from clipmlu.magicmind.emulator.network import Network
from clipmlu.magicmind.emulator.ports import ModelInfo
from clipmlu.magicmind.emulator.status import Code, StatusError

if TYPE_CHECKING:
    from clipmlu.graph.quantisation.plan import Plan
    from clipmlu.magicmind.emulator.assembly import Assembly


class Builder:
    """Compiles a network; needs no card (MC clip gen_model.py)."""

    def build_model(self, name: str, network: Network, config: BuilderConfig | None = None, /) -> Model | None:
        """Build a model.

        Args:
            name: any label.
            network: a parsed network.
            config: the configuration; public C++ also calls with two arguments (S#33777239416).

        Returns:
            The model, or None if it cannot be built; the reason is logged to stderr.
        """
        if not isinstance(name, str) or not isinstance(network, Network):
            raise TypeError("build_model(): expected (str, Network[, BuilderConfig])")
        try:
            return _build(name, network, config or BuilderConfig())
        except StatusError as error:
            error.log_none("build_model")
            return None


def _build(name: str, network: Network, config: BuilderConfig) -> Model:
    from clipmlu.graph.quantisation.rewrite import apply_numerics
    from clipmlu.magicmind.emulator.assembly import assemble

    hit("build_model")
    facts = config.facts()
    config.check_archs()
    assembly = assemble(network, facts)
    element_types = {name: kind for name, (_shape, kind) in assembly.shapes.items()}
    try:
        graph, quantisation = apply_numerics(assembly.model, element_types, _plan(network, facts, assembly))
    except CalibrationError as error:
        raise StatusError(Code.FAILED_PRECONDITION, str(error)) from error
    info = ModelInfo(
        label=name,
        mode=facts.mode,
        archs=facts.archs,
        inputs=assembly.inputs,
        outputs=assembly.outputs,
        quantisation=quantisation,
        detections=assembly.detections,
    )
    del assembly  # it holds a second copy of all weights
    return Model(info, graph.SerializeToString())


def _plan(network: Network, facts: BuildFacts, assembly: Assembly) -> Plan:
    """Return the plan of the numerics.

    Raises:
        StatusError: the mode quantises, but there is neither a calibration nor ``custom_ranges``.
    """
    from clipmlu.graph.quantisation.derived import ADDED
    from clipmlu.graph.quantisation.plan import NodeTypes, Plan

    record = network.calibration
    if facts.bits is not None and record is None and not facts.custom_ranges:
        raise StatusError(
            Code.FAILED_PRECONDITION, f"{facts.mode} needs calibrate() before build_model() (or custom_ranges)"
        )
    return Plan(
        half=facts.half,
        bits=facts.bits,
        per_axis=facts.per_axis,
        centred=not facts.asymmetric,
        least_noise=record is not None and record.least_noise,
        ranges={**(record.ranges if record else {}), **facts.custom_ranges},
        node_types={
            name: NodeTypes(
                inputs={index: dtype.name.lower() for index, dtype in types.inputs.items()},
                outputs={index: dtype.name.lower() for index, dtype in types.outputs.items()},
            )
            for name, types in network.node_types.items()
        },
        exact_nodes=frozenset(
            node.name for node in assembly.model.graph.node if node.name.startswith(f"{ADDED}output_")
        ),
    )
