"""Stage 2: bind an exported bundle to a target."""

from __future__ import annotations

from clipmlu.compile.compiler import CompileOptions, compile_bundle

__all__ = ["CompileOptions", "compile_bundle"]
