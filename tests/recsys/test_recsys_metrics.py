"""Ranks of targets: in ranked SIDs, among their items, and in score matrices."""

import numpy as np
import pytest

from rlkit.ops.ranking import MISSING, hit_rate, ndcg
from rlkit.recsys.metrics import NO_SID, item_ranks, score_ranks, sid_ranks

# Five items on four SIDs: items 1 and 2 share SID 1.
SID_OF_ITEM = np.array([0, 1, 1, 2, 3])


def test_the_rank_of_a_sid_is_its_place_in_the_list() -> None:
    ranked = np.array([[2, 0, 1], [2, 0, NO_SID], [3, 1, 0]])
    ranks = sid_ranks(ranked, np.array([0, 1, 3]))
    assert ranks.first.tolist() == [1, MISSING, 0]
    assert ranks.ties.tolist() == [1, 1, 1]


def test_items_of_one_sid_share_their_positions() -> None:
    # SIDs 0, 1, 2 expand to items 0 | 1, 2 | 3. Item 2 is equally likely at positions 1 and 2, item 3 stands at 3.
    ranked = np.array([[0, 1, 2]] * 3)
    ranks = item_ranks(ranked, np.array([2, 3, 4]), SID_OF_ITEM)
    assert ranks.first.tolist() == [1, 3, MISSING]
    assert ranks.ties[:2].tolist() == [2, 1]
    # At k = 2 one of item 2's two positions counts: hit 1/2, gain (1 / log2(3)) / 2. Item 3 comes in at k = 4 only.
    np.testing.assert_allclose(hit_rate(ranks, 2), [0.5, 0, 0])
    np.testing.assert_allclose(ndcg(ranks, 2), [1 / np.log2(3) / 2, 0, 0])
    np.testing.assert_allclose(ndcg(ranks, 4), [(1 / np.log2(3) + 0.5) / 2, 1 / np.log2(5), 0])


def test_padding_stands_for_no_item() -> None:
    ranks = item_ranks(np.array([[1, 3, NO_SID, NO_SID]]), np.array([4]), SID_OF_ITEM)
    assert (ranks.first[0], ranks.ties[0]) == (2, 1)


def test_both_levels_agree_where_every_item_has_its_own_sid() -> None:
    rng = np.random.default_rng(0)
    sid_of_item = rng.permutation(20)
    ranked = np.stack([rng.permutation(20)[:8] for _ in range(50)])
    targets = rng.integers(0, 20, size=50)
    at_item, at_sid = item_ranks(ranked, targets, sid_of_item), sid_ranks(ranked, sid_of_item[targets])
    assert (at_item.first == at_sid.first).all()
    assert (at_item.ties == 1).all()


def test_equal_scores_share_their_places() -> None:
    # Row 0: the target's 0 ties with two other zeros behind one positive score. Row 1: it is alone on top.
    ranks = score_ranks(np.array([[0.0, 0.3, 0.0, 0.0], [0.1, 0.2, 0.3, 0.9]]), np.array([2, 3]))
    assert ranks.first.tolist() == [1, 0]
    assert ranks.ties.tolist() == [3, 1]


def test_a_scorer_that_knows_nothing_gets_what_chance_gives() -> None:
    # 10 equal scores: each item is among the first 3 in 3 of 10 orders; taking the first index would give 0 or 1.
    ranks = score_ranks(np.zeros((4, 10)), np.array([0, 3, 6, 9]))
    np.testing.assert_allclose(hit_rate(ranks, 3), 0.3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    scores = np.zeros((3, 4))
    scores[1, 2] = bad
    with pytest.raises(ValueError, match="row 1"):
        score_ranks(scores, np.array([0, 0, 0]))


def test_a_list_that_names_a_sid_twice_is_refused() -> None:
    with pytest.raises(AssertionError, match="twice"):
        sid_ranks(np.array([[0, 1, 0]]), np.array([1]))
    with pytest.raises(AssertionError, match="before its end"):
        sid_ranks(np.array([[0, NO_SID, 1]]), np.array([1]))
