"""Embed a folder with Ray, then read the embeddings shard by shard and find near-duplicates.

    python examples/ray_job.py demo-cpu photos/ embeddings                       # a Ray of its own on this machine
    python examples/ray_job.py /shared/b32 /shared/photos /shared/out auto       # the running cluster
    ray job submit -- python examples/ray_job.py /shared/b32 /shared/photos /shared/out auto

The same command goes on after an interruption. On a cluster all paths are on a file system that every machine mounts.
"""

from __future__ import annotations

import sys

import numpy as np

import clipmlu

SIMILAR = 0.98


def main(bundle: str, images: str, folder: str, address: str | None = None) -> int:
    """Run or continue the job, and print pairs of images that look alike within a shard."""
    clipmlu.embed_images(bundle, [images], folder, engine="ray", processes=2, ray_address=address, shard_size=1000)
    count = 0
    for ids, embeddings in clipmlu.open_job(folder).blocks():
        count += len(ids)
        cosines = embeddings @ embeddings.T
        for first, second in zip(*np.nonzero(np.triu(cosines > SIMILAR, k=1)), strict=True):
            print(f"{ids[first]} and {ids[second]}: {cosines[first, second]:.3f}")
    print(f"{count} images embedded")
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(f"usage: {sys.argv[0]} BUNDLE IMAGES FOLDER [RAY_ADDRESS]")
    sys.exit(main(*sys.argv[1:]))
