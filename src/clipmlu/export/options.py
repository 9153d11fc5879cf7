"""Options of ``export_model``."""

from __future__ import annotations

import dataclasses
import os

from clipmlu.arguments import as_path, check_fields
from clipmlu.errors import OptionError
from clipmlu.graph.parity import FLOAT32_MIN_COSINE, FLOAT32_TOLERANCE
from clipmlu.specs import Layout

PURPOSE = "Exporting a model"
"""What needs the extra ``export``, in the message of a missing package."""

OPSETS = (18, 20)
"""Opset 18 is the oldest that torch's exporter writes; from 20 on GELU is one node. Both have LayerNormalization."""

# Protobuf limits a file to 2 GiB, which must hold the rest of the graph as well.
EXTERNAL_DATA_BYTES = 1_900_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an export; validated on construction.

    Attributes:
        pretrained: an open_clip tag of weights, or the path of a checkpoint file, for a model name of open_clip.
        random_weights: export untrained weights, drawn from ``seed``.
        seed: seed of ``random_weights``.
        layout: ``towers`` for one graph per tower, ``joint`` for the fused two-input graph.
        opset: ONNX opset of the graphs.
        overwrite: replace a bundle at the output path.
        offline: use only local files, no network.
        cache_dir: directory of downloads; None for huggingface_hub's default (``HF_HOME``), and clipmlu's own
            cache for ModelScope.
        tokenizer: a ``tokenizer.json``, or a directory with one, instead of the model's own tokenizer.
        max_abs_diff: allowed difference of an embedding's element between torch and the exported graph; for a logit
            it is multiplied by the logit scale.
        min_cosine: smallest allowed cosine similarity of two embeddings of the same input.
        external_data_bytes: a graph with more bytes of weights than this stores them in a file beside it.

    Raises:
        OptionError: a value is out of range, or two options exclude each other.
    """

    pretrained: str | None = None
    random_weights: bool = False
    seed: int = 0
    layout: Layout = "towers"
    opset: int = 20
    overwrite: bool = False
    offline: bool = False
    cache_dir: str | os.PathLike[str] | None = None
    tokenizer: str | os.PathLike[str] | None = None
    max_abs_diff: float = FLOAT32_TOLERANCE
    min_cosine: float = FLOAT32_MIN_COSINE
    external_data_bytes: int = EXTERNAL_DATA_BYTES

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            as_path(self.tokenizer, "the tokenizer")
        if self.cache_dir is not None:
            object.__setattr__(self, "cache_dir", as_path(self.cache_dir, "the cache directory"))
        check_fields(self)
        if self.pretrained is not None and self.random_weights:
            raise OptionError(
                f"pretrained weights '{self.pretrained}' and random weights cannot be used together; leave one of them out"
            )
        if self.pretrained is not None and not self.pretrained.strip():
            raise OptionError("the tag of the pretrained weights is empty; give a tag, a checkpoint file, or none")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"seed is {self.seed}; expected 0 or more, below 2**63")
        if self.opset not in OPSETS:
            raise OptionError(f"opset is {self.opset}; expected one of {', '.join(map(str, OPSETS))}")
        if not self.max_abs_diff > 0 or not -1 <= self.min_cosine <= 1:
            raise OptionError(
                f"parity bounds are {self.max_abs_diff} and {self.min_cosine}; expected a positive difference and a cosine"
            )
        if not 0 < self.external_data_bytes <= EXTERNAL_DATA_BYTES:
            raise OptionError(
                f"external data begins at {self.external_data_bytes} bytes; expected 1 to {EXTERNAL_DATA_BYTES}"
            )
