"""Compact training data: what is predicted, what augmentation does, and that every epoch draws anew."""

from __future__ import annotations

import numpy as np

from rlkit.config.domains import AugmentSettings
from rlkit.recsys.sequences import ItemTokens, TargetSequences, TrainSequences, Transitions, collate, windows

# Three items with semantic IDs of different lengths; nodes are made up, 0 is the root.
ITEMS = ItemTokens(tokens=[[10, 20], [11], [10, 21, 30]], nodes=[[0, 1], [0], [0, 1, 5]], begin=[2])


def train(augment: AugmentSettings | None = None, seed: int = 0) -> TrainSequences:
    return TrainSequences([[0, 1, 2, 0], [2, 1]] * 20, ITEMS, augment or AugmentSettings(), window=20, seed=seed)


def test_every_token_after_the_beginning_is_predicted_from_its_node() -> None:
    row = ITEMS.encode([0, 2])
    assert row["input_ids"].tolist() == [2, 10, 20, 10, 21, 30]
    assert row["labels"].tolist() == [-100, 10, 20, 10, 21, 30]
    assert row["nodes"].tolist() == [0, 0, 1, 0, 1, 5]


def test_valid_rows_count_the_target_alone() -> None:
    row = TargetSequences([([0, 1], 2)], ITEMS)[0]
    assert row["labels"].tolist() == [-100, -100, -100, -100, 10, 21, 30]


def test_a_batch_is_padded_on_the_right_and_padding_carries_no_loss() -> None:
    batch = collate([ITEMS.encode([0]), ITEMS.encode([1])])
    assert batch["input_ids"].tolist() == [[2, 10, 20], [2, 11, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 10, 20], [-100, 11, -100]]


def test_long_sequences_become_windows_that_overlap_and_end_with_the_sequence() -> None:
    assert [list(w) for w in windows([range(5), range(3)], 4)] == [[0, 1, 2, 3], [1, 2, 3, 4], [0, 1, 2]]
    cut = windows([range(50)], 20)
    assert [(w[0], w[-1]) for w in cut] == [(0, 19), (10, 29), (20, 39), (30, 49)]


def test_without_augmentation_a_sequence_is_the_users_own_in_every_epoch() -> None:
    data = train()
    for epoch in range(3):
        assert data[epoch, 0]["input_ids"].tolist() == [2, 10, 20, 11, 10, 21, 30, 10, 20]


def test_augmentation_depends_on_seed_epoch_and_sequence_alone() -> None:
    augment = AugmentSettings(reverse=0.5, item_dropout=0.9, walks=5)
    one, two = train(augment), train(augment)
    rows = [(epoch, index) for epoch in range(2) for index in range(len(one))]
    first = [one[row]["input_ids"].tolist() for row in rows]
    assert first == [two[row]["input_ids"].tolist() for row in reversed(rows)][::-1]
    assert first[: len(one)] != first[len(one) :], "a new epoch draws anew"
    assert first != [train(augment, seed=1)[row]["input_ids"].tolist() for row in rows]


def test_reversal_reads_items_and_not_tokens_backwards() -> None:
    data = train(AugmentSettings(reverse=1.0))
    assert data[0, 1]["input_ids"].tolist() == [2, 11, 10, 21, 30]


def test_item_dropout_takes_whole_items_and_leaves_at_least_two() -> None:
    data = train(AugmentSettings(item_dropout=0.99))
    whole = {(10, 20), (11,), (10, 21, 30)}
    lengths = set()
    for epoch in range(30):
        ids = data[epoch, 0]["input_ids"].tolist()[1:]
        items = []
        while ids:
            item = next(tokens for tokens in whole if tuple(ids[: len(tokens)]) == tokens)
            ids = ids[len(item) :]
            items.append(item)
        lengths.add(len(items))
    assert lengths == {2, 3, 4}


def test_walks_go_on_from_real_beginnings_along_train_transitions() -> None:
    # 0 -> 1 at once (weight 1), 0 -> 2 after one other (1/2); 1 -> 2; nothing follows 2.
    transitions = Transitions([[0, 1, 2]], num_items=3)
    random = np.random.default_rng(0)
    steps = [tuple(transitions.walk(np.array([0]), 1, random)) for _ in range(3000)]
    assert set(steps) == {(0, 1), (0, 2)}
    assert abs(np.mean([step == (0, 1) for step in steps]) - 2 / 3) < 0.03
    # From 1 a second step comes half the time from 1 (to 2), else from 0 again.
    twice = [tuple(transitions.walk(np.array([0, 1]), 1, random))[-1] for _ in range(3000)]
    assert abs(np.mean([item == 2 for item in twice]) - (1 / 2 + 1 / 2 * 1 / 3)) < 0.03
    assert len(transitions.walk(np.array([2]), 5, random)) == 1, "a walk ends where nothing follows"


def test_walks_join_every_epoch() -> None:
    data = train(AugmentSettings(walks=7, walk_steps=2))
    assert len(data) == len(data.lengths) == 40 + 7
    assert data[0, 40]["input_ids"].tolist() != data[1, 40]["input_ids"].tolist() or data[2, 41] is not None


def test_a_walk_from_a_sequence_of_one_item_goes_on_from_it() -> None:
    data = TrainSequences([[0], [0, 1]], ITEMS, AugmentSettings(walks=8, walk_steps=1), window=20, seed=0)
    assert {len(data[0, index]["input_ids"]) for index in range(2, 10)} == {4}  # the beginning, item 0 and item 1
