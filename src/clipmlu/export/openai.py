"""OpenAI's own checkpoint files, which are TorchScript archives: recognised by digest, reduced to their weights."""

from __future__ import annotations

from pathlib import Path

from clipmlu.bundle.directory import file_record
from clipmlu.export.checkpoint import Checkpoint
from clipmlu.host import require

_TAG = "openai"


def is_openai_file(path: Path) -> bool:
    """Whether a TorchScript archive is one that OpenAI published: its SHA-256 is part of the address that open_clip lists for it.

    Its weights were trained with QuickGELU, which the file itself does not say.
    """
    return file_record(path).sha256 in _published_digests()


def read_openai_file(path: Path) -> Checkpoint:
    """The file's weights.

    Loading a TorchScript archive means trusting it, so this is for files that ``is_openai_file`` has recognised.
    """
    torch = require("torch", "export", "Exporting a model")
    state = torch.jit.load(str(path), map_location="cpu").state_dict()
    return Checkpoint(path=path, tensors=state, nests=dict.fromkeys(state, ""), facts={})


def _published_digests() -> frozenset[str]:
    open_clip = require("open_clip", "export", "Exporting a model")
    models = open_clip.list_pretrained_models_by_tag(_TAG)
    addresses = [open_clip.get_pretrained_cfg(name, _TAG).get("url", "") for name in models]
    return frozenset(address.split("/")[-2] for address in addresses if address.count("/") > 1)
