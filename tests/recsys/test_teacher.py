"""Soft targets of the counting teacher, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from rlkit.algorithms.sft import with_teacher
from rlkit.records import Source
from rlkit.recsys.collaborative import Baseline, Knobs
from rlkit.recsys.data.catalog import Interaction, Item, RecommendationData
from rlkit.recsys.teacher import Teacher, fit_counts
from rlkit.recsys.trie import Trie

# Sequences 0..3; the tree order is 1 <5 7>, 0 <5 8>, 3 <6 7>, 2 <6 9>: not the order of the sequences.
SIDS = [[5, 8], [5, 7], [6, 9], [6, 7]]


MANY = np.full(4, 1e9)  # events behind each row: a single one weighs nothing


def teacher(power: float = 1.0, totals: np.ndarray = MANY) -> Teacher:
    """What follows: 0 -> 1 (.5) and 2 (.5); 1 -> 3 (1). A prior of .1 spread evenly; half as much each step back."""
    matrix = sparse.csr_array(np.array([[0, 0.5, 0.5, 0], [0, 0, 0, 1], [0] * 4, [0] * 4], dtype=np.float32))
    knobs = Knobs(history_decay=0.5, prior=0.4)
    baseline = Baseline("skip transitions", {}, knobs, matrix, np.full(4, 0.25, dtype=np.float32), None, totals)
    return Teacher(baseline, Trie.build(SIDS, end_token=None), power)


def soft(items: list[int], power: float = 1.0, totals: np.ndarray = MANY) -> np.ndarray:
    built = teacher(power, totals)
    nodes = built.trie.walk(torch.tensor(SIDS))[:, :-1].numpy()
    return built.soft_targets(items, [np.array(SIDS[i]) for i in items], [nodes[i] for i in items])


def test_the_first_item_has_the_prior_and_a_later_one_what_followed_before() -> None:
    targets = soft([0, 1])
    # First item 0 = <5 8>: the prior is even, so <5> and <6> have half each, and so have <5 7> and <5 8>.
    assert targets[0].tolist() == pytest.approx([0.5, 0.5])
    assert targets[1].tolist() == pytest.approx([0.5, 0.5])
    # After 0: scores .1 + (0, .5, .5, 0) = (.1, .6, .6, .1), 1.4 in all. <5> holds 0 and 1: .7 / 1.4; 1 has .6 of .7.
    assert targets[2].tolist() == pytest.approx([0.5, 0.5])
    assert targets[3].tolist() == pytest.approx([6 / 7, 1 / 7])


def test_older_items_count_less() -> None:
    # After 0, 1: scores .1 + (0, .25, .25, 1) = (.1, .35, .35, 1.1), 1.9 in all; <5>: .45, <6>: 1.45, 3 before 2.
    targets = soft([0, 1, 3])
    assert targets[4].tolist() == pytest.approx([0.45 / 1.9, 1.45 / 1.9])
    assert targets[5].tolist() == pytest.approx([1.1 / 1.45, 0.35 / 1.45])


def test_a_power_above_one_sharpens_items_before_they_are_summed() -> None:
    # After 0 the squares are (.01, .36, .36, .01).
    assert soft([0, 1], power=2.0)[3].tolist() == pytest.approx([0.36 / 0.37, 0.01 / 0.37])


def test_a_high_power_leaves_finite_targets() -> None:
    # .1 to the power of 60 is 0 in float32: the first item's even prior must stay even, and a winner take all.
    targets = soft([0, 1], power=60.0)
    assert targets[0].tolist() == pytest.approx([0.5, 0.5])
    assert targets[3].tolist() == pytest.approx([1.0, 0.0])


def test_a_rows_own_count_is_left_out() -> None:
    # Two events behind 0: the row 0 -> 1 is one of them; without it 1 has .6 - 1/2 = .1 of (.1, .1, .6, .1), .9 in all.
    targets = soft([0, 1], totals=np.array([2.0, 1.0, 0.0, 0.0]))
    assert targets[2].tolist() == pytest.approx([0.2 / 0.9, 0.7 / 0.9])
    assert targets[3].tolist() == pytest.approx([0.5, 0.5])


def test_text_neighbors_join_only_where_valid_rows_are_better_for_them() -> None:
    items = tuple(
        Item(str(i), title) for i, title in enumerate(("red tent", "red tent pole", "blue rope", "blue rope bag"))
    )
    source = Source("x")
    rows = [Interaction(f"u{i}", (a,), b, source) for i, (a, b) in enumerate([(0, 2), (1, 3)] * 5)]
    alike = [Interaction("v", (0,), 1, source), Interaction("w", (2,), 3, source)]
    unlike = [Interaction("v", (0,), 2, source), Interaction("w", (1,), 3, source)]
    for valid, helps in ((alike, True), (unlike, False)):
        data = RecommendationData("toy", items, {"train": tuple(rows), "valid": tuple(valid)})
        fitted = fit_counts(data, np.arange(4))
        assert (fitted.matrix[[0], [1]].item() > 0) == helps


def test_the_loss_mixes_the_true_token_with_the_teachers_expectation() -> None:
    logprobs = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 1.0]]).log()
    targets = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    # First row: true token 0, the teacher says 1: (log .5 + 3 log .25) / 4. Second row: no teacher, log .5.
    mixed = with_teacher(logprobs[:, 0], logprobs, targets, 3.0)
    assert mixed.tolist() == pytest.approx([(np.log(0.5) + 3 * np.log(0.25)) / 4, np.log(0.5)], abs=1e-6)
