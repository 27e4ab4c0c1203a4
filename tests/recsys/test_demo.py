"""The generated demo: the same everywhere, with a ceiling that is exact."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from rlkit.config.recommendation_data import DemoDataSettings
from rlkit.records import Source
from rlkit.recsys.data import demo
from rlkit.recsys.data.catalog import Interaction, RecommendationData
from rlkit.recsys.data.demo import BASE, LAGS, OWNED, REPEAT, Ceiling, generate_demo
from rlkit.recsys.data.demo_shop import CATEGORIES, TASTE_PRIOR, UNIT, Shop, draw


@pytest.fixture(scope="module")
def data() -> RecommendationData:
    return generate_demo(DemoDataSettings())


def shop_of(data: RecommendationData) -> Shop:
    assert isinstance(data.true_scores, Ceiling)
    return data.true_scores.shop


def digest(data: RecommendationData) -> str:
    rows = [(row.user, row.history, row.target) for split in ("train", "valid", "test") for row in data.splits[split]]
    titles = [item.title for item in data.items]
    return hashlib.sha256(repr((rows, titles)).encode()).hexdigest()[:16]


def row(*history: int) -> Interaction:
    return Interaction("u", history, 0, Source("toy"))


def rank_metrics(scores: np.ndarray, rows: tuple[Interaction, ...]) -> tuple[float, float]:
    """Return HR@10 and NDCG@10."""
    own = scores[np.arange(len(rows)), [one.target for one in rows]]
    rank = (scores > own[:, None]).sum(axis=1)
    return float((rank < 10).mean()), float(((rank < 10) / np.log2(rank + 2)).mean())


def test_a_seed_gives_the_same_data_on_every_machine(data):
    # Only uniform draws of PCG64 and whole-number arithmetic go in, so this digest holds everywhere.
    assert digest(data) == "88cf917cfe328eb1"
    assert digest(generate_demo(DemoDataSettings())) == digest(data)
    assert digest(generate_demo(DemoDataSettings(seed=1))) != digest(data)


def test_sizes_are_those_that_the_settings_promise(data):
    sizes = {split: len(rows) for split, rows in data.splits.items()}
    assert sizes == {"train": 25636, "valid": 2086, "test": 2086}
    assert data.semantic_ids is None
    assert 5.9 < sum(sizes.values()) / 5000 < 6.1
    assert len({item.title for item in data.items}) == len(data.items) == 600
    assert Counter(item.category for item in data.items) == dict.fromkeys(CATEGORIES, 50)
    assert all(item.title.startswith(item.brand) for item in data.items)


def test_every_row_shows_the_users_whole_past_and_splits_follow_in_time(data):
    past: dict[str, tuple[int, ...]] = {}
    for split in ("train", "valid", "test"):
        for one in data.splits[split]:
            assert 1 <= len(one.history) <= 10
            assert past.get(one.user, one.history[:1]) == one.history
            past[one.user] = (*one.history, one.target)
    assert {5, 11} <= {len(items) for items in past.values()} <= set(range(5, 12))


def test_the_smallest_demo_has_rows_in_every_split():
    small = generate_demo(DemoDataSettings(users=20, items=48, valid_share=0.001, test_share=0.001))
    assert all(small.splits[split] for split in ("train", "valid", "test"))


def test_chunks_do_not_change_what_is_drawn(monkeypatch):
    settings = DemoDataSettings(users=60, items=48)
    whole = generate_demo(settings)
    monkeypatch.setattr(demo, "CHUNK", 7)
    assert digest(generate_demo(settings)) == digest(whole)


def test_draw_follows_the_weights():
    weights = np.array([[0, 3, 0, 1]] * 4)
    assert draw(weights, np.array([0.0, 0.7499, 0.75, 1 - 2**-53])).tolist() == [1, 1, 3, 3]


def bayes_by_hand(shop: Shop, history: tuple[int, ...]) -> list[float]:
    """Return the next-item distribution, written out item by item from the formula in the module's docstring."""
    items = range(len(shop.items))

    def next_given_taste(past: tuple[int, ...], taste: np.ndarray) -> list[float]:
        weights = []
        for item in items:
            weight = BASE * int(shop.popularity[item])
            for back, lag in zip(reversed(past), LAGS):
                weight += lag * int(shop.transitions[back, item])
            weight = weight // OWNED if item in past else weight
            weight += REPEAT if past and past[-1] == item else 0
            weights.append(weight * int(taste[item]))
        return [weight / sum(weights) for weight in weights]

    belief = [float(prior) for prior in TASTE_PRIOR]
    for step, item in enumerate(history):
        belief = [one * next_given_taste(history[:step], taste)[item] for one, taste in zip(belief, shop.tastes)]
    given = [next_given_taste(history, taste) for taste in shop.tastes]
    return [sum(one * row[item] for one, row in zip(belief, given)) / sum(belief) for item in items]


def test_the_ceiling_is_bayes_rule_over_the_tastes():
    small = generate_demo(DemoDataSettings(users=40, items=48))
    scores = Ceiling(shop_of(small))
    histories = [(3,), (5, 5), (1, 2, 3, 1), small.splits["test"][-1].history, tuple(range(10))]
    expected = [bayes_by_hand(shop_of(small), history) for history in histories]
    np.testing.assert_allclose(scores([row(*history) for history in histories]), expected, rtol=1e-9)


def test_the_ceiling_is_how_often_items_really_follow():
    # 40,000 users; after the most frequent pair of first items, counts differ from the prediction by chance alone.
    # The chi-square statistic over K cells has mean K - 1 and standard deviation sqrt(2 (K - 1)).
    many = generate_demo(DemoDataSettings(users=40_000, items=48))
    rows = [one for split in many.splits.values() for one in split if len(one.history) == 2]
    (history, total), *_ = Counter(one.history for one in rows).most_common(1)
    counts = Counter(one.target for one in rows if one.history == history)
    expected = Ceiling(shop_of(many))([row(*history)])[0] * total
    large = np.flatnonzero(expected >= 5)
    observed = np.array([counts[int(item)] for item in large])
    chi_square = float(((observed - expected[large]) ** 2 / expected[large]).sum())
    assert total > 200
    assert chi_square < len(large) + 4 * np.sqrt(2 * len(large))


def test_the_ceiling_is_as_surprised_by_test_rows_as_it_expects_to_be(data):
    # E[-log p(target)] is the distribution's entropy; the mean over 2,086 rows stays within three standard errors.
    rows = data.splits["test"]
    scores = data.true_scores(rows)
    surprise = -np.log(scores[np.arange(len(rows)), [one.target for one in rows]])
    entropy = -(scores * np.log(scores)).sum(axis=1)
    assert scores.shape == (2086, 600)
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert abs((surprise - entropy).mean()) < 3 * (surprise - entropy).std() / np.sqrt(len(rows))


def test_the_ceiling_stands_clearly_above_counting(data):
    rows, items = data.splits["test"], len(data.items)
    followed, popularity = np.zeros((items, items)), np.zeros(items)
    for one in data.splits["train"]:
        popularity[one.target] += 1
        followed[one.history[-1], one.target] += 1
    prior = popularity / popularity.sum()
    by_last = followed[[one.history[-1] for one in rows]] + prior
    popular = rank_metrics(np.tile(prior, (len(rows), 1)), rows)
    last, ceiling = rank_metrics(by_last, rows), rank_metrics(data.true_scores(rows), rows)
    assert popular == pytest.approx((0.145, 0.074), abs=0.001)
    assert last == pytest.approx((0.265, 0.160), abs=0.001)
    assert ceiling == pytest.approx((0.423, 0.245), abs=0.001)


def test_what_lies_before_the_last_item_matters(data):
    shop = shop_of(data)
    assert not np.allclose(*Ceiling(shop)([row(1, 2, 3, 4, 5), row(5)]))  # lags and taste
    assert not np.allclose(*Ceiling(shop)([row(1, 2, 3, 4, 5), row(101, 2, 3, 4, 5)]))  # taste and ownership alone
    assert Ceiling(shop).posterior(np.array([[1, 13, 25]])).max() > 0.2  # three items of one category tell of a taste


def test_transitions_are_sparse_enough_to_learn_and_have_no_diagonal(data):
    transitions = shop_of(data).transitions
    assert not transitions.diagonal().any()
    assert (np.abs(transitions.sum(axis=1) - UNIT) < 700).all()  # rounding down loses less than one a cell
    assert np.sort(transitions, axis=1)[:, -4:].sum(axis=1).min() > 0.3 * UNIT  # the four companions
