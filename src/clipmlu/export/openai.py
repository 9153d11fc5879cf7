"""OpenAI's own checkpoint files, which are TorchScript archives: recognised by digest, reduced to their weights."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipmlu._imports import require
from clipmlu.bundle import file_record

_TAG = "openai"
# Constants among the tensors: three numbers that open_clip drops as well, and the causal mask of traced copies.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


def is_openai_file(path: Path) -> bool:
    """Whether the file is one that OpenAI published: its SHA-256 is part of the address that open_clip lists for it.

    Its weights were trained with QuickGELU, which the file itself does not say.
    """
    return _is_script_archive(path) and file_record(path).sha256 in _published_digests()


@contextmanager
def plain_weights(path: Path) -> Iterator[Path]:
    """The file's weights as a checkpoint that needs no code to load; temporary.

    Loading a TorchScript archive means trusting it, so this is for files that ``is_openai_file`` has recognised.
    """
    torch = require("torch", "export", "Exporting a model")
    archive = torch.jit.load(str(path), map_location="cpu")
    state = {name: tensor.float() for name, tensor in archive.state_dict().items() if name not in _NOT_WEIGHTS}
    with tempfile.TemporaryDirectory(prefix="clipmlu-") as folder:
        plain = Path(folder) / "weights.pt"
        torch.save(state, plain)
        yield plain


def _is_script_archive(path: Path) -> bool:
    """TorchScript archives are ZIP files that hold ``<name>/code/`` and ``<name>/constants.pkl``."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _published_digests() -> frozenset[str]:
    open_clip = require("open_clip", "export", "Exporting a model")
    models = open_clip.list_pretrained_models_by_tag(_TAG)
    addresses = [open_clip.get_pretrained_cfg(name, _TAG).get("url", "") for name in models]
    return frozenset(address.split("/")[-2] for address in addresses if address.count("/") > 1)
