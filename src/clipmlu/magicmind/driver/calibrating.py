"""Calibration data, passed to the SDK one batch of one input at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .errors import DriverError
from .sdk import data_type_of, narrowed
from .spec import SOURCE_FORM, check_form
from .values import Array, Fields


class Batches:
    """The calibration batches of one input.

    Args:
        source: ``arrays``: a list of arrays, one batch each; or ``files``: ``.npy`` files, one batch each; or ``file``
            and ``batch``: one ``.npy`` file that is split into batches along its first axis; the last one may be
            smaller. With ``repeat`` the only batch is passed at each step, such as a fixed set of texts.
        narrow: pass int64 as int32, as the vendor's CLIP sample does (api 6.3).
    """

    def __init__(self, source: Fields, narrow: bool) -> None:
        check_form("calibration data", source, SOURCE_FORM, ())
        self.repeat = bool(source.get("repeat", False))
        self._narrow = narrow
        self._pieces = self._cut(source)
        if not self._pieces or (self.repeat and len(self._pieces) != 1):
            status = f"a data source has {len(self._pieces)} batches; expected 1 or more, and exactly 1 to repeat"
            raise DriverError("calibrate", status, kind="calibration")

    def __len__(self) -> int:
        return len(self._pieces)

    def load(self, index: int) -> Array:
        """Return one batch, contiguous; with ``repeat`` the same one for any index."""
        batch = self._pieces[0 if self.repeat else index]()
        if batch.dtype == np.int64 and self._narrow:
            batch = narrowed(batch, "calibrate")
        return np.ascontiguousarray(batch)

    @staticmethod
    def _cut(source: Fields) -> list[Callable[[], Array]]:
        if not {"arrays", "files", "file"} & set(source) or ("file" in source and int(source.get("batch", 0)) < 1):
            raise DriverError(
                "calibrate", "a data source needs arrays, files, or a file and a batch", kind="calibration"
            )
        if "arrays" in source:
            return [functools.partial(_as_given, item) for item in source["arrays"]]
        if "files" in source:
            return [functools.partial(_load_npy, path) for path in source["files"]]
        rows, size = _load_npy(source["file"]), int(source["batch"])
        starts = range(0, len(rows), size)
        return [functools.partial(_rows_of, rows, start, start + size) for start in starts]


def _as_given(item: Array) -> Array:
    return np.asarray(item)


def _rows_of(rows: Array, start: int, stop: int) -> Array:
    return rows[start:stop]


def _load_npy(path: str) -> Array:
    try:
        loaded: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises many exception types for a damaged file
        raise DriverError("calibrate", f"cannot read '{path}': {error}", kind="calibration") from error
    if not isinstance(loaded, np.ndarray) or not loaded.ndim:
        raise DriverError("calibrate", f"'{path}' holds no array of rows", kind="calibration")
    return loaded


def read_sources(items: Sequence[Fields], narrow: bool) -> list[Batches]:
    """Return the data of all inputs; those without ``repeat`` must have the same number of batches (api 7.10)."""
    sources = [Batches(item, narrow) for item in items]
    lengths = sorted({len(source) for source in sources if not source.repeat})
    if len(lengths) > 1:
        raise DriverError("calibrate", f"the inputs have different numbers of batches: {lengths}", kind="calibration")
    return sources


def make_calibration_data(sdk: Any, sources: Sequence[Batches]) -> list[Any]:
    """Return one ``CalibDataInterface`` for each input (api 2.10), all of the same length.

    An exception must not pass through the SDK's code: it is stored, the data end, and ``raise_failure`` raises it
    afterwards.
    """
    steps = max(len(source) for source in sources)

    class Data(sdk.CalibDataInterface):  # type: ignore[misc]
        def __init__(self, source: Batches) -> None:
            super().__init__()
            self.delivered = 0
            self._source = source
            self._step = 0
            self._failure: Exception | None = None
            self._batch = source.load(0)

        def next(self) -> Any:
            if self._step >= steps:
                return sdk.Status(sdk.Code.OUT_OF_RANGE, "end of the calibration data")
            try:
                self._batch = self._source.load(self._step)
            except Exception as error:
                self._failure = error
                return sdk.Status(sdk.Code.OUT_OF_RANGE, "the calibration data cannot be read")
            self._step += 1
            self.delivered = max(self.delivered, self._step)
            return sdk.Status.OK()

        def reset(self) -> Any:
            self._step = 0
            return sdk.Status.OK()

        def get_sample(self) -> Array:
            return self._batch

        def get_shape(self) -> Any:
            return sdk.Dims(list(self._batch.shape))

        def get_data_type(self) -> Any:
            return data_type_of(sdk, self._batch.dtype.name)

        def raise_failure(self) -> None:
            if self._failure is not None:
                raise DriverError("calibrate", str(self._failure), kind="calibration") from self._failure

    return [Data(source) for source in sources]
