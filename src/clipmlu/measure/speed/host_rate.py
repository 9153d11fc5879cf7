"""The rate at which one core of this machine prepares images, measured in a moment; for ``clipmlu doctor``."""

from __future__ import annotations

import functools
import time

import numpy as np

from clipmlu.data.preprocess import Preprocessor
from clipmlu.files.publish import scratch_directory
from clipmlu.measure.speed.bottleneck import draw_photos
from clipmlu.specs import PreprocessSpec

_PHOTOS, _ROUNDS = 6, 3
_SPEC = PreprocessSpec(height=224, width=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@functools.cache
def prepared_per_core_second() -> float:
    """Return how many drawn JPEG photos, of 0.58 megapixels in the mean, one core decodes and preprocesses to 224 x 224 in a second.

    It counts the CPU time of this thread, so that other programs hardly change it.

    Raises:
        OutputError: no temporary file can be written.
    """
    preprocessor = Preprocessor(_SPEC)
    place = np.empty(preprocessor.shape, np.float32)
    seconds = []
    with scratch_directory() as folder:
        paths = draw_photos(folder, _PHOTOS)
        for _ in range(_ROUNDS):
            start = time.thread_time()
            for path in paths:
                preprocessor.write(preprocessor.decode(path), place)
            seconds.append(time.thread_time() - start)
    return _PHOTOS / min(seconds)
