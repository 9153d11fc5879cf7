"""A model that can be run: its facts, its graphs and where their files are, in a compiled bundle or outside one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from clipmlu.bundle.manifest import Compilation, FileRecord, Manifest, Tower
from clipmlu.errors import BundleError
from clipmlu.specs import TowerName


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunnableModel:
    """What an encoder and a backend need to run a model.

    ``CompiledBundle.runnable`` gives the one of a verified bundle. Graphs that belong to no compiled bundle, such as those
    that are checked before they are published, are described by a value of their own.

    Attributes:
        path: the directory of the graph files; messages name it.
        tokenizer_path: the tokenizer file.
        facts: what holds for every graph of the model: preprocessing, tokenizer, embedding size, logit scale. Its fields
            ``towers``, ``files`` and ``compilation`` are not to be read from here; they may be those of another bundle.
        towers: graph files and their tensors, by tower name.
        compilation: where and how the graphs run.
        files: digest and size of the files in ``path``, by relative POSIX path; empty where they were not computed.
    """

    path: Path
    tokenizer_path: Path
    facts: Manifest
    towers: Mapping[TowerName, Tower]
    compilation: Compilation
    files: Mapping[str, FileRecord] = dataclasses.field(default_factory=dict)

    @property
    def image_graph(self) -> TowerName:
        """The graph that takes images: the image tower, or the fused graph of the joint layout."""
        return image_graph_of(self.facts)

    def tower(self, name: TowerName) -> Tower:
        """The tower of that name.

        Raises:
            BundleError: the model has another layout.
        """
        return find_tower(self.path, self.towers, name)

    def tower_path(self, name: TowerName) -> Path:
        """Path of the tower's graph file."""
        return self.path / self.tower(name).file


def image_graph_of(manifest: Manifest) -> TowerName:
    """The graph that takes images: the image tower, or the fused graph of the joint layout."""
    return "joint" if manifest.layout == "joint" else "image"


def find_tower(path: Path, towers: Mapping[TowerName, Tower], name: TowerName) -> Tower:
    """The tower of that name.

    Args:
        path: the bundle's directory, for the message.
        towers: those that there are.
        name: the one that is wanted.

    Raises:
        BundleError: there is none of that name, since the layout is another one.
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
