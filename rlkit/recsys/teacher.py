"""A counting teacher for compact training: soft targets over the trie, from skip transitions.

Hinton et al. 2015, arXiv 1503.02531, section 2, with the teacher's distribution summed up over each prefix's
continuations. A recommender that only sees which item came next learns slowly which others could have; counting knows
at once. At every token of a sequence the teacher gives the share of its probability that lies below each allowed
continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import sparse

from rlkit.recsys.collaborative import Baseline, encode, fit_baselines, valid_ndcg
from rlkit.recsys.data.catalog import RecommendationData
from rlkit.recsys.item_vectors import text_neighbors
from rlkit.recsys.trie import Trie

TEXT_NEIGHBORS = 30
TEXT_WEIGHTS = (0.1, 0.2, 0.3, 0.5)
"""What text neighbors may weigh beside transitions; chosen on valid, 0 where none of them helps."""


def fit_counts(data: RecommendationData, sid_of_item: np.ndarray) -> Baseline:
    """Count skip transitions between semantic IDs on train, and add text neighbors where valid rows are better for it.

    Args:
        data: the catalog and its splits.
        sid_of_item: (N,) the distinct semantic ID of each item.
    """
    train, valid = data.splits["train"], data.splits["valid"]
    fitted = fit_baselines(train, valid, len(data.items), sid_of_item)
    best = next(baseline for baseline in fitted if baseline.name == "skip transitions")
    matrix, size = best.matrix, len(best.popularity)
    first = np.unique(sid_of_item, return_index=True)[1]  # an item of each semantic ID
    items = [data.items[index] for index in first]
    graph = text_neighbors([f"{i.title} {i.brand} {i.category} {i.description}" for i in items], TEXT_NEIGHBORS)
    rows = encode(valid, size, sid_of_item)
    score = valid_ndcg(best, rows)
    for weight in TEXT_WEIGHTS:
        tried = replace(best, matrix=sparse.csr_array(matrix + weight * graph))
        if (tried_score := valid_ndcg(tried, rows)) > score:
            best, score = tried, tried_score
    return best


class Teacher:
    """Soft targets of a fitted baseline over a trie.

    A train row was counted itself, so the teacher knows its answer: without that row's own counts it says what counting
    would have predicted had it not seen the row, which is what the student is to learn.

    Args:
        baseline: ``skip transitions``, fitted on the indices of distinct semantic IDs.
        trie: of those semantic IDs, in their order.
        power: the teacher's probabilities are raised to this and normalized again; above 1 sharpens them.
    """

    def __init__(self, baseline: Baseline, trie: Trie, power: float) -> None:
        assert baseline.matrix is not None
        self.matrix, self.decay, self.power = baseline.matrix.tocsr(), baseline.knobs.history_decay, power
        self.lag_decay = baseline.knobs.lag_decay
        self.prior = (baseline.knobs.prior * baseline.popularity).astype(np.float32)  # (S,)
        self.one_event = _one_event(baseline)  # (S,)
        self.trie = trie
        self.width = max(trie.widths)
        self.order, self.first, self.last = _leaf_ranges(trie)

    def soft_targets(
        self, items: Sequence[int], tokens: Sequence[np.ndarray], nodes: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Return (T, W) the teacher's distribution over the continuations at each token of a sequence.

        Args:
            items: the sequence, as indices of distinct semantic IDs.
            tokens: the tokens of each item.
            nodes: the trie node before each of those tokens.
        """
        below = self._cumulated(items)  # (items, S + 1)
        position = np.repeat(np.arange(len(items)), [len(row) for row in tokens])  # (T,)
        children = self.trie.children(torch.from_numpy(np.concatenate(nodes)))
        child, mask = children.nodes.numpy(), children.mask.numpy()  # (T, W')
        mass = below[position[:, None], self.last[child]] - below[position[:, None], self.first[child]]
        mass = np.where(mask, mass, 0.0)
        result = np.zeros((len(position), self.width), dtype=np.float32)
        result[:, : mass.shape[1]] = mass / np.maximum(mass.sum(1, keepdims=True), 1e-20)
        return result

    def _cumulated(self, items: Sequence[int]) -> np.ndarray:
        """Return (items, S + 1) the probability of what comes before each leaf, given the items before each item."""
        past = np.zeros_like(self.prior)
        rows = np.empty((len(items), len(self.prior)), dtype=np.float32)
        own = 0.0
        for position, item in enumerate(items):
            rows[position] = self.prior + past
            rows[position, item] = max(rows[position, item] - own, self.prior[item])
            past *= self.decay
            own = own * self.decay * self.lag_decay + self.one_event[item]
            start, stop = self.matrix.indptr[item], self.matrix.indptr[item + 1]
            past[self.matrix.indices[start:stop]] += self.matrix.data[start:stop]
        if self.power != 1.0:
            rows = (rows / rows.max(axis=1, keepdims=True)) ** self.power  # else a high power makes all of them 0
        sums = np.zeros((len(items), len(self.prior) + 1))
        np.cumsum(rows[:, self.order], axis=1, out=sums[:, 1:])
        return sums / sums[:, -1:]


def _one_event(baseline: Baseline) -> np.ndarray:
    """Return (S,) what a single event adds to the score of what came next, by the item before: 1 / (count + shrink)."""
    assert baseline.totals is not None
    return (1.0 / np.maximum(baseline.totals + baseline.knobs.shrink, 1.0)).astype(np.float32)


def _leaf_ranges(trie: Trie) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the leaves' sequences in tree order (S,), and per node the range of them below it, (nodes,) each."""
    offsets = trie.offsets.numpy().astype(np.int64)
    nodes = len(offsets) - 1
    counts = trie.leaf_counts.numpy().astype(np.int64)
    first = np.zeros(nodes, dtype=np.int64)
    for node in range(nodes):  # breadth-first, so that a parent comes before its children
        start, stop = offsets[node], offsets[node + 1]
        if stop > start:
            below = counts[start + 1 : stop + 1]
            first[start + 1 : stop + 1] = first[node] + np.cumsum(below) - below
    sequences = trie.sequences.numpy()
    leaves = np.flatnonzero(sequences >= 0)
    order = np.empty(len(leaves), dtype=np.int64)
    order[first[leaves]] = sequences[leaves]
    return order, first, first + counts
