"""Name what a camera sees, frame by frame; without a camera, what a video or a folder of images shows.

    python examples/camera_loop.py demo-cpu photos/ "red circle,green star,a tree"
    python examples/camera_loop.py b32-cpu 0 "a cup,a phone,a hand"      # camera 0; needs opencv-python
    python examples/camera_loop.py b32-cpu clip.mp4 "a cup,a phone"      # a video; needs opencv-python

The scores are averaged over some frames, so that the name does not flicker, and a line is printed when it changes. The class embeddings are computed
once, before the loop; each frame costs one run of the image tower.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import clipmlu

KEEP = 0.5
"""Weight of the earlier frames in the average: 0 forgets them, 0.9 remembers some ten."""


def frames(source: str) -> Iterator[np.ndarray]:
    """Yield RGB images, uint8, shape (H, W, 3), of a folder, a camera's number, or a video file."""
    if Path(source).is_dir():
        for path in sorted(Path(source).iterdir()):
            with Image.open(path) as image:
                yield np.asarray(image.convert("RGB"))
        return
    import cv2

    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not capture.isOpened():
        sys.exit(f"cannot open '{source}'; expected a folder, a video file, or the number of a camera")
    try:
        while True:
            good, frame = capture.read()
            if not good:
                return
            yield frame[:, :, ::-1]  # OpenCV's order of channels is BGR; CLIP's is RGB
    finally:
        capture.release()


def main(bundle: str, source: str, labels: str) -> int:
    """Print the best class whenever it changes."""
    shown = None
    average: dict[str, float] = {}
    with clipmlu.load(bundle) as model:
        classifier = model.classifier(labels)
        for number, frame in enumerate(frames(source)):
            found = classifier.predict(np.ascontiguousarray(frame), top_k=len(classifier.class_names))
            for name, score in zip(found.class_names, found.scores, strict=True):
                average[name] = KEEP * average.get(name, score) + (1 - KEEP) * score
            best = max(average, key=lambda name: average[name])
            if best != shown:
                print(f"frame {number}: {best} {average[best]:.0%}", flush=True)
                shown = best
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} BUNDLE FOLDER|VIDEO|CAMERA LABELS")
    sys.exit(main(*sys.argv[1:]))
