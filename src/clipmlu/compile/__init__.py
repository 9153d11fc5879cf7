"""Stage 2: compiling an exported bundle for a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipmlu.compile.plan import CompileOptions

if TYPE_CHECKING:
    from clipmlu.compile.compiler import compile_bundle

__all__ = ["CompileOptions", "compile_bundle"]


def __getattr__(name: str) -> Any:
    if name != "compile_bundle":
        raise AttributeError(f"module 'clipmlu.compile' has no attribute '{name}'")
    from clipmlu.compile.compiler import compile_bundle

    return compile_bundle
