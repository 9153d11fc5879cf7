"""Stage 2: bind an exported bundle to a target."""

from __future__ import annotations

from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions

__all__ = ["CompileOptions", "compile_bundle"]
