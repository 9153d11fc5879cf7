"""Open set: an image may show none of the classes.

Two rules decide it, alone or together. *Background classes*, such as "person" and "landscape", compete with the classes: the
probability of the none label is the sum of theirs, and if that is the largest, the image shows none of the classes. And a
*threshold*: if the best class has a smaller probability, it is rejected. A model with a logit bias, such as SigLIP, gives
each class a probability of its own, on which other classes have no influence: there the threshold decides alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from clipmlu.arguments import as_texts, check_argument, shown
from clipmlu.data.class_names import resolve_class_names
from clipmlu.errors import OptionError
from clipmlu.specs import Probability, Spec

if TYPE_CHECKING:
    from clipmlu.embed.rows import FloatArray

DEFAULT_NONE_LABEL = "none of these"
DEFAULT_BACKGROUND = (
    "thing",
    "person",
    "animal",
    "plant",
    "food",
    "vehicle",
    "building",
    "room",
    "landscape",
    "sky",
    "screen",
    "document",
    "drawing",
    "texture",
    "blur",
)
"""Names of the background classes, which the templates complete like the names of classes."""


class OpenSet(Spec, frozen=True, kw_only=True):
    """How a classifier recognises images of none of its classes.

    Attributes:
        none_label: the name of that result.
        background: names of the background classes; empty if the threshold decides alone.
        reject_below: smallest probability of a class that is not rejected, 0..1; None if the background decides alone.
    """

    none_label: str
    background: tuple[str, ...]
    reject_below: Probability | None


def resolve_open_set(
    class_names: Sequence[str],
    *,
    none_label: str | None,
    background: str | Sequence[str] | None,
    reject_below: float | None,
    logit_bias: float | None,
) -> OpenSet | None:
    """Return the rules for images of none of the classes, or None if nothing is given.

    Args:
        class_names: the classes.
        none_label: name of the result; None for ``"none of these"`` if a rule is given.
        background: names of the background classes, or a file or list of them as ``--labels`` takes it; None for
            ``DEFAULT_BACKGROUND`` if there is a ``none_label``, else for none. A name of the default list that is a class is left out.
        reject_below: see ``OpenSet``.
        logit_bias: bias of the model, or None.

    Raises:
        OptionError: a value has another type or is out of range, a name is also a class, or the model has a logit bias and
            the threshold is missing or background classes are given.
    """
    check_argument(none_label, str | None, "none label")
    threshold = check_argument(reject_below, Probability | None, "reject below")
    if none_label is None and background is None and threshold is None:
        return None
    label = DEFAULT_NONE_LABEL if none_label is None else _checked_label(none_label, class_names)
    names = _background(class_names, background, default=none_label is not None and logit_bias is None)
    if logit_bias is not None and names:
        raise OptionError(
            f"background is {shown(background)}, but this model has a logit bias: each class has a probability of its own, on "
            "which other classes have no influence. Give reject_below (--reject-below) without a background"
        )
    if not names and threshold is None:
        raise OptionError(
            f"none label is '{label}' without a rule: give reject_below (--reject-below), a probability such as 0.3"
            + ("" if logit_bias is None else "; this model has a logit bias, for which background classes mean nothing")
        )
    return OpenSet(none_label=label, background=names, reject_below=threshold)


def _checked_label(label: str, class_names: Sequence[str]) -> str:
    if not label.strip():
        raise OptionError(f"none label is {label!r}; expected a name for images of none of the classes")
    if label in class_names:
        raise OptionError(f"none label is '{label}', which is also a class; choose another name")
    return label


def _background(
    class_names: Sequence[str], background: str | Sequence[str] | None, *, default: bool
) -> tuple[str, ...]:
    classes = {name.casefold() for name in class_names}
    if background is None:
        return tuple(name for name in DEFAULT_BACKGROUND if name not in classes) if default else ()
    given = resolve_class_names(background) if isinstance(background, str) else as_texts(background, "background")
    names = tuple(dict.fromkeys(given))
    for name in names:
        if not name.strip():
            raise OptionError(f"background has {name!r}; expected a name")
        if name.casefold() in classes:
            raise OptionError(f"background has '{name}', which is also a class; leave it out")
    return names


def outcome_scores(scores: FloatArray, classes: int) -> FloatArray:
    """Return the probabilities of the classes and, as the last column, of the none label.

    Args:
        scores: probabilities, shape (N, C + B): of the C classes, and of B background classes, which may be none.
        classes: C.

    Returns:
        Shape (N, C + 1). The last column is the sum over the background classes; without them it is 1 minus the probability
        of the best class, which is the probability that the best class is wrong.
    """
    named = scores[:, :classes]
    none = scores[:, classes:].sum(axis=1) if scores.shape[1] > classes else 1 - named.max(axis=1)
    return np.concatenate([named, np.clip(none, 0, 1)[:, None]], axis=1)


def outcome_ranks(logits: FloatArray, scores: FloatArray, open_set: OpenSet) -> FloatArray:
    """Return a number for each outcome, by which they are ranked, largest first.

    Args:
        logits: shape (N, C + B); see ``outcome_scores``.
        scores: result of ``outcome_scores``, shape (N, C + 1).
        open_set: the rules.

    Returns:
        Shape (N, C + 1): the logits of the classes, and for the none label the logarithm of the sum of the exponentials of the
        background's logits; plus infinity if the threshold rejects the image, minus infinity without background.
    """
    classes = scores.shape[1] - 1
    none = np.full(len(logits), -np.inf, logits.dtype)
    if open_set.background:
        none = np.logaddexp.reduce(logits[:, classes:], axis=1)
    if open_set.reject_below is not None:
        none[scores[:, :classes].max(axis=1) < open_set.reject_below] = np.inf
    ranks: FloatArray = np.concatenate([logits[:, :classes], none[:, None]], axis=1)
    return ranks
