"""Stage 2: compiling an exported bundle for a target."""

from __future__ import annotations

from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions

__all__ = ["CompileOptions", "compile_bundle"]
