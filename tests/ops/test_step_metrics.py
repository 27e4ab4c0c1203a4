"""Figures on held-out steps: each by hand, the area under the curve also against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from rlkit.ops.step_metrics import auc, first_errors, found_errors, reliability, step_report

RIGHT = np.array([True, True, False, True, False, False])
PREDICTED = np.array([0.9, 0.6, 0.7, 0.4, 0.2, 0.1])
ROWS = np.array([0, 0, 0, 1, 1, 2])


def test_errors_found_by_hand() -> None:
    # called wrong: steps 3, 4, 5; wrong: 2, 4, 5; both: 4, 5
    assert found_errors(PREDICTED >= 0.5, RIGHT) == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})
    assert found_errors(np.array([True]), np.array([True])) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_first_errors_by_hand() -> None:
    # row 0: first error at 2, none named; row 1: at 1, named at 0; row 2: at 0, named at 0
    found = first_errors(PREDICTED >= 0.5, RIGHT, ROWS)
    assert found == {"correct": 0.0, "erroneous": pytest.approx(1 / 3), "f1": 0.0}
    said = np.array([True, True, False, False, True])  # a row without an error, named right; one found; one invented
    right = np.array([True, True, False, True, True])
    rows = np.array([0, 1, 1, 2, 2])
    # without an error: rows 0 (right) and 2 (one invented); with one: row 1 (found)
    assert first_errors(said, right, rows) == {"correct": 0.5, "erroneous": 1.0, "f1": pytest.approx(2 / 3)}


def test_the_area_under_the_curve_is_how_often_a_right_step_has_more() -> None:
    # right: .9, .6, .4; wrong: .7, .2, .1: .9 beats 3, .6 beats 2, .4 beats 2 of 9 pairs
    assert auc(PREDICTED, RIGHT) == pytest.approx(7 / 9)
    rng = np.random.default_rng(0)
    scores, right = rng.integers(0, 5, 60) / 4, rng.random(60) < 0.4  # many ties
    pairs = [(a > b) + (a == b) / 2 for a in scores[right] for b in scores[~right]]
    assert auc(scores, right) == pytest.approx(np.mean(pairs))
    assert auc(PREDICTED, np.ones(6, bool)) is None


def test_calibration_by_hand() -> None:
    # bins of a half: [.4, .2, .1] predicted .2333, observed 1/3; [.9, .6, .7] predicted .7333, observed 2/3
    found = reliability(PREDICTED, RIGHT, bins=2)
    assert [row["steps"] for row in found["table"]] == [3, 3]
    assert found["expected_error"] == pytest.approx((0.1 + 0.2 / 3) / 2)
    assert reliability(np.array([1.0, 0.0]), np.array([True, False]))["expected_error"] == 0


def test_a_report_keeps_the_steps_of_a_prompt_together() -> None:
    labels = np.where(RIGHT, 1.0, 0.25)
    report = step_report(PREDICTED, labels, ROWS, ["a", "b", "a"])
    assert (report["rows"], report["steps"], report["right"], report["majority"]) == (3, 6, 0.5, 0.5)
    assert report["accuracy"]["value"] == pytest.approx(4 / 6)
    low, high = report["accuracy"]["interval"]
    assert (low, high) == pytest.approx((1 / 2, 3 / 4))  # a has 3 of 4, b has 1 of 2
    alone = step_report(PREDICTED, labels, ROWS, ["a", "a", "a"])
    assert alone["accuracy"]["interval"] == pytest.approx([4 / 6, 4 / 6])  # one prompt, nothing to draw from
