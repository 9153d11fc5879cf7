"""``RunnableModel``: facts, graphs and paths of a model that can be run, in a compiled bundle or outside one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from clipmlu.bundle.manifest import Compilation, FileRecord, Manifest, Tower
from clipmlu.errors import BundleError
from clipmlu.specs import TowerName


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunnableModel:
    """The input of an encoder and a backend to run a model.

    ``CompiledBundle.runnable`` returns that of a verified bundle. Graphs outside a compiled bundle, such as those that
    are checked before publication, have their own value.

    Attributes:
        path: the directory of the graph files; messages name it.
        tokenizer_path: the tokenizer file.
        facts: facts of the whole model: preprocessing, tokenizer, embedding size, logit scale. Do not use its fields
            ``towers``, ``files`` and ``compilation``, which may be those of another bundle.
        towers: graph files and their tensors, by tower name.
        compilation: target and arithmetic of the graphs.
        files: digest and size of the files in ``path``, by relative POSIX path; empty if they were not computed.
    """

    path: Path
    tokenizer_path: Path
    facts: Manifest
    towers: Mapping[TowerName, Tower]
    compilation: Compilation
    files: Mapping[str, FileRecord] = dataclasses.field(default_factory=dict)

    @property
    def image_graph(self) -> TowerName:
        """Name of the graph that takes images: the image tower, or the fused graph of the joint layout."""
        return image_graph_of(self.facts)

    def tower(self, name: TowerName) -> Tower:
        """Return the tower with a name.

        Raises:
            BundleError: the model has another layout.
        """
        return find_tower(self.path, self.towers, name)

    def tower_path(self, name: TowerName) -> Path:
        """Return the path of the tower's graph file."""
        return self.path / self.tower(name).file


def image_graph_of(manifest: Manifest) -> TowerName:
    """Return the name of the graph that takes images: the image tower, or the fused graph of the joint layout."""
    return "joint" if manifest.layout == "joint" else "image"


def find_tower(path: Path, towers: Mapping[TowerName, Tower], name: TowerName) -> Tower:
    """Return the tower with a name.

    Args:
        path: the bundle's directory, for the message.
        towers: the existing towers.
        name: name of the tower.

    Raises:
        BundleError: there is no such tower, because the layout is another one.
    """
    tower = towers.get(name)
    if tower is None:
        if name == "joint":
            raise BundleError(
                f"Bundle '{path}' has two towers and no fused graph. Export the model again with '--layout joint'."
            )
        raise BundleError(
            f"Bundle '{path}' has the layout 'joint' and no separate {name} tower, which embeddings need. "
            "Export the model again without '--layout joint'."
        )
    return tower
