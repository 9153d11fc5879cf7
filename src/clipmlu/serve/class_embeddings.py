"""Classifiers for the labels of requests: class embeddings and classifiers are kept, and the least recently used ones go."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

from clipmlu.classify.building import EmbedsTexts, build_classifier, embed_classes
from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.classify.open_set import DEFAULT_BACKGROUND
from clipmlu.data.class_prompts import prompts_of
from clipmlu.data.prompts import TEMPLATE_SETS, resolve_templates
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.rows import FloatArray
from clipmlu.errors import UnknownNameError
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.requests import ClassesInput
from clipmlu.serve.text_limits import check_lengths

_KEPT_BYTES = 64 << 20  # of class embeddings with their prompts, and as much of classifiers
_ENTRY_BYTES = 4096  # about what an entry takes beside its values and texts
_BUILDERS = 4  # threads that wait for the text tower

Value = TypeVar("Value")


class LruCache(Generic[Value]):
    """Keeps values within a total size; the least recently used ones go first. Threads may share it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self.size = 0

    def get(self, key: Hashable) -> Value | None:
        """Return the value of a key, or None."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: Value, size: int = 1) -> None:
        """Keep a value of a size."""
        with self._lock:
            replaced = self._values.pop(key, None)
            self.size += size - (0 if replaced is None else replaced[1])
            self._values[key] = (value, size)
            while self.size > self._limit:
                self.size -= self._values.popitem(last=False)[1][1]

    def remove(self, key: Hashable) -> None:
        """Forget a key."""
        with self._lock:
            removed = self._values.pop(key, None)
            self.size -= 0 if removed is None else removed[1]


class Classifiers:
    """Makes classifiers for the labels of requests.

    Args:
        encoder: the bundle.
        texts: embeds the prompts.
        max_prompts: largest number of prompts of one request.
    """

    def __init__(self, encoder: Encoder, texts: EmbedsTexts, max_prompts: int) -> None:
        self._encoder = encoder
        self._texts = texts
        self._max_prompts = max_prompts
        self._classes: LruCache[FloatArray] = LruCache(_KEPT_BYTES)
        self._classifiers: LruCache[Future[ZeroShotClassifier]] = LruCache(_KEPT_BYTES)
        self._lock = threading.Lock()
        self._builders = ThreadPoolExecutor(_BUILDERS, "clipmlu-classes")

    def get(self, classes: ClassesInput) -> Future[ZeroShotClassifier]:
        """Return the classifier of a request's classes; requests with equal classes share one.

        Raises:
            Refusal: there are too many prompts, or a template is none.
        """
        templates = _check_templates(classes.templates)
        lengths = self._check_prompts(classes, templates)
        key = (_key(classes.labels), templates, classes.none_label, _key(classes.background), classes.reject_below)
        with self._lock:
            found = self._classifiers.get(key)
            if found is not None and not (found.done() and found.exception() is not None):
                return found
            found = self._builders.submit(self._build, classes, templates)
            self._classifiers.put(key, found, self._size_of(lengths))
        return found

    def close(self) -> None:
        """End the threads."""
        self._builders.shutdown(cancel_futures=True)

    def _build(self, classes: ClassesInput, templates: tuple[str, ...] | None) -> ZeroShotClassifier:
        assert classes.labels is not None, "the caller has checked it"
        return build_classifier(
            self._encoder,
            dict(classes.labels) if isinstance(classes.labels, Mapping) else tuple(classes.labels),
            templates,
            cache=False,
            none_label=classes.none_label,
            background=classes.background,
            reject_below=classes.reject_below,
            embed=self._embed,
            on_note=_ignore_note,
        )

    def _embed(self, names: Sequence[str], templates: Sequence[str], own: Mapping[str, Sequence[str]]) -> FloatArray:
        """Return class embeddings; only those of classes that are not kept are computed."""
        keys = {name: tuple(prompts_of(name, templates, own)) for name in names}
        known = {name: found for name, key in keys.items() if (found := self._classes.get(key)) is not None}
        missing = [name for name in keys if name not in known]
        if missing:
            for name, row in zip(missing, embed_classes(self._texts, missing, templates, own), strict=True):
                known[name] = row.copy()
                self._classes.put(keys[name], known[name], row.nbytes + sum(map(len, keys[name])))
        return np.stack([known[name] for name in names])

    def _size_of(self, lengths: Sequence[int]) -> int:
        """Return about the bytes of a classifier, given the lengths of its prompts."""
        row = self._encoder.embedding_dim * np.dtype(np.float32).itemsize
        return _ENTRY_BYTES + sum(lengths) + row * len(lengths)

    def _check_prompts(self, classes: ClassesInput, templates: tuple[str, ...] | None) -> list[int]:
        """Return the number of characters of each prompt, if neither they nor their number are above the limits."""
        labels = classes.labels or ()
        each = len(templates or ("{}",))
        background = classes.background
        if background is None:
            background = DEFAULT_BACKGROUND if classes.none_label is not None else ()
        own = sum(map(len, labels.values())) if isinstance(labels, Mapping) else len(labels) * each
        count = own + len(background) * each
        if count > self._max_prompts:
            raise Refusal(
                "too_large",
                f"The request has {count} prompts ({len(labels)} labels); this server takes {self._max_prompts}. Give fewer labels "
                "or templates, or start the server with --labels, or with a larger --max-texts.",
            )
        lengths = list(_prompt_lengths(labels, background, templates or ("{}",)))
        check_lengths(lengths)
        return lengths


def _check_templates(templates: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the templates of a request; a name that is no set would be read as the path of a file of this machine.

    Raises:
        Refusal: a text is neither a template nor the name of a set.
    """
    if templates is None:
        return None
    for template in templates:
        if "{}" not in template and template not in TEMPLATE_SETS:
            error = UnknownNameError("template set", template, TEMPLATE_SETS, "Or give a template with '{}' in it.")
            raise Refusal("bad_request", str(error))
    return tuple(found for template in templates for found in resolve_templates(template))


def _prompt_lengths(
    labels: Sequence[str] | Mapping[str, Sequence[str]], background: Sequence[str], templates: Sequence[str]
) -> Iterator[int]:
    """Yield the number of characters of each prompt, before it is made."""
    own = labels if isinstance(labels, Mapping) else {}
    for name, prompts in own.items():
        yield len(name)
        yield from (_filled_length(prompt, name) for prompt in prompts)
    for name in (*(() if own else labels), *background):
        yield from (_filled_length(template, name) for template in templates)


def _filled_length(template: str, name: str) -> int:
    places = template.count("{}")
    return len(template) + places * (len(name) - 2)


def _ignore_note(_line: str) -> None:
    """Ignore advice about the labels of a request, which do not belong into the log of the server."""


def _key(values: Sequence[str] | Mapping[str, Sequence[str]] | None) -> Hashable:
    if isinstance(values, Mapping):
        return tuple((name, tuple(prompts)) for name, prompts in values.items()), "prompts"
    return None if values is None else tuple(values)
