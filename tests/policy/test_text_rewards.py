"""A reward in the run's own process that raises costs the samples that it raises for, and not the run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_rewarder import DOMAIN, rollouts

from rlkit.config.rewards import RewardSettings
from rlkit.errors import DataError, TrainingError
from rlkit.policy.rewarder import Rewarder, WeightedReward
from rlkit.policy.supervised import judge
from rlkit.policy.text_rewards import MAX_REASON, Sample, TextReward
from rlkit.reward_models.scorer import LearnedReward


def ranks(samples: Sequence[Sample]) -> list[float]:
    """Compare samples: each gets the number of others whose number is smaller."""
    numbers = [int(sample.completion) for sample in samples]
    return [float(sum(other < number for other in numbers)) for number in numbers]


def said(score: Callable[[Sequence[Sample]], Any], *completions: str) -> list[tuple[float | None, str]]:
    outcomes = judge(TextReward(score, None), "mine", RewardSettings(), [Sample("", text) for text in completions])
    errors = [re.sub(r" \(test_text_rewards\.py:\d+\)$", "", one.error) for one in outcomes]
    return [(None if math.isnan(one.score) else one.score, error) for one, error in zip(outcomes, errors)]


def test_an_error_names_the_line_of_the_rewards_code_not_of_what_it_calls() -> None:
    def score(samples: Sequence[Sample]) -> list[float]:
        return [json.loads(sample.completion) for sample in samples]

    line = score.__code__.co_firstlineno + 1
    (outcome,) = TextReward(score, None).judge([Sample("", "no JSON")])
    assert outcome.error == f"JSONDecodeError: Expecting value: line 1 column 1 (char 0) (test_text_rewards.py:{line})"


def test_what_raises_alone_has_no_score_and_the_others_are_compared_without_it() -> None:
    none = "ValueError: invalid literal for int() with base 10: 'x'"
    assert said(ranks, "5", "x", "7", "6") == [(0.0, ""), (None, none), (2.0, ""), (1.0, "")]


def test_where_all_raise_none_has_a_score() -> None:
    assert said(lambda samples: [1 / 0], "a", "b") == [(None, "ZeroDivisionError: division by zero")] * 2
    assert said(lambda samples: [None] * len(samples), "a")[0][1].startswith("TypeError: float() argument must be")


def test_what_raises_together_alone_costs_all_of_them() -> None:
    def few(samples: Sequence[Sample]) -> list[float]:
        if len(samples) > 1:
            raise ValueError("too\nmany")
        return [1.0]

    assert said(few, "a", "b") == [(None, "ValueError: too many")] * 2


def test_a_reward_that_leaves_python_costs_its_sample_and_does_not_end_the_run_as_a_success() -> None:
    def leave(samples: Sequence[Sample]) -> list[float]:
        if any(sample.completion == "leave" for sample in samples):
            raise SystemExit(0)
        return [1.0] * len(samples)

    assert said(leave, "stay", "leave") == [(1.0, ""), (None, "SystemExit: 0")]


@pytest.mark.parametrize("error", [DataError("rows.jsonl:1: no answer"), torch.OutOfMemoryError("no room")])
def test_what_is_no_samples_fault_is_raised(error: Exception) -> None:
    def score(samples: Sequence[Sample]) -> list[float]:
        raise error

    with pytest.raises(type(error)):
        said(score, "a", "b")


def test_an_error_of_a_learned_reward_is_raised() -> None:
    model = LearnedReward(SimpleNamespace(), [SimpleNamespace(tokenizer=None, max_tokens=8)], None)
    with pytest.raises(TypeError):
        model.judge([Sample("p", "a"), Sample("p", "b")])


def test_a_wrong_number_of_scores_is_said_with_both_numbers() -> None:
    with pytest.raises(TrainingError, match="reward: 1 scores for 2 completions"):
        said(lambda samples: [1.0], "a", "b")


def test_a_long_reason_is_cut_and_can_be_written_to_a_file() -> None:
    def score(samples: Sequence[Sample]) -> list[float]:
        raise ValueError("\ud800" + "x" * 10_000_000)

    ((_, why),) = said(score, "a")
    assert len(why.encode("utf-8")) == MAX_REASON  # said leaves the place out
    assert why.startswith("ValueError: ?xxx")


def test_rollouts_lose_what_raised_and_the_quarantine_says_why() -> None:
    found, rows = rollouts(("1", "x"), ("2", "3")), []
    rewarder = Rewarder([WeightedReward("ranks", 1.0, TextReward(ranks, DOMAIN))], quarantine=rows.append)
    rewarder(found)
    assert found.present.tolist() == [[True, False], [True, True]]
    assert found.rewards.tolist() == [[0.0, 0.0], [1.0, 2.0]]
    assert [(row["completion"], row["error"].split(":")[0]) for row in rows] == [("x", "ValueError")]
    assert rewarder.spent.notes()["unscored"] == 0.25
