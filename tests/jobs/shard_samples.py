"""Rows of a shard for tests of formats."""

from __future__ import annotations

import numpy as np

from clipmlu.backends.provenance import Provenance
from clipmlu.jobs.rows import EmbeddingDtype, RowSchema, ShardRows
from clipmlu.specs import ModelId, Precision

CLASSES = ("cat", "crane", "crane", 'dog, "big"', "Füchse\u2028x")
DISTINCT = ("cat", "crane (1)", "crane (2)", 'dog, "big"', "Füchse\u2028x")
IDS = ("a.png", "b,c.png", 'say "hi".png', "line\nbreak\r.png", "zero\0.png", "Füchse 狐.png", "", "last.png")
FAILED = (1, 6)


def make_schema(*, embeds: bool = True, classifies: bool = True, dtype: EmbeddingDtype = "float32") -> RowSchema:
    return RowSchema(
        embedding_dim=6 if embeds else None,
        embedding_dtype=dtype,
        class_names=CLASSES if classifies else None,
        top_k=3 if classifies else None,
    )


def make_rows(schema: RowSchema, ids: tuple[str, ...] = IDS, seed: int = 0) -> ShardRows:
    """One row for each id; those at ``FAILED`` have an error."""
    random = np.random.default_rng(seed)
    count = len(ids)
    failed = [place for place in FAILED if place < count]
    embeddings = random.standard_normal((count, 6)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings = embeddings.astype(schema.embedding_dtype)
    classes = np.array([random.permutation(5)[:3] for _ in ids], np.int32).reshape(count, 3)
    scores = -np.sort(-random.random((count, 3), np.float32))
    embeddings[failed], classes[failed], scores[failed] = np.nan, -1, np.nan
    return ShardRows(
        ids=list(ids),
        widths=[None if place in failed else 10 + place for place in range(count)],
        heights=[None if place in failed else 20 + place for place in range(count)],
        errors=[f"Cannot read '{ids[place]}': broken" if place in failed else None for place in range(count)],
        embeddings=embeddings if schema.embedding_dim else None,
        classes=classes if schema.class_names else None,
        scores=scores if schema.class_names else None,
    )


def make_provenance(*, emulated: bool = False) -> Provenance:
    return Provenance(
        model=ModelId(name="demo"),
        bundle_digest="ab" * 32,
        target="cpu",
        precision=Precision.FORCE_FLOAT32,
        emulated=emulated,
        devices=(),
        tool_versions={"clipmlu": "9.8.7"},
    )


def assert_same_rows(found: ShardRows, expected: ShardRows) -> None:
    assert (found.ids, found.widths, found.heights) == (expected.ids, expected.widths, expected.heights)
    assert found.errors == expected.errors
    for name in ("embeddings", "classes", "scores"):
        left, right = getattr(found, name), getattr(expected, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
