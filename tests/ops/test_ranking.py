"""hit_rate@k and ndcg@k from ranks."""

import numpy as np
import pytest

from rlkit.ops.ranking import MISSING, Ranks, hit_rate, metric_values, ndcg

G1, G2, G3, G4 = 1.0, 1 / np.log2(3), 0.5, 1 / np.log2(5)  # 1 / log2(p + 2) at p = 0, 1, 2, 3


def ranks(*pairs: tuple[int, int]) -> Ranks:
    return Ranks(*(np.array(column) for column in zip(*pairs)))


def test_a_target_without_ties_scores_by_its_own_position() -> None:
    # positions 0, 2 and 3, cut at 3: the first two are hits; gains 1 and 1 / log2(4) = .5
    three = ranks((0, 1), (2, 1), (3, 1))
    assert hit_rate(three, 3).tolist() == [1, 1, 0]
    np.testing.assert_allclose(ndcg(three, 3), [G1, G3, 0])


def test_a_target_that_is_not_listed_scores_nothing_at_any_k() -> None:
    missing = ranks((MISSING, 1), (MISSING, 5))
    assert hit_rate(missing, 1_000).tolist() == [0, 0]
    assert ndcg(missing, 1_000).tolist() == [0, 0]


def test_ties_share_their_positions() -> None:
    # Three tie for positions 1, 2, 3. At k = 3 two of the three positions count: hit 2/3, gain (G2 + G3) / 3.
    tied = ranks((1, 3))
    np.testing.assert_allclose(hit_rate(tied, 3), [2 / 3])
    np.testing.assert_allclose(ndcg(tied, 3), [(G2 + G3) / 3])
    np.testing.assert_allclose(ndcg(tied, 10), [(G2 + G3 + G4) / 3])
    assert hit_rate(tied, 1).tolist() == [0]


def test_expected_metrics_are_the_mean_over_random_tie_breaks() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, size=12).astype(float)
    target = 5
    first, ties = (scores > scores[target]).sum(), (scores == scores[target]).sum()
    # The independent reference: break ties by a random order, 20,000 times, and look at where the target comes out.
    noise = rng.random((20_000, 12))
    position = ((scores > scores[target]) | ((scores == scores[target]) & (noise > noise[:, [target]]))).sum(axis=1)
    expected = ranks((int(first), int(ties)))
    for k in (1, 3, 6, 12):
        within = position < k
        assert hit_rate(expected, k)[0] == pytest.approx(within.mean(), abs=0.015)
        assert ndcg(expected, k)[0] == pytest.approx((within / np.log2(position + 2)).mean(), abs=0.015)


def test_metric_values_name_both_metrics_at_every_k() -> None:
    values = metric_values(ranks((0, 1), (4, 1)), (1, 5), prefix="item/")
    assert list(values) == ["item/hit_rate@1", "item/ndcg@1", "item/hit_rate@5", "item/ndcg@5"]
    assert values["item/hit_rate@5"].tolist() == [1, 1]


def test_ranks_that_cannot_be_are_refused() -> None:
    with pytest.raises(AssertionError, match="own position"):
        ranks((0, 0))
    with pytest.raises(AssertionError, match="before the first"):
        ranks((-2, 1))
