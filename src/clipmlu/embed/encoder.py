"""The encoder: embeds images and texts with the graphs of a compiled bundle."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from clipmlu.arguments import as_texts, check_argument
from clipmlu.backends import Backend, Session, SessionOptions, get_backend
from clipmlu.backends.several_devices import (
    batches_under_way,
    check_devices,
    check_has_cards,
    open_on_devices,
    resolve_devices,
)
from clipmlu.bundle.directory import CompiledBundle, open_compiled
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.clock import StageClock
from clipmlu.data.feeds import Array
from clipmlu.embed.rows import (
    FloatArray,
    PendingRows,
    PixelArray,
    TrimmedRows,
    check_array,
    check_embedding_shape,
    check_finite,
    check_logits,
    check_rows,
    check_unit_norms,
    pad_rows,
)
from clipmlu.errors import BundleCorruptError, BundleError, InputError, ShapeError
from clipmlu.lifetime import Lifetime
from clipmlu.specs import PositiveInt, TowerName

if TYPE_CHECKING:
    from clipmlu.data.preprocess import Preprocessor
    from clipmlu.data.tokenizer import Tokenizer


class Encoder:
    """The graphs of a compiled bundle, two towers or the fused one, each opened on first use.

    Threads may share an encoder. A forked process must not use it, but load the bundle itself. Pickling stores the
    bundle's path; unpickling and copying load another encoder from there with the same options.

    Args:
        bundle: the bundle, or graphs outside a bundle.
        options: run-time options.
        devices: as for ``load``; None for the card of ``options``.
        fast_preprocess: as for ``load``.
        without: towers that will not be used, whose files were not checked.
        check_results: raise for results with NaN or of a wrong norm; False for measurements of such results.

    Attributes:
        runnable: the graphs and facts of the bundle.
    """

    def __init__(
        self,
        bundle: CompiledBundle | RunnableModel,
        options: SessionOptions | None = None,
        *,
        devices: Sequence[int] | str | None = None,
        fast_preprocess: bool = False,
        without: tuple[TowerName, ...] = (),
        max_pixels: int | None = None,
        check_results: bool = True,
    ) -> None:
        self._max_pixels = check_argument(max_pixels, PositiveInt | None, "max pixels")
        self._check_results = check_results
        given: CompiledBundle | RunnableModel = check_argument(bundle, CompiledBundle | RunnableModel, "bundle")
        self._bundle = given if isinstance(given, CompiledBundle) else None
        self.runnable = given.runnable if isinstance(given, CompiledBundle) else given
        self._fast_preprocess = check_argument(fast_preprocess, bool, "fast preprocess")
        self._without = without
        self._options = check_argument(options, SessionOptions | None, "options") or SessionOptions()
        self._devices = None if devices is None else check_devices(devices)
        if self._devices is not None:
            check_has_cards(self._backend(self.runnable.image_graph), self.runnable, self._devices)
            first = 0 if self._devices == "all" else self._devices[0]
            several = self._devices == "all" or len(self._devices) > 1
            self._options = dataclasses.replace(self._options, device=first, one_of_several=several)
        self._sessions: dict[TowerName, Session] = {}
        self._opening = threading.RLock()
        self._lifetime = Lifetime(f"Bundle '{bundle.path}'", f"Load it again: clipmlu.load('{bundle.path}').")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._bundle or self.runnable!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return EncoderRecipe.load, (self.recipe(),)

    def recipe(self) -> EncoderRecipe:
        """Return how to load another encoder of this bundle with the same options, for instance in another process."""
        self.require_open()
        return EncoderRecipe(
            kind=type(self),
            path=os.path.abspath(self.bundle.path),
            digest=self.bundle.digest,
            options=self._options,
            devices=self._devices,
            fast_preprocess=self._fast_preprocess,
            without=self._without,
            max_pixels=self._max_pixels,
            check_results=self._check_results,
        )

    def __enter__(self) -> Self:
        self.require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the runtime's resources; batches in flight and later calls fail. Closing twice is allowed."""
        if not self._lifetime.end():
            return
        with self._opening:
            sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            session.close()

    def require_open(self) -> None:
        """Check that the encoder is open.

        Raises:
            SessionError: it is closed, or this process was forked from the one that opened it.
        """
        self._lifetime.check()

    @property
    def bundle(self) -> CompiledBundle:
        """The bundle on disk.

        Raises:
            BundleError: the graphs are not in a bundle.
        """
        if self._bundle is None:
            raise BundleError(
                f"The graphs in '{self.runnable.path}' are not part of a compiled bundle. Compile the model, and load its bundle."
            )
        return self._bundle

    @property
    def embedding_dim(self) -> int:
        """Elements of an embedding."""
        return self.runnable.facts.embedding_dim

    @property
    def batch_size(self) -> int:
        """The batch size of the compilation."""
        return self.runnable.compilation.batch_size

    @property
    def options(self) -> SessionOptions:
        """Options of the sessions; with several cards those of the first one, which also runs the text tower."""
        return self._options

    @functools.cached_property
    def devices(self) -> tuple[int, ...]:
        """Indices of the cards that compute images; if all were chosen, the SDK is asked.

        Raises:
            BackendUnavailableError: the SDK cannot be reached, or reports no card.
        """
        if self._devices is None:
            return (self._options.device,)
        return resolve_devices(self._backend(self.runnable.image_graph), self.runnable, self._devices, self._options)

    @property
    def batches_in_flight(self) -> int:
        """Number of batches that the runtime has at a time."""
        return batches_under_way(self.devices, self._options.in_flight)

    @property
    def pixel_dtype(self) -> np.dtype[np.generic]:
        """Dtype of the image graph's input: float32 for normalised pixels, or uint8 if the graph normalises them."""
        return np.dtype(self.runnable.tower(self.runnable.image_graph).inputs[0].dtype)

    @property
    def joint_text_rows(self) -> int | None:
        """Texts per batch of the fused graph; None if the number is dynamic.

        Raises:
            BundleError: the bundle has two towers.
        """
        size = self.runnable.tower("joint").inputs[1].shape[0]
        return size if isinstance(size, int) else None

    @functools.cached_property
    def preprocessor(self) -> Preprocessor:
        """Converts images to input tensors as in the model's training."""
        from clipmlu.data.images import DEFAULT_MAX_PIXELS
        from clipmlu.data.preprocess import Preprocessor

        limit = DEFAULT_MAX_PIXELS if self._max_pixels is None else self._max_pixels
        return Preprocessor(self.runnable.facts.preprocess, fast=self._fast_preprocess, max_pixels=limit)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Converts texts to token ids as in the model's training."""
        from clipmlu.data.tokenizer import Tokenizer

        return Tokenizer.load(self.runnable.tokenizer_path, self.runnable.facts.tokenizer)

    def check_batch_size(self, batch_size: int | None) -> int:
        """Return the batch size to use: the bundle's own for None, else ``batch_size`` if the bundle supports it.

        Raises:
            OptionError: it is not an integer of 1 or more.
            ShapeError: the bundle was compiled for other batches.
        """
        self.require_open()
        rows: int | None = check_argument(batch_size, PositiveInt | None, "batch size")
        if rows is None:
            return self.batch_size
        check_rows(self.runnable, rows, exact=True)
        return rows

    def encode_images(self, pixel_values: PixelArray) -> FloatArray:
        """Embed preprocessed images with the image tower.

        Args:
            pixel_values: dtype ``pixel_dtype``, shape (N, 3, H, W); N may be 0. float32 pixels are normalised as the
                manifest says, uint8 ones are RGB in 0..255; ``preprocessor.write`` produces both.

        Returns:
            float32 embeddings, shape (N, D), each row of unit L2 norm.

        Raises:
            ShapeError: the bundle has another dtype or shape.
            InputError: a pixel is NaN or infinite, which a mode that quantises would convert to a finite number.
        """
        check_array(pixel_values, "pixel_values")
        check_finite(pixel_values)
        return self._encode("image", pixel_values)

    def encode_tokens(
        self, input_ids: npt.NDArray[np.int64], *, on_rows: Callable[[int], object] = lambda _count: None
    ) -> FloatArray:
        """Embed tokenised texts with the text tower.

        Args:
            input_ids: int64, shape (N, context length); N may be 0.
            on_rows: called with the number of texts of each batch when it is done.

        Returns:
            float32 embeddings, shape (N, D), each row of unit L2 norm.

        Raises:
            ShapeError: the bundle has another dtype or shape.
            InputError: a token is negative or beyond the vocabulary, for which runtimes give undefined results.
        """
        self.check_tokens(input_ids)
        return self._encode("text", input_ids, on_rows)

    def submit_images(self, pixel_values: PixelArray) -> PendingRows:
        """Start one batch on the image tower and return at once; batches finish in the order of submission.

        Args:
            pixel_values: as for ``encode_images``; 1 <= N <= the largest batch of the bundle.

        Raises:
            ShapeError: the bundle has another dtype or shape.
        """
        check_array(pixel_values, "pixel_values")
        return self._submit("image", (pixel_values,))

    def submit_tokens(self, input_ids: npt.NDArray[np.int64]) -> PendingRows:
        """Start one batch on the text tower and return at once; see ``submit_images``.

        Args:
            input_ids: int64, shape (N, context length); 1 <= N <= the largest batch of the bundle.

        Raises:
            ShapeError: the bundle has another dtype or shape.
            InputError: as for ``encode_tokens``.
        """
        self.check_tokens(input_ids)
        return self._submit("text", (input_ids,))

    def submit_pairs(self, pixel_values: PixelArray, input_ids: npt.NDArray[np.int64]) -> PendingRows:
        """Start one batch on the fused graph, every image with every text, and return at once; see ``submit_images``.

        Args:
            pixel_values: as for ``submit_images``.
            input_ids: int64, shape (M, context length), 1 <= M <= ``joint_text_rows``; padded to that and trimmed.

        Returns:
            The pending logits: float32, shape (N, M), with the model's scale and bias.

        Raises:
            BundleError: the bundle has two towers.
            ShapeError: the bundle has another dtype or shape.
            InputError: as for ``encode_tokens``.
        """
        self.require_open()
        check_array(pixel_values, "pixel_values")
        self.check_tokens(input_ids)
        texts, fixed = len(input_ids), self.joint_text_rows
        if not 1 <= texts <= (fixed or texts):
            raise ShapeError(
                f"There are {texts} texts, but bundle '{self.runnable.path}' takes exactly {fixed or 'one or more'} at a time; "
                "fewer are padded. Split them, or compile with another --text-rows."
            )
        padded = input_ids if fixed is None else pad_rows(input_ids, fixed)
        return self._submit("joint", (pixel_values, padded), texts)

    def device_clock(self, tower: TowerName) -> StageClock:
        """Return the clock of a tower (copying in, computing, copying out); opens the tower if necessary."""
        return self._session(tower).clock

    def worker_restarts(self) -> int:
        """Workers of the SDK that were lost and replaced, of the towers that are open."""
        return sum(session.restarts for session in list(self._sessions.values()))

    def embed_texts(
        self, texts: str | Sequence[str], *, on_rows: Callable[[int], object] = lambda _count: None
    ) -> FloatArray:
        """Embed texts.

        Args:
            texts: one text or a list of them.
            on_rows: as for ``encode_tokens``.

        Returns:
            float32 embeddings of unit L2 norm: shape (D,) for one text, (N, D) for many.

        Raises:
            OptionError: ``texts`` is neither a string nor a list of strings.
        """
        embeddings = self._encode_text_list(as_texts(texts, "texts"), on_rows)
        return embeddings[0] if isinstance(texts, str) else embeddings

    def _encode_text_list(self, texts: list[str], on_rows: Callable[[int], object]) -> FloatArray:
        self.require_open()
        self.runnable.tower("text")
        if not texts:
            return np.zeros((0, self.embedding_dim), np.float32)
        return self.encode_tokens(self.tokenizer(texts), on_rows=on_rows)

    def check_tokens(self, input_ids: object) -> None:
        """Check that token ids are valid for the tokenizer, since runtimes give undefined results for others.

        Raises:
            ShapeError: they are not an array of int64.
            InputError: a token is negative or beyond the vocabulary.
        """
        self.require_open()
        tokens = check_array(input_ids, "input_ids")
        if tokens.dtype != np.int64 or not tokens.size:
            return  # the session raises
        lowest, highest, largest = int(tokens.min()), int(tokens.max()), self.tokenizer.largest_id
        if lowest < 0 or highest > largest:
            wrong = lowest if lowest < 0 else highest
            row = int(np.argwhere(tokens == wrong)[0][0])
            raise InputError(
                f"input_ids[{row}] holds the token {wrong}; expected 0 to {largest}, as the tokenizer of bundle "
                f"'{self.runnable.path}' gives."
            )

    def _session(self, tower: TowerName) -> Session:
        self.require_open()
        session = self._sessions.get(tower)
        if session is not None:
            return session
        with self._opening:  # threads open it once only
            self.require_open()
            if tower not in self._sessions:
                self._sessions[tower] = self._open(tower)
            return self._sessions[tower]

    def _open(self, tower: TowerName) -> Session:
        backend = self._backend(tower)
        if tower == self.runnable.image_graph and len(self.devices) > 1:
            return open_on_devices(backend, self.runnable, tower, self._options, self.devices)
        return backend.open(self.runnable, tower, self._options)

    def _backend(self, tower: TowerName) -> Backend:
        return get_backend(self.runnable.compilation.placement(tower).backend)

    def _encode(
        self, tower: TowerName, rows: Array, on_rows: Callable[[int], object] = lambda _count: None
    ) -> FloatArray:
        self.require_open()
        self.runnable.tower(tower)
        result = np.empty((len(rows), self.embedding_dim), np.float32)
        running: deque[tuple[int, PendingRows]] = deque()

        def finish_one() -> None:
            start, pending = running.popleft()
            embeddings = pending.result()
            result[start : start + len(embeddings)] = embeddings
            on_rows(len(embeddings))

        for start in range(0, len(rows), self.batch_size):
            if len(running) == self.batches_in_flight:
                finish_one()
            running.append((start, self._submit(tower, (rows[start : start + self.batch_size],))))
        while running:
            finish_one()
        return result

    def _submit(self, tower: TowerName, arrays: tuple[Array, ...], columns: int | None = None) -> PendingRows:
        """Start a batch; for a static shape the first array is padded and the first output trimmed."""
        session = self._session(tower)
        rows = len(arrays[0])
        check_rows(self.runnable, rows, exact=False)
        padded = arrays[0] if self.runnable.compilation.dynamic_shape else pad_rows(arrays[0], self.batch_size)
        output_name = next(iter(session.outputs))
        pending = session.submit(dict(zip(session.inputs, (padded, *arrays[1:]), strict=True)))
        check = functools.partial(self._check_results_of, tower)
        return TrimmedRows(pending, lambda outputs: outputs[output_name][:rows, :columns], check)

    def _check_results_of(self, tower: TowerName, rows: FloatArray) -> None:
        if tower != "joint":
            check_embedding_shape(self.runnable, tower, rows)
        if not self._check_results:
            return
        if tower == "joint":
            check_logits(self.runnable, rows)
        else:
            check_unit_norms(self.runnable, tower, rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderRecipe:
    """How an encoder is loaded: a value for other processes.

    Attributes:
        kind: class of the encoder.
        path: absolute path of the bundle.
        digest: digest of the bundle.
        options: run-time options.
        devices: see ``Encoder``, and so for the others.
        fast_preprocess, without, max_pixels, check_results: see ``Encoder``.
    """

    kind: type[Encoder]
    path: str
    digest: str
    options: SessionOptions
    devices: Sequence[int] | Literal["all"] | None
    fast_preprocess: bool
    without: tuple[TowerName, ...]
    max_pixels: int | None
    check_results: bool

    def load(self) -> Encoder:
        """Load the encoder.

        Raises:
            BundleError: the bundle does not exist, or is another one.
        """
        bundle = open_compiled(self.path, without=self.without)
        if bundle.digest != self.digest:
            raise BundleCorruptError(
                f"Bundle '{self.path}' is not the bundle of the pickled model: it was replaced. Load it and pickle it again."
            )
        return self.kind(
            bundle,
            self.options,
            devices=self.devices,
            fast_preprocess=self.fast_preprocess,
            without=self.without,
            max_pixels=self.max_pixels,
            check_results=self.check_results,
        )
