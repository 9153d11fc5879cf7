"""Build hook: compiles the resize kernel into the wheel; without a C compiler the wheel is pure, and Pillow resizes."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FOLDER = "clipmlu/data/resize"


class KernelBuildHook(BuildHookInterface):
    """Compiles the kernel in the source tree, where an editable install finds it, and adds it to other wheels."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say in the build's log what came of it.

        Args:
            version: ``standard`` or ``editable``.
            build_data: what hatchling puts into the wheel; changed in place.
        """
        build = _build_module(Path(self.root) / "src" / _FOLDER / "build.py")
        try:
            library = build.build()
        except build.BuildError as error:
            self.app.display_warning(
                f"clipmlu: no compiled resize kernel: {error}. Pillow resizes instead, which is slower."
            )
            return
        self.app.display_info(f"clipmlu: compiled the resize kernel {library.name}")
        if version != "editable":
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"
            build_data["force_include"][str(library)] = f"{_FOLDER}/{library.name}"


def _build_module(path: Path) -> ModuleType:
    """Load the module by its path: clipmlu's dependencies are not installed while it is built."""
    spec = importlib.util.spec_from_file_location("clipmlu_kernel_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
