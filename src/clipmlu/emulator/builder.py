"""Builder: networks into models (api 2.9)."""

from __future__ import annotations

import logging

from clipmlu.emulator.config import BuilderConfig
from clipmlu.emulator.faults import hit
from clipmlu.emulator.model import Model, ModelInfo
from clipmlu.emulator.network import Network
from clipmlu.emulator.status import StatusError

_log = logging.getLogger("clipmlu.emulator")


class Builder:
    """Compiles a network; needs no card (MC clip gen_model.py)."""

    def build_model(self, name: str, network: Network, config: BuilderConfig | None = None, /) -> Model | None:
        """Build.

        Args:
            name: a free label.
            network: a parsed network.
            config: how; the two-argument form is S#33777239416.

        Returns:
            The model, or None when it cannot be built; the reason goes to stderr.
        """
        if not isinstance(name, str) or not isinstance(network, Network):
            raise TypeError("build_model(): expected (str, Network[, BuilderConfig])")
        try:
            return _build(name, network, config or BuilderConfig())
        except StatusError as error:
            _log.error("emulated MagicMind: build_model: %s", error.status)
            return None


def _build(name: str, network: Network, config: BuilderConfig) -> Model:
    from clipmlu.emulator.assembly import assemble
    from clipmlu.emulator.numerics import Plan, apply_numerics

    hit("build_model")
    facts = config.facts()
    config.check_archs()
    assembly = assemble(network, facts)
    plan = Plan.for_build(network, facts)
    graph, quantisation = apply_numerics(assembly.model, assembly.shapes, plan)
    info = ModelInfo(
        label=name,
        mode=facts.mode,
        archs=facts.archs,
        inputs=assembly.inputs,
        outputs=assembly.outputs,
        quantisation=quantisation,
    )
    del assembly  # a second copy of all weights
    return Model(info, graph.SerializeToString())
