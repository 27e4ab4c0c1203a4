"""Evaluations: metrics at both levels, buckets, health, and the files."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlkit.config.recommendation_data import DemoDataSettings
from rlkit.records import Source
from rlkit.recsys.data.catalog import Interaction
from rlkit.recsys.data.demo import generate_demo
from rlkit.recsys.evaluation import (
    Evaluation,
    EvaluationRows,
    beam_health,
    evaluate_baselines,
    evaluate_ranked,
)
from rlkit.recsys.evaluation_files import eval_report, write_ranked, write_report
from rlkit.recsys.metrics import NO_SID

# Five items on four SIDs: items 1 and 2 share SID 1. Item 4 is in no train row.
SID_OF_ITEM = np.array([0, 1, 1, 2, 3])
KEYS = ["k0", "k1", "k2", "k3", "k4"]
SIDS = ["<a_0><b_0>", "<a_0><b_1>", "<a_1><b_0>", "<a_1><b_1>"]


def row(user: str, history: tuple[int, ...], target: int, line: int = 1) -> Interaction:
    return Interaction(user, history, target, Source("/somewhere/test.csv", line))


TRAIN = [row("t", (0,), 1), row("t", (0, 1), 2), row("t", (3,), 0)]
TEST = [row("u", (0,), 2, 2), row("u", (0, 2), 4, 3), row("v", (3,) * 6, 3, 4), row("w", (1,) * 12, 0, 5)]
RANKED = np.array([[1, 0, 2], [0, 3, NO_SID], [0, 1, 3], [0, 2, 1]])


def rows(ks: tuple[int, ...] = (1, 3)) -> EvaluationRows:
    return EvaluationRows(TEST, SID_OF_ITEM, TRAIN, ks)


def test_metrics_at_both_levels_are_means_over_rows() -> None:
    evaluation = evaluate_ranked(rows(), "sft", RANKED)
    # SID level: ranks 0, 1, missing, 0. HR@1 2/4, HR@3 3/4, NDCG@3 (1 + 1/log2(3) + 0 + 1) / 4.
    # Item level: item 2 shares positions 0, 1; item 4 stands at 1; missing; 0. HR@1 (1/2 + 0 + 0 + 1) / 4.
    second = 1 / np.log2(3)
    assert evaluation.metrics["hit_rate@1"] == 2 / 4
    assert evaluation.metrics["hit_rate@3"] == 3 / 4
    assert evaluation.metrics["ndcg@3"] == pytest.approx((2 + second) / 4)
    assert evaluation.metrics["item/hit_rate@1"] == 1.5 / 4
    assert evaluation.metrics["item/ndcg@3"] == pytest.approx(((1 + second) / 2 + second + 1) / 4)
    low, high = evaluation.ci95["hit_rate@3"]
    assert low <= 3 / 4 <= high


def test_buckets_hold_their_rows_and_empty_ones_are_left_out() -> None:
    buckets = evaluate_ranked(rows(), "sft", RANKED).buckets
    assert {name: bucket["n"] for name, bucket in buckets.items()} == {
        "target cold": 1,
        "target warm": 3,
        "history 1": 1,
        "history 2-4": 1,
        "history 5-9": 1,
        "history 10+": 1,
        "target repeated": 1,
        "target new": 3,
        "semantic ID shared": 1,
        "semantic ID its own": 3,
    }
    assert buckets["target cold"]["hit_rate@3"] == 1  # item 4, listed second
    assert buckets["target repeated"]["hit_rate@3"] == 0  # item 3, not listed
    assert buckets["semantic ID shared"]["item/hit_rate@1"] == 0.5


def test_lists_shorter_than_k_cannot_be_measured() -> None:
    with pytest.raises(AssertionError, match="k=5"):
        evaluate_ranked(rows((1, 5)), "sft", RANKED)


def many_rows(count: int = 400) -> EvaluationRows:
    interactions = [row(f"u{index // 2}", (0,), 1) for index in range(count)]
    return EvaluationRows(interactions, np.arange(40), interactions, (1, 10))


def test_health_shows_when_a_wider_beam_hits_less() -> None:
    # The narrow beam lists the target 7th in every row; in the wide one, ten others have come before it in 100 of 400.
    table = many_rows()
    narrow = np.tile([*range(20, 26), 1, 2, 3, 4], (400, 1))
    surfaced = np.where(np.arange(400)[:, None] % 4 == 0, [*range(20, 30), 1, 2], [*range(20, 26), 1, 2, 3, 4, 5, 6])
    falling = beam_health(table, {16: narrow, 50: surfaced})
    assert falling["hit_rate@10"] == {"16": 1.0, "50": 0.75}
    assert falling["change"] == -0.25
    assert falling["falls"]
    assert not beam_health(table, {50: narrow, 16: surfaced})["falls"]
    # One row of 400 fewer is no more than chance: a resample without its user shows no change.
    surfaced[1:] = [*range(20, 26), 1, 2, 3, 4, 5, 6]
    by_chance = beam_health(table, {16: narrow, 50: surfaced})
    assert by_chance["change"] == -1 / 400
    assert not by_chance["falls"]
    assert not beam_health(table, {16: narrow, 50: narrow})["falls"]


def test_the_report_pairs_every_row_with_the_first_model() -> None:
    better = RANKED.copy()
    better[2] = [2, 0, 1]  # row 2 is a hit now
    sft, grpo = evaluate_ranked(rows(), "sft", RANKED), evaluate_ranked(rows(), "grpo", better)
    report = eval_report(rows(), [sft, grpo], evaluate_baselines(rows(), TRAIN, TRAIN))
    assert report["metrics"] == grpo.metrics
    assert (report["n"], report["users"], report["invalid"]) == (4, 3, 0)
    kinds = [(entry["name"], entry["kind"]) for entry in report["rows"]]
    assert kinds[:3] == [("sft", "model"), ("grpo", "model"), ("popularity", "baseline")]
    assert "paired" not in report["rows"][0]
    assert report["rows"][1]["paired_with"] == "sft"
    assert report["rows"][1]["paired"]["hit_rate@3"]["difference"] == 1 / 4
    assert set(report["rows"][2]["settings"]) == {"semantic_id", "item"}


def test_the_files_are_the_same_bytes_every_time_and_free_of_paths(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        models = [evaluate_ranked(rows(), "sft", RANKED, narrower={2: RANKED[:, :2]})]
        write_report(folder / "eval.json", eval_report(rows(), models, evaluate_baselines(rows(), TRAIN, TRAIN)))
        write_ranked(folder / "ranked.jsonl", rows(), (KEYS, SIDS), RANKED)
        assert sorted(path.name for path in folder.iterdir()) == ["eval.json", "ranked.jsonl"]
        contents.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert contents[0] == contents[1]
    assert b"somewhere" not in contents[0][1]
    report = json.loads(contents[0][0])
    assert report["metrics"]["ndcg@3"] == round((2 + 1 / np.log2(3)) / 4, 6)
    assert report["health"]["hit_rate@10"] == {"2": 0.75, "3": 0.75}


def test_a_ranked_line_says_what_was_asked_and_what_came(tmp_path: Path) -> None:
    scores = np.log([[0.5, 0.3, 0.2]] * 4)
    write_ranked(tmp_path / "ranked.jsonl", rows(), (KEYS, SIDS), RANKED, scores)
    first, second, third, _ = (json.loads(line) for line in (tmp_path / "ranked.jsonl").read_text().splitlines())
    assert first == {
        "source": "test.csv:2",
        "user": "u",
        "history": ["k0"],
        "target": "k2",
        "target_semantic_id": "<a_0><b_1>",
        "rank": 1,
        "item_ranks": [1, 2],
        "semantic_ids": ["<a_0><b_1>", "<a_0><b_0>", "<a_1><b_0>"],
        "items": [["k1", "k2"], ["k0"], ["k3"]],
        "scores": [-0.693147, -1.203973, -1.609438],
    }
    assert second["semantic_ids"] == ["<a_0><b_0>", "<a_1><b_1>"]  # the padding is gone
    assert len(second["scores"]) == 2
    assert (third["rank"], third["item_ranks"]) == (None, None)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "ranked.jsonl"
    path.write_text("old")
    with pytest.raises(AssertionError, match="twice"):
        write_ranked(path, rows(), (KEYS, SIDS), np.zeros_like(RANKED))
    assert path.read_text() == "old"


def by_name(evaluations: list[Evaluation]) -> dict[str, Evaluation]:
    return {evaluation.name: evaluation for evaluation in evaluations}


def test_nothing_beats_the_true_distribution_of_generated_data() -> None:
    data = generate_demo(DemoDataSettings(users=600, items=48))
    assert data.true_scores is not None
    train, valid, test = (data.splits[split] for split in ("train", "valid", "test"))
    sid_of_item = np.arange(len(data.items)) // 2  # two items share every SID
    table = EvaluationRows(test, sid_of_item, train, (1, 10))
    found = by_name(evaluate_baselines(table, train, valid, data.true_scores))
    ceiling = found.pop("true distribution")
    assert ceiling.kind == "ceiling"
    for metric in ("ndcg@10", "item/ndcg@10"):
        assert ceiling.metrics[metric] > max(baseline.metrics[metric] for baseline in found.values())
    # Both items of an SID count at SID level, so every row is at least as good there.
    assert ceiling.metrics["hit_rate@10"] >= ceiling.metrics["item/hit_rate@10"]


def test_levels_agree_where_every_item_has_its_own_semantic_id() -> None:
    table = EvaluationRows(TEST, np.array([3, 0, 4, 1, 2]), TRAIN, (1, 3))
    for baseline in evaluate_baselines(table, TRAIN, TRAIN):
        assert baseline.metrics["item/ndcg@3"] == baseline.metrics["ndcg@3"]
        assert "item" not in baseline.settings
