"""Prompts that teach nothing are skipped for a while, counted, and never all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toys import tiny_job

from rlkit.algorithms.grpo import grpo
from rlkit.config.algorithms import SkipSolvedSettings
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.pass_rates import PassRates
from rlkit.policy.rewarder import WeightedReward
from rlkit.policy.rollouts import PromptStream, Rollouts
from rlkit.policy.trainer import PolicyTrainer
from rlkit.records import Prompt, Source

PROMPTS = [Prompt(str(index), "Q?", "A", Source("rows.jsonl", index + 1)) for index in range(4)]


def visit(*rewards: tuple[float, ...], prompts: list[Prompt] = PROMPTS) -> Rollouts:
    """Groups with given rewards, a single token each."""
    scores = torch.tensor(rewards)
    shape = (*scores.shape, 1)
    batch = GroupBatch(
        torch.ones(len(scores), 1, dtype=torch.long), torch.ones(len(scores), 1).bool(),
        torch.ones(shape, dtype=torch.long), torch.ones(shape).bool(),
    )  # fmt: skip
    none = torch.zeros(len(scores), 1)
    truncated = torch.zeros_like(scores).bool()
    return Rollouts(prompts[: len(scores)], batch, scores, None, truncated, none.long(), none.bool(), rewards=scores)


def test_prompts_that_are_always_or_never_solved_are_skipped_for_some_passes() -> None:
    rates = PassRates(SkipSolvedSettings(visits=2, passes=3))
    for turn in (0, 1):
        rates.record(visit((1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (turn, turn)), turn)
    assert [[rates.skips(prompt.key, turn) for prompt in PROMPTS] for turn in (1, 4, 5)] == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, False, False],
    ]


def test_only_the_last_visits_count() -> None:
    rates = PassRates(SkipSolvedSettings(visits=2))
    for turn, reward in enumerate((0.0, 1.0, 1.0)):
        rates.record(visit((reward, reward)), turn)
    assert rates.visits["0"] == [1.0, 1.0]
    assert rates.skips("0", 3)


def test_rewards_are_logged_by_the_pass_rate_before_the_visit() -> None:
    rates = PassRates(SkipSolvedSettings(visits=None))
    first = rates.record(visit((1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.0, 0.5)), 0)
    assert first == {"difficulty/new": pytest.approx((1.0 + 0.5 + 0.0 + 0.25) / 4)}
    second = rates.record(visit((1.0, 0.0), (1.0, 1.0), (0.0, 0.2), (0.0, 0.4)), 1)
    assert second == {
        "difficulty/100": pytest.approx(0.5),
        "difficulty/25-50": pytest.approx(1.0),
        "difficulty/0": pytest.approx((0.1 + 0.2) / 2),
    }
    assert not rates.until, "nothing is skipped"


def test_a_stream_skips_counts_and_goes_on_behind_what_it_skipped() -> None:
    order = [prompt.key for prompt in PromptStream(PROMPTS, 0).take(0, 4)]
    stream = PromptStream(PROMPTS, 0, lambda key, turn: turn == 0 and key in order[:2])
    taken, cursor, skipped = stream.draw(0, 2)
    assert [prompt.key for prompt in taken] == order[2:]
    assert (cursor, skipped) == (4, 2)
    assert sorted(prompt.key for prompt in stream.take(cursor, 4)) == ["0", "1", "2", "3"]


def test_a_stream_of_skipped_prompts_is_never_empty() -> None:
    stream = PromptStream(PROMPTS, 0, lambda key, turn: True)
    taken, cursor, skipped = stream.draw(0, 3)
    assert [prompt.key for prompt in taken] == [prompt.key for prompt in PromptStream(PROMPTS, 0).take(0, 3)]
    assert (cursor, skipped) == (4, 1)
    assert len(stream.draw(cursor, 9)[0]) == 9


def trainer(folder: Path) -> PolicyTrainer:
    """A trainer over random weights whose reward is 1 for half of the prompts, whatever is said."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "valid"):
        rows = [json.dumps({"prompt": split + letter, "answer": letter}) for letter in "abcdefgh"]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    algorithm = {
        "type": "grpo",
        "group_size": 2,
        "rollout": {"type": "sample", "max_completion_tokens": 4},
        "rewards": [{"type": "exact_match"}],
        "validate_on": {"select_by": "last"},
        "skip_solved": {"visits": 1, "passes": 2},
    }
    train = {"batch_size": 4, "max_steps": 6, "report_to": [], "log_every_steps": 1, "save_every_steps": 3}
    prompts = {"path": str(folder / "train.jsonl"), "valid": str(folder / "valid.jsonl")}
    tree = {
        "name": "filters",
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 1},
        "domain": {"type": "chat", "prompts": prompts, "max_completion_tokens": 4},
        "stages": {"grpo": {"algorithm": algorithm, "train": {**train, "evaluate_every_steps": 100}}},
        "engine": {"threads": 1},
    }
    built = grpo(tiny_job(folder / "run", "grpo", tree))
    built.args.eval_on_start = False
    built.collector.rewarder.parts = [WeightedReward("test", 1.0, half_solved)]
    return built


def half_solved(rollouts: Rollouts) -> torch.Tensor:
    """1 for prompts of a to d; of the others one of two completions passes."""
    solved = torch.tensor([prompt.answer <= "d" for prompt in rollouts.prompts])
    return torch.where(solved[:, None], torch.ones(2), torch.tensor([0.0, 1.0])).float()


def test_a_run_skips_what_is_solved_and_resumes_exactly(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "1")
    asked: list[list[str]] = []
    whole.events = type("Events", (), {"on_rollouts": lambda self, step, rollouts: asked.append(answers(rollouts))})()
    whole.train()
    assert sorted(asked[0] + asked[1]) == list("abcdefgh"), "the first pass shows every prompt"
    assert all(answer > "d" for group in asked[2:4] for answer in group), "two passes go without the solved ones"
    assert whole.state.log_history[2]["skipped_prompts"] > 0
    assert whole.state.log_history[2]["difficulty/25-50"] == 0.5
    again = trainer(tmp_path / "2")
    again.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-3"))
    assert again.collector.state() == whole.collector.state()
    assert again.cursor == whole.cursor
    state = json.loads((Path(whole.args.output_dir) / "checkpoint-3" / "policy.json").read_text())
    assert state["rates"]["skipped"] > 0


def answers(rollouts: Rollouts) -> list[str]:
    return [prompt.answer for prompt in rollouts.prompts]
