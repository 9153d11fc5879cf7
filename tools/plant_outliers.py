"""Write a copy of a CLIP model whose activations have outlier channels, with equal results.

    python tools/plant_outliers.py MODEL_DIR OUTPUT_DIR [--channels 4] [--factor 64] [--seed 0]

Before every attention and every MLP, a few channels of LayerNorm's gain and offset are multiplied by a power of two,
and the matching columns of the next weights are divided by it, which is exact in float32. Large models have such
channels by nature; a quantiser with one scale per tensor loses much accuracy with them. MODEL_DIR and the copy are in
open_clip's directory format.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

WEIGHTS_NAME = "open_clip_model.safetensors"
_NORM = re.compile(r"(?P<block>.*resblocks\.\d+)\.ln_(?P<number>[12])\.weight")
_NEXT = {"1": "attn.in_proj_weight", "2": "mlp.c_fc.weight"}


def plant_outliers(model: Path, output: Path, *, channels: int, factor: float, seed: int) -> int:
    """Write the copy.

    Args:
        model: directory of the model.
        output: directory to write.
        channels: outliers in each LayerNorm.
        factor: factor of the outliers; a power of two, so that nothing is rounded.
        seed: random seed of the choice of channels.

    Returns:
        The number of LayerNorms with outliers.
    """
    if np.log2(factor) % 1:
        raise ValueError(f"factor is {factor}; expected a power of two")
    shutil.copytree(model, output)
    weights = {name: array.astype(np.float32) for name, array in load_file(model / WEIGHTS_NAME).items()}
    generator = np.random.default_rng(seed)
    planted = 0
    for name in sorted(weights):
        found = _NORM.fullmatch(name)
        if found is None:
            continue
        chosen = generator.choice(len(weights[name]), channels, replace=False)
        weights[name][chosen] *= factor
        weights[name.removesuffix("weight") + "bias"][chosen] *= factor
        weights[f"{found['block']}.{_NEXT[found['number']]}"][:, chosen] /= factor
        planted += 1
    save_file(weights, output / WEIGHTS_NAME)
    return planted


def main() -> None:
    """Read the arguments and write the copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--factor", type=float, default=64.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    count = plant_outliers(given.model, given.output, channels=given.channels, factor=given.factor, seed=given.seed)
    print(f"{count} LayerNorms have {given.channels} channels of {given.factor:g} times their size: {given.output}")


if __name__ == "__main__":
    main()
