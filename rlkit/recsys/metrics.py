"""Where the target stands: in ranked semantic IDs, among the items that those stand for, or in a matrix of scores.

``rlkit.ops.ranking`` turns the ranks into hit_rate@k and ndcg@k. An SID that several items share is one entry at SID
level; at item level it stands for all of them, in no order: the target is equally likely at each of their positions.
"""

from __future__ import annotations

import numpy as np

from rlkit.ops.ranking import MISSING, Ranks

NO_SID = -1
"""Pads a ranked list that is shorter than the others."""


def sid_ranks(ranked: np.ndarray, target_sids: np.ndarray) -> Ranks:
    """Find the target's SID in each ranked list.

    Args:
        ranked: (R, K) distinct SID indices, best first; ``NO_SID`` pads.
        target_sids: (R,) the SID index of the target.
    """
    check_ranked(ranked)
    hits = ranked == target_sids[:, None]  # (R, K)
    first = np.where(hits.any(axis=1), hits.argmax(axis=1), MISSING)
    return Ranks(first, np.ones_like(first))


def item_ranks(ranked: np.ndarray, targets: np.ndarray, sid_of_item: np.ndarray) -> Ranks:
    """Find the target item when every ranked SID is replaced by its items.

    Args:
        ranked: (R, K) distinct SID indices, best first; ``NO_SID`` pads.
        targets: (R,) the target item.
        sid_of_item: (N,) the SID index of each item.
    """
    at_sid = sid_ranks(ranked, sid_of_item[targets])
    items_of_sid = np.bincount(sid_of_item, minlength=int(ranked.max(initial=0)) + 1)
    listed = items_of_sid[ranked]  # (R, K); whatever padding reads here, it stands behind every target
    before = np.concatenate(
        [np.zeros((len(ranked), 1), dtype=listed.dtype), listed.cumsum(axis=1)], axis=1
    )  # (R, K + 1)
    first = before[np.arange(len(ranked)), at_sid.first]
    return Ranks(np.where(at_sid.first == MISSING, MISSING, first), items_of_sid[sid_of_item[targets]])


def score_ranks(scores: np.ndarray, targets: np.ndarray) -> Ranks:
    """Find the target among all scores; equal scores share their places fairly.

    Args:
        scores: (R, N), higher is better.
        targets: (R,) the column of the target.

    Raises:
        ValueError: a score is not finite; NaN compares false with everything and would put every target first.
    """
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
        raise ValueError(f"scores: row {row} holds a score that is not finite")
    own = scores[np.arange(len(scores)), targets][:, None]  # (R, 1)
    return Ranks((scores > own).sum(axis=1), (scores == own).sum(axis=1))


def check_ranked(ranked: np.ndarray) -> None:
    """Assert that a list names no SID twice and is padded at its end only."""
    ordered = np.sort(ranked, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_SID)
    assert not twice.any(), "a ranked list names a semantic ID twice"
    padding = ranked == NO_SID
    assert (padding[:, 1:] >= padding[:, :-1]).all(), "a ranked list has padding before its end"
    assert (ranked >= NO_SID).all(), "a ranked list holds a negative semantic ID"
