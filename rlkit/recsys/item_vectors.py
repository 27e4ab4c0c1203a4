"""Vectors of items from what the data has: texts and train transitions. Seconds for thousands of items, no network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

WINDOW = 3
"""Two items of a sequence count as neighbors up to this distance, less the further they are apart."""


def text_embeddings(texts: Sequence[str], dimensions: int, seed: int) -> np.ndarray:
    """Embed texts by TF-IDF over words and pairs of words, and truncated SVD.

    Returns:
        (N, D) float32 rows of length 1, with D <= ``dimensions``; zeros for a text without a word.
    """
    weights = _word_weights(texts)
    return np.zeros((len(texts), 1), dtype=np.float32) if weights is None else _reduced(weights, dimensions, seed)


def text_neighbors(texts: Sequence[str], count: int) -> sparse.csr_array:
    """Find each text's nearest other texts by the cosine of TF-IDF.

    Returns:
        (N, N) float32 similarities of the ``count`` nearest, each row summing to 1; empty for a text like no other.
    """
    weights, size = _word_weights(texts), len(texts)
    if weights is None or size < 2:
        return sparse.csr_array((size, size), dtype=np.float32)
    search = NearestNeighbors(n_neighbors=min(count + 1, size), metric="cosine").fit(weights)
    distance, neighbor = search.kneighbors(weights)  # (N, count + 1), mostly with the text itself
    text = np.repeat(np.arange(size), neighbor.shape[1])
    similarity = np.where(neighbor.ravel() == text, 0.0, np.clip(1.0 - distance.ravel(), 0.0, None))
    graph = sparse.csr_array((similarity, (text, neighbor.ravel())), shape=(size, size))
    graph.eliminate_zeros()
    return sparse.csr_array(sparse.diags_array(1.0 / np.maximum(graph.sum(axis=1), 1e-12)) @ graph).astype(np.float32)


def _word_weights(texts: Sequence[str]) -> sparse.csr_matrix | None:
    """Return TF-IDF over words and pairs of words, (N, V); None where no text holds a word."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", dtype=np.float32)
    if not any(map(vectorizer.build_analyzer(), texts)):
        return None
    return vectorizer.fit_transform(texts)


def transition_embeddings(sequences: Sequence[Sequence[int]], num_items: int, dimensions: int, seed: int) -> np.ndarray:
    """Embed items by the company they keep: positive pointwise mutual information and truncated SVD.

    Levy and Goldberg 2014, "Neural word embedding as implicit matrix factorization", section 3.2.

    Args:
        sequences: items of each user in time order; train rows only.
        num_items: N.
        dimensions: the most that are kept.
        seed: of the decomposition.

    Returns:
        (N, D) float32 rows of length 1, with D <= ``dimensions``; zeros for an item without neighbors.
    """
    pairs: list[tuple[int, int, float]] = [
        (first, second, 1 / lag)
        for sequence in sequences
        for lag in range(1, WINDOW + 1)
        for first, second in zip(sequence, sequence[lag:])
        if first != second
    ]
    if not pairs:
        return np.zeros((num_items, 1), dtype=np.float32)
    first, second, weight = map(np.asarray, zip(*pairs))
    counts = sparse.coo_array((weight, (first, second)), shape=(num_items, num_items)).tocsr()
    counts = (counts + counts.T).tocoo()
    totals = counts.sum(axis=1)
    information = np.log(counts.data * totals.sum() / (totals[counts.coords[0]] * totals[counts.coords[1]]))
    positive = sparse.coo_array((information.clip(0).astype(np.float32), counts.coords), shape=counts.shape)
    return _reduced(positive.tocsr(), dimensions, seed)


def _reduced(matrix: sparse.csr_array, dimensions: int, seed: int) -> np.ndarray:
    kept = max(1, min(dimensions, min(matrix.shape) - 1))
    vectors = TruncatedSVD(kept, random_state=seed).fit_transform(matrix)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-6).astype(np.float32)
