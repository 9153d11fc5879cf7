"""Lowering: rewrites the canonical graph of an export for a target's parser.

``profile`` defines the operators of a target, ``fold`` removes shape arithmetic, ``decompose`` and ``convert`` rewrite
operators, ``check`` rejects what remains. Importing this package loads onnx and onnx-ir, which the extra ``compile`` installs.
"""

from __future__ import annotations

from clipmlu.host import require

require("onnx_ir", "compile", "Lowering a graph to a target's operators")  # before the modules that import it

from clipmlu.graph.lowering.check import check_int32_range, check_profile, remaining_shape_nodes  # noqa: E402
from clipmlu.graph.lowering.lower import lower_graph, lower_proto, lower_tower  # noqa: E402
from clipmlu.graph.lowering.profile import MAGICMIND, PROFILES, Evidence, TargetProfile  # noqa: E402

__all__ = [
    "MAGICMIND",
    "PROFILES",
    "Evidence",
    "TargetProfile",
    "check_int32_range",
    "check_profile",
    "lower_graph",
    "lower_proto",
    "lower_tower",
    "remaining_shape_nodes",
]
