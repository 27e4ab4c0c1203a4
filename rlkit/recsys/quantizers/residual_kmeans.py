"""Residual k-means: each level clusters what the levels before it left over; no two items end with the same codes.

Items that share all their codes are told apart by meaning, not at random: the last level gives them the nearest codes
that are free behind the same prefix, and one more level where none is free.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from rlkit.config.quantizers import ResidualKMeansSettings
from rlkit.errors import DataError
from rlkit.recsys.data.catalog import RecommendationData, user_sequences
from rlkit.recsys.item_vectors import text_embeddings, transition_embeddings
from rlkit.recsys.semantic_ids import SemanticIds, from_codes

SMALL_CATALOG = 2_048
"""Up to so many items two tokens say enough; a model learns an item's own transitions more readily from fewer."""


def residual_kmeans_ids(data: RecommendationData, settings: ResidualKMeansSettings, seed: int) -> SemanticIds:
    """Make a semantic ID for every item from its texts and the train transitions.

    Raises:
        DataError: neither texts nor transitions say anything about the items.
    """
    parts = []
    if settings.text_dimensions:
        texts = [f"{item.title} {item.brand} {item.category} {item.description}" for item in data.items]
        parts.append(text_embeddings(texts, settings.text_dimensions, seed))
    if settings.transition_dimensions:
        sequences = [items for _, items in user_sequences(data.splits["train"])]
        parts.append(transition_embeddings(sequences, len(data.items), settings.transition_dimensions, seed))
    if not any(part.any() for part in parts):
        raise DataError(
            f"{data.name}: residual_kmeans has nothing to go by, got text_dimensions {settings.text_dimensions!r} and"
            f" transition_dimensions {settings.transition_dimensions!r}; use those that the data can fill, or given IDs"
        )
    vectors = np.concatenate(parts, axis=1)
    levels = settings.levels or (2 if len(data.items) <= SMALL_CATALOG else 3)
    size = settings.codebook_size or default_codebook_size(len(data.items), levels)
    codes = residual_kmeans(vectors, levels=levels, codebook_size=size, seed=seed)
    return from_codes(codes, settings.type)


def default_codebook_size(items: int, levels: int) -> int:
    """Return M for N items: the power of two nearest to (8 N)^(1 / L), between 8 and 256.

    Few codes are shared by many items, which is what lets one item learn from another: with 256 codes for 600 items
    nearly every first code belongs to one or two of them.
    """
    return int(2 ** np.clip(round(np.log2(8 * items) / levels), 3, 8))


def residual_kmeans(embeddings: np.ndarray, *, levels: int, codebook_size: int, seed: int) -> np.ndarray:
    """Quantize vectors level by level so that every one gets codes of its own.

    Args:
        embeddings: (N, D) one vector per item.
        levels: L.
        codebook_size: M, codes per level.
        seed: of the cluster centers' start.

    Returns:
        (N, L) codes in [0, M); (N, L + 1) where codes ran out, the last column counting the items that would share all
        others, -1 for an item that needs none.
    """
    residual = np.asarray(embeddings, dtype=np.float32)
    columns = []
    for level in range(levels):
        before = residual
        codes, centers = _clusters(before, codebook_size, seed + level)
        columns.append(codes)
        residual = before - centers[codes]
    codes = _to_free_codes(np.stack(columns, axis=1), before, centers)
    extra = _shared_count(codes, ((before - centers[codes[:, -1]]) ** 2).sum(1))
    return codes if extra.max() < 0 else np.column_stack([codes, extra])


def _clusters(vectors: np.ndarray, codebook_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each vector's code (N,) and the centers (M, D)."""
    size = min(codebook_size, len(np.unique(vectors, axis=0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly equal vectors leave a code unused: no harm
        model = KMeans(size, random_state=seed).fit(vectors)
    return model.labels_.astype(np.int64), model.cluster_centers_


def _to_free_codes(codes: np.ndarray, vectors: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Move items that share all codes to last codes that are free behind their prefix, over the least distance."""
    codes = codes.copy()
    for members in _groups(codes[:, :-1]):
        last = codes[members, -1]
        counts = np.bincount(last, minlength=len(centers))
        if counts.max() < 2:
            continue
        shared = members[counts[last] > 1]
        open_codes = np.flatnonzero(counts != 1)  # the free ones, and those that one of the shared items can keep
        distances = ((vectors[shared, None] - centers[open_codes]) ** 2).sum(-1)
        rows, places = linear_sum_assignment(distances)
        codes[shared[rows], -1] = open_codes[places]
    return codes


def _shared_count(codes: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Number the items (N,) that share all codes, the nearest to their center first; -1 for an item by itself."""
    extra = np.full(len(codes), -1)
    for members in _groups(codes):
        if len(members) > 1:
            extra[members[np.argsort(distances[members], kind="stable")]] = np.arange(len(members))
    return extra


def _groups(codes: np.ndarray) -> list[np.ndarray]:
    """Return the items of each distinct row of codes."""
    group = (
        np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1) if codes.shape[1] else np.zeros(len(codes), int)
    )
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
