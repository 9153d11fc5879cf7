"""OpenAI's checkpoint files: TorchScript archives that are recognised by digest and reduced to their weights."""

from __future__ import annotations

from pathlib import Path

from clipmlu.bundle.verify import file_record
from clipmlu.export.checkpoint import Checkpoint
from clipmlu.host import require

_TAG = "openai"


def is_openai_file(path: Path) -> bool:
    """Return whether OpenAI published a TorchScript archive: its SHA-256 is part of the address in open_clip's list.

    Its weights were trained with QuickGELU, which the file itself does not say.
    """
    return file_record(path).sha256 in _published_digests()


def read_openai_file(path: Path) -> Checkpoint:
    """Read the file's weights.

    Loading a TorchScript archive can run code, so call this only for files that ``is_openai_file`` recognises.
    """
    torch = require("torch", "export", "Exporting a model")
    state = torch.jit.load(str(path), map_location="cpu").state_dict()
    return Checkpoint(path=path, tensors=state, nests=dict.fromkeys(state, ""), facts={})


def _published_digests() -> frozenset[str]:
    open_clip = require("open_clip", "export", "Exporting a model")
    models = open_clip.list_pretrained_models_by_tag(_TAG)
    addresses = [open_clip.get_pretrained_cfg(name, _TAG).get("url", "") for name in models]
    return frozenset(address.split("/")[-2] for address in addresses if address.count("/") > 1)
