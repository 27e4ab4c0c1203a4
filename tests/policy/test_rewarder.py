"""Rewards are mixed as their settings say, and a reward that fails, dies or sleeps costs its sample and not the run."""

from __future__ import annotations

import math
import os
import re
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from rlkit.config.algorithms import SkipSolvedSettings
from rlkit.config.rewards import RewardSettings
from rlkit.config.verifiers import PythonSettings
from rlkit.errors import TrainingError
from rlkit.models.tokenizer import byte_tokenizer
from rlkit.plugins import load_plugins
from rlkit.policy import supervised
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.metrics import rollout_metrics
from rlkit.policy.pass_rates import PassRates
from rlkit.policy.rewarder import Rewarder, Spent, WeightedReward
from rlkit.policy.rollouts import Rollouts, concat
from rlkit.policy.supervised import SupervisedReward, within
from rlkit.policy.text_rewards import MAX_REASON, Sample, TextReward
from rlkit.records import Prompt, Source

TOKENIZER = byte_tokenizer()
DOMAIN = SimpleNamespace(tokenizer=TOKENIZER)


def rollouts(*groups: tuple[str, ...]) -> Rollouts:
    """Groups of completions of the same number of bytes each, all finished."""
    prompts = [Prompt(str(index), "Q?", "A", Source("rows.jsonl", index + 1)) for index in range(len(groups))]
    ids = [[[*TOKENIZER(text).input_ids, TOKENIZER.eos_token_id] for text in group] for group in groups]
    completions = torch.tensor(ids)
    shape = completions.shape[:2]
    batch = GroupBatch(
        torch.ones(len(groups), 2, dtype=torch.long), torch.ones(len(groups), 2), completions,
        torch.ones_like(completions),
    )  # fmt: skip
    none = torch.zeros(len(groups), 1)
    return Rollouts(prompts, batch, torch.zeros(shape), None, torch.zeros(shape).bool(), none.long(), none.bool())


def part(name: str, scores: list[list[float]], **settings) -> WeightedReward:
    chosen = RewardSettings(**settings)
    return WeightedReward(name, chosen.weight, lambda _: torch.tensor(scores), chosen)


def mixed(*parts: WeightedReward) -> torch.Tensor:
    found = rollouts(("a", "b"), ("c", "d"))
    Rewarder(parts)(found)
    return found.rewards


def test_parts_are_clipped_then_weighted_then_added_and_gates_multiply() -> None:
    score = part("score", [[3.0, -3.0], [0.5, 0.0]], clip=[-1, 1], weight=2.0)
    other = part("other", [[1.0, 1.0], [1.0, 1.0]], weight=0.5)
    gate = part("gate", [[1.0, 1.0], [0.0, 1.0]], gate=True)
    assert mixed(score, other, gate).tolist() == [[2.5, -1.5], [0.0, 0.5]]


def test_a_standardized_part_counts_by_its_place_in_the_group() -> None:
    # 0 and 10 have the mean 5 and the unbiased deviation 7.07: -.707 and .707; a group without a difference gets 0.
    found = mixed(part("score", [[0.0, 10.0], [4.0, 4.0]], standardize=True))
    assert found.flatten().tolist() == pytest.approx([-0.7071, 0.7071, 0.0, 0.0], abs=1e-3)


def test_a_standardized_part_counts_as_it_was_in_what_is_logged_and_selected_by() -> None:
    # Of the clipped scores 0, 4 and 4, 4, each times 2, and 1: the plain rewards are 1, 9 and 9, 9, 7 on average.
    parts = [part("score", [[0.0, 10.0], [4.0, 4.0]], standardize=True, weight=2.0, clip=[0, 4])]
    found = rollouts(("a", "b"), ("c", "d"))
    Rewarder([*parts, part("other", [[1.0, 1.0], [1.0, 1.0]])])(found)
    assert found.rewards.mean() == pytest.approx(1.0), "what is trained on has each group's mean taken away"
    found = concat([found.select([1]), found.select([0])])
    assert found.plain.tolist() == [[9.0, 9.0], [1.0, 9.0]]
    metrics = rollout_metrics(found)
    assert metrics["reward"] == 7.0
    assert metrics["reward_spread"] == pytest.approx(12**0.5)
    rates = PassRates(SkipSolvedSettings(passed_at=5.0))
    assert rates.record(found, 0) == {"difficulty/new": 7.0}
    assert rates.visits == {"1": [1.0], "0": [0.5]}


def test_a_gate_and_weights_shape_the_plain_reward_as_they_shape_the_trained_one() -> None:
    found = rollouts(("a", "b"))
    gate = part("gate", [[1.0, 0.0]], gate=True)
    Rewarder([part("score", [[3.0, 5.0]], standardize=True), part("more", [[1.0, 1.0]], weight=0.5), gate])(found)
    assert found.plain.tolist() == [[3.5, 0.0]]
    assert found.rewards[0].tolist() == pytest.approx([0.5 - 0.7071, 0.0], abs=1e-3)


def test_a_part_that_scores_tokens_counts_with_its_sum_and_keeps_its_tokens() -> None:
    found = rollouts(("a", "b"))
    dense = WeightedReward("steps", 2.0, lambda r: torch.tensor([[[1.0, 2.0], [0.0, -1.0]]]))
    Rewarder([dense, part("whole", [[1.0, 1.0]]), part("gate", [[1.0, 0.0]], gate=True)])(found)
    assert found.rewards.tolist() == [[7.0, 0.0]]
    assert found.dense.tolist() == [[[2.0, 4.0], [0.0, 0.0]]]
    assert found.parts["steps"].tolist() == [[3.0, -1.0]]


def test_a_sample_without_a_score_leaves_its_group_and_goes_to_the_quarantine() -> None:
    found, rows = rollouts(("a", "b"), ("c", "d")), []
    picky = TextReward(lambda samples: [math.nan if row.completion == "b" else 1.0 for row in samples], DOMAIN)
    Rewarder([WeightedReward("picky", 1.0, picky), part("other", [[1, 2], [3, 4]])], quarantine=rows.append)(found)
    assert found.present.tolist() == [[True, False], [True, True]]
    assert found.rewards.tolist() == [[2.0, 0.0], [4.0, 5.0]]
    assert found.scores[0, 1] == -math.inf
    assert [(row["reward"], row["completion"]) for row in rows] == [("picky", "b")]


def test_a_share_without_any_score_counts_nothing_and_its_numbers_are_finite() -> None:
    silent, found = TextReward(lambda samples: [math.nan] * len(samples), DOMAIN), rollouts(("a", "b"))
    rewarder = Rewarder([WeightedReward("silent", 1.0, silent)])
    rewarder(found)
    assert not found.present.any()
    assert found.rewards.tolist() == [[0.0, 0.0]]
    assert rewarder.spent.notes()["unscored"] == 1.0
    metrics = rollout_metrics(found)
    assert all(math.isfinite(value) for value in metrics.values())
    assert (metrics["reward"], metrics["reward_spread"], metrics["completion_length"]) == (0.0, 0.0, 0.0)


def test_what_scoring_took_adds_up_over_calls_until_it_is_reset() -> None:
    picky = TextReward(lambda samples: [math.nan if row.completion == "b" else 1.0 for row in samples], DOMAIN)
    rewarder = Rewarder([WeightedReward("picky", 1.0, picky)])
    rewarder(rollouts(("a", "b"), ("c", "d")))
    first = rewarder.spent.milliseconds["picky"]
    rewarder(rollouts(("c", "d")))
    assert (rewarder.spent.completions, rewarder.spent.unscored) == (6, 1)
    assert rewarder.spent.notes()["unscored"] == pytest.approx(1 / 6)
    assert rewarder.spent.milliseconds["picky"] > first
    assert rewarder.spent.notes()["reward_ms/picky"] == rewarder.spent.milliseconds["picky"] / 6
    rewarder.reset()
    assert rewarder.spent.notes() == {"unscored": 0.0}


def test_what_ranks_spent_is_added_up() -> None:
    # 30 ms for 3 completions on one rank, 10 ms for 1 on another, none on a third
    both = Spent(3, 1, {"a": 30.0}) + Spent(1, 1, {"a": 10.0, "b": 2.0}) + Spent()
    assert both.notes() == {"reward_ms/a": 10.0, "reward_ms/b": 0.5, "unscored": 0.5}


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_a_tensor_reward_that_is_not_finite_is_a_mistake_in_its_code(wrong: float) -> None:
    with pytest.raises(TrainingError, match="reward broken: must return finite numbers"):
        mixed(part("broken", [[wrong, 1.0], [1.0, 1.0]]))


@pytest.mark.parametrize(("found", "got"), [([[1.0, 2.0]], "list"), (torch.ones(1, 2) * 1j, r"torch\.complex64")])
def test_a_reward_that_returns_no_real_numbers_is_named(found: object, got: str) -> None:
    with pytest.raises(TrainingError, match=f"reward odd: must return a tensor of real numbers, got {got}; look at"):
        Rewarder([WeightedReward("odd", 1.0, lambda _: found)])(rollouts(("a", "b")))


def test_a_clip_without_room_is_refused() -> None:
    with pytest.raises(ValidationError, match="the least must lie below the most"):
        RewardSettings(clip=[1.0, 1.0])


def test_a_standardized_gate_is_refused() -> None:
    with pytest.raises(ValidationError, match="a standardized gate is 0 on average"):
        RewardSettings(gate=True, standardize=True)


def test_token_scores_are_not_standardized_and_the_part_is_named() -> None:
    steps = WeightedReward("steps", 1.0, lambda r: torch.ones(1, 2, 2), RewardSettings(standardize=True))
    with pytest.raises(TrainingError, match="reward steps: standardize compares completions"):
        Rewarder([steps])(rollouts(("a", "b")))


def test_a_reward_in_this_process_that_hangs_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "LEAST_CALL_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"reward slow: no answer within 0\.2 seconds; look for an endless loop"):
        within(0.1, "slow", threading.Event().wait)
    assert time.monotonic() - started < 2


def test_an_error_of_a_reward_in_this_process_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        within(1.0, "bad", lambda: 1 // 0)


MOODY = '''
import os, sys, time
from typing import ClassVar, Literal
from rlkit.component import Component
from rlkit.config.rewards import RewardSettings
from rlkit.config.verifiers import PythonSettings
from rlkit.hookspecs import hookimpl
from rlkit.policy.text_rewards import TextReward

class MoodySettings(RewardSettings):
    """Does what the completion says."""
    type: Literal["moody"] = "moody"
    supervised: ClassVar[bool] = True

def moody(settings, domain):
    def score(samples):
        word = samples[0].completion
        if word == "raise":
            raise ValueError("bad day")
        if word == "sleep":
            time.sleep(60)
        if word == "leave":
            os._exit(3)
        if word == "spawn":
            import subprocess
            subprocess.Popen(["sleep", "61"])
            subprocess.Popen(["sh", "-c", "sleep 62 &"], start_new_session=True).wait()
            time.sleep(60)
        if word == "read":
            return [float(len(sys.stdin.read()))]
        if word == "shout":
            raise ValueError("x" * 100_000_000)
        print("not a reply")
        return [float(os.getpid()) if word == "pid__" else float(len(samples[0].context or ""))]
    return TextReward(score, domain)

@hookimpl
def register_rewards():
    return [Component(MoodySettings, "moody_reward:moody")]
'''


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory):
    """A supervised reward that misbehaves on demand, out of an installed package."""
    site = tmp_path_factory.mktemp("site")
    (site / "moody_reward.py").write_text(MOODY)
    info = site / "moody_reward-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moody-reward\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rlkit]\nmoody_reward = moody_reward\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv("PYTHONPATH", str(site))
        patch.setenv("RLKIT_PLUGINS", "moody_reward")
        load_plugins.cache_clear()
        settings = load_plugins().get("reward", "moody").settings(timeout_seconds=1.0, workers=1)
        reward = SupervisedReward(settings, DOMAIN)
        yield reward
        reward.close()
        load_plugins.cache_clear()


def said(reward: SupervisedReward, word: str, context: object = None):
    return reward.judge([Sample("Q?", word, context=context)])[0]


def test_a_healthy_sample_is_scored_and_prints_do_not_disturb(moody: SupervisedReward) -> None:
    found = said(moody, "quiet", context=[1, 2, 3])
    assert (found.score, found.error) == (3.0, "")
    assert said(moody, "pid__").score != os.getpid(), "in another process"


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("raise", r"ValueError: bad day \(moody_reward\.py:\d+\)"),
        ("sleep", "no answer within 1 seconds"),
        ("leave", "the process ended with code 3"),
    ],
)
def test_a_bad_sample_says_why_and_the_next_one_is_scored(moody: SupervisedReward, word: str, error: str) -> None:
    found = said(moody, word)
    assert math.isnan(found.score)
    assert re.fullmatch(error, found.error)
    assert said(moody, "quiet", context="ab").score == 2.0


def test_what_a_killed_reward_has_started_is_killed_with_it(moody: SupervisedReward) -> None:
    said(moody, "spawn")
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not {b"sleep\x0061\x00", b"sleep\x0062\x00"} & {*commands}


def test_a_reward_finds_no_input_and_its_longest_message_is_cut(moody: SupervisedReward) -> None:
    assert said(moody, "read").score == 0.0
    message, _, place = said(moody, "shout").error.partition(" (")
    assert (len(message), place[:15]) == (MAX_REASON, "moody_reward.py")


def test_a_worker_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import os\ndef reward(completion):\n    return 1\nos.write(2, b'no licence')\nos._exit(3)\n")
    (tmp_path / "queue.py").write_text("raise ImportError('a file of the user is not that module')\n")
    monkeypatch.chdir(tmp_path)
    reward = SupervisedReward(PythonSettings(file="mine.py"), None)
    why = "reward python: its worker does not start: the process ended with code "
    with pytest.raises(TrainingError, match=f"{why}3; it said: no licence$"):
        said(reward, "a")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TrainingError, match=f"{why}1"):
        said(reward, "a")
    assert reward.workers[0].process is None


def test_a_deadline_longer_than_the_system_can_wait_is_one() -> None:
    assert within(1e300, "patient", lambda: 1) == 1


def test_one_bad_sample_costs_itself_alone(moody: SupervisedReward) -> None:
    found, rows = rollouts(("quiet", "raise"), ("quiet", "quiet")), []
    moody_part = WeightedReward("moody", 1.0, moody, moody.settings)
    rewarder = Rewarder([moody_part], quarantine=rows.append)
    rewarder(found)
    assert found.present.tolist() == [[True, False], [True, True]]
    assert rows[0]["error"].startswith("ValueError: bad day (moody_reward.py:")
    assert rewarder.spent.notes()["unscored"] == 0.25
    assert rewarder.spent.notes()["reward_ms/moody"] > 0
