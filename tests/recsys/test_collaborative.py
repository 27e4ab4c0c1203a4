"""Counting baselines: worked by hand on four users, then on Industrial."""

import os
from pathlib import Path

import numpy as np
import pytest

from rlkit.config.recommendation_data import MiniOneRecDataSettings
from rlkit.records import Source
from rlkit.recsys import collaborative
from rlkit.recsys.collaborative import Baseline, fit_baselines
from rlkit.recsys.data.catalog import Interaction
from rlkit.recsys.data.minionerec import read_minionerec
from rlkit.recsys.evaluation import EvaluationRows, evaluate_baselines

INDUSTRIAL = Path(os.environ.get("RLKIT_DATA", Path(__file__).parents[2] / "../shared/data")) / "amazon_industrial"


def row(user: str, history: tuple[int, ...], target: int) -> Interaction:
    return Interaction(user, history, target, Source("rows", 1))


# Four users, in time order: u1 takes 0 1 2, u2 takes 0 1, u3 takes 3 1, u4 takes 2 2.
TRAIN = [row("u1", (0,), 1), row("u1", (0, 1), 2), row("u2", (0,), 1), row("u3", (3,), 1), row("u4", (2,), 2)]


def fit_one(monkeypatch: pytest.MonkeyPatch, name: str, item_map: np.ndarray | None = None, **knobs: float) -> Baseline:
    """Fit one baseline with nothing to choose."""
    monkeypatch.setattr(collaborative, "GRIDS", {name: {knob: (value,) for knob, value in knobs.items()}})
    (baseline,) = fit_baselines(TRAIN, TRAIN[:1], 4, item_map)
    assert dict(baseline.settings) == knobs
    return baseline


def test_popularity_counts_every_event_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # 0: u1 u2; 1: u1 u2 u3; 2: u1, u4 twice; 3: u3. Nine events.
    scores = fit_one(monkeypatch, "popularity", prior=9.0).scores([row("x", (3,), 0), row("x", (), 0)])
    np.testing.assert_allclose(scores, [[2, 3, 3, 1]] * 2, rtol=1e-6)


def test_recent_events_weigh_more(monkeypatch: pytest.MonkeyPatch) -> None:
    # recency = 1 / (5 ln 2) of the five rows halves an event's weight per row: 1/16, 1/8, 1/4, 1/2, 1.
    # 0: 1/16 + 1/4; 1: 1/16 + 1/4 + 1/2; 2: 1/8 + 1 + 1; 3: 1/2. Sum 3.75.
    baseline = fit_one(monkeypatch, "recent popularity", recency=1 / (5 * np.log(2)), prior=3.75)
    np.testing.assert_allclose(baseline.scores([row("x", (3,), 0)]), [[0.3125, 0.8125, 2.125, 0.5]], rtol=1e-6)


def test_last_item_transitions_are_shares_of_what_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    # After 0 came 1 twice: 2 / (2 + shrink 2) = .5. After 2 came 2 once: 1 / 3. Only the last item (0, then 2) counts.
    baseline = fit_one(monkeypatch, "last-item transitions", shrink=2.0, prior=0.0)
    scores = baseline.scores([row("x", (2, 0), 1), row("x", (0, 2), 1)])
    np.testing.assert_allclose(scores, [[0, 0.5, 0, 0], [0, 0, 1 / 3, 0]], rtol=1e-6)


def test_skip_transitions_look_further_back_and_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    # Forward: 0>1 2, 1>2 1, 0>2 .5 (one item between: lag_decay .5), 3>1 1, 2>2 1; half of each backward as well.
    # Row 0: [0, 2, .5, 0], sum 2.5. Row 3: [0, 1, 0, 0], sum 1. Row 2: 2>2 1 + .5, 2>0 .25, 2>1 .5, sum 2.25.
    baseline = fit_one(
        monkeypatch, "skip transitions", lag_decay=0.5, symmetric=0.5, history_decay=0.5, shrink=0.0, prior=0.0
    )
    row0, row2, row3 = (np.array([0, 0.8, 0.2, 0]), np.array([0.25, 0.5, 1.5, 0]) / 2.25, np.array([0, 1, 0, 0]))
    scores = baseline.scores([row("x", (3, 0), 1), row("x", (0, 3, 2), 1)])
    np.testing.assert_allclose(scores, [row0 + 0.5 * row3, row2 + 0.5 * row3 + 0.25 * row0], rtol=1e-6)


def test_item_knn_is_the_cosine_of_users_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    # Users of 0: u1 u2; of 1: u1 u2 u3; of 2: u1 u4; of 3: u3. Item 2 with itself: u4, who came back for it.
    # Shrink 1: 0-1 2/(sqrt 6 + 1), 0-2 1/(sqrt 4 + 1), 2-1 1/(sqrt 6 + 1), 2-2 1/(sqrt 4 + 1); 0-0 nobody came back.
    baseline = fit_one(monkeypatch, "item-kNN", shrink=1.0, history_decay=0.5, prior=0.0)
    row0 = np.array([0, 2 / (np.sqrt(6) + 1), 1 / 3, 0])
    row2 = np.array([1 / 3, 1 / (np.sqrt(6) + 1), 1 / 3, 0])
    scores = baseline.scores([row("x", (0,), 1), row("x", (0, 2), 1)])
    np.testing.assert_allclose(scores, [row0, row2 + 0.5 * row0], rtol=1e-6)


def test_dropped_repeats_rank_below_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = fit_one(monkeypatch, "popularity", prior=9.0, repeats=False)
    np.testing.assert_allclose(baseline.scores([row("x", (1, 3), 0)]), [[2, -1, 3, -1]], rtol=1e-6)


def test_a_map_to_semantic_ids_counts_items_that_share_one_together(monkeypatch: pytest.MonkeyPatch) -> None:
    # Items 0 and 3 are SID 0. After SID 0 came SID 1 three times, after SID 1 SID 2 once.
    baseline = fit_one(monkeypatch, "last-item transitions", np.array([0, 1, 2, 0]), shrink=0.0, prior=0.0)
    np.testing.assert_allclose(baseline.scores([row("x", (3,), 1), row("x", (1,), 1)]), [[0, 1, 0], [0, 0, 1]])


def test_ten_items_back_is_as_far_as_transitions_look(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = fit_one(monkeypatch, "skip transitions", lag_decay=0.5, history_decay=1.0, prior=0.0)
    nine_times_2 = (2,) * 9
    eleventh = [row("x", (item, 2, *nine_times_2), 1) for item in (0, 3)]
    tenth = [row("x", (item, *nine_times_2), 1) for item in (0, 3)]
    assert np.ptp(baseline.scores(eleventh), axis=0).max() == 0
    assert np.ptp(baseline.scores(tenth), axis=0).max() > 0


def cycle(users: int, offset: int) -> list[Interaction]:
    """Everyone walks 0 1 2 3 4 5 0 ...; the row asks for the fourth step."""
    return [
        row(f"u{user}", tuple((user + offset + step) % 6 for step in range(3)), (user + offset + 3) % 6)
        for user in range(users)
    ]


def test_settings_are_chosen_on_valid() -> None:
    # No one ever takes an item twice, so leaving out what the user has pays for popularity.
    train = [row(r.user, r.history[:n], r.history[n]) for r in cycle(30, 0) for n in (1, 2)]
    chosen = {baseline.name: baseline.settings for baseline in fit_baselines(train, cycle(30, 1), 6)}
    assert chosen["popularity"]["repeats"] is False
    # Where valid repeats the last item, and train did, they stay.
    again = [row(f"v{user}", (user % 6,), user % 6) for user in range(30)]
    chosen = {baseline.name: baseline.settings for baseline in fit_baselines(again, again, 6)}
    assert all(settings["repeats"] is True for settings in chosen.values())


def test_a_tie_on_valid_keeps_the_first_value() -> None:
    # Every row is alike, so no knob of the transitions matters.
    baselines = fit_baselines([row("a", (0,), 1)] * 3, [row("b", (0,), 1)], 2)
    for baseline in baselines[2:]:
        first = {knob: values[0] for knob, values in collaborative.GRIDS[baseline.name].items()}
        assert dict(baseline.settings) == first


def test_transitions_follow_a_cycle_that_popularity_cannot_see() -> None:
    train = [row(r.user, r.history[:n], r.history[n]) for r in cycle(60, 0) for n in (1, 2)]
    test = cycle(24, 2)
    rows = EvaluationRows(test, np.arange(6), train, ks=(1, 3))
    hits = {e.name: e.metrics["hit_rate@1"] for e in evaluate_baselines(rows, train, cycle(30, 1))}
    assert hits["last-item transitions"] == hits["skip transitions"] == 1
    assert hits["popularity"] < 0.5


# Test split of Industrial, full ranking, (HR@10, NDCG@10), at SID level and at item level.
MEASURED = {
    "popularity": ((0.0549, 0.0485), (0.0533, 0.0420)),
    "recent popularity": ((0.0688, 0.0538), (0.0721, 0.0483)),
    "last-item transitions": ((0.1332, 0.1048), (0.1299, 0.0985)),
    "skip transitions": ((0.1502, 0.1138), (0.1507, 0.1100)),
    "item-kNN": ((0.1529, 0.1107), (0.1467, 0.0977)),
}
# The reference study at SID level. Its recency was .1, where valid prefers .2 here by .0003 NDCG@10; why its item-kNN
# hits less often than this one is not known, as its settings are not recorded.
REFERENCE = {
    "popularity": (0.0549, 0.0485),
    "recent popularity": (0.0735, 0.0552),
    "last-item transitions": (0.1332, 0.1050),
    "skip transitions": (0.1487, 0.1130),
    "item-kNN": (0.1372, 0.1081),
}


@pytest.mark.skipif(not INDUSTRIAL.is_dir(), reason="needs amazon_industrial under RLKIT_DATA")
def test_baselines_on_industrial_are_as_strong_as_the_reference_study() -> None:
    data = read_minionerec(MiniOneRecDataSettings(path=str(INDUSTRIAL)))
    assert data.semantic_ids is not None
    index = {tokens: number for number, tokens in enumerate(dict.fromkeys(data.semantic_ids))}
    sid_of_item = np.array([index[tokens] for tokens in data.semantic_ids])
    train, valid, test = (data.splits[split] for split in ("train", "valid", "test"))
    rows = EvaluationRows(test, sid_of_item, train)
    for baseline in evaluate_baselines(rows, train, valid):
        at_sid, at_item = MEASURED[baseline.name]
        hit_rate, ndcg = baseline.metrics["hit_rate@10"], baseline.metrics["ndcg@10"]
        assert (hit_rate, ndcg) == pytest.approx(at_sid, abs=0.001), baseline.name
        item = (baseline.metrics["item/hit_rate@10"], baseline.metrics["item/ndcg@10"])
        assert item == pytest.approx(at_item, abs=0.001), baseline.name
        reference = REFERENCE[baseline.name]
        assert hit_rate > reference[0] - (0.005 if baseline.name == "recent popularity" else 0.004), baseline.name
        assert ndcg > reference[1] - 0.004, baseline.name
