"""Every sickness is provoked in a real tiny run, and the monitor names it and nothing of another cause."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys import tiny_job
from transformers import TrainerCallback

from rlkit.algorithms.grpo import grpo
from rlkit.algorithms.ppo import ppo
from rlkit.errors import RecipeError, TrainingError
from rlkit.models.wrapped import load_wrapped
from rlkit.monitor.alarms import alarm
from rlkit.plugins import load_plugins
from rlkit.policy.rewarder import WeightedReward
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.step_log import StepLog
from rlkit.policy.trainer import PolicyTrainer
from rlkit.recipe import recipe_from_tree
from rlkit.run import stage_inputs
from rlkit.run_directory import RunDirectory

BUILD = {"grpo": grpo, "ppo": ppo}
TOKENS = 32


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with one to eight letters, any of them, and ends."""
    folder = tmp_path_factory.mktemp("start")
    job = tiny_job(folder / "run", "grpo", recipe(folder, "grpo"))
    loaded = job.load_model()
    prompts = [loaded.tokenizer(prompt.text).input_ids for prompt in job.domain.prompts("train")]
    model, end, draw = loaded.model, loaded.tokenizer.eos_token_id, random.Random(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        answers = [[*draw.choices(range(97, 123), k=draw.randint(1, 8)), end] for _ in prompts]
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [end] * (width - len(row)) for row in rows])
        labels = torch.tensor(
            [
                [-100] * len(prompt) + answer + [-100] * (width - len(prompt) - len(answer))
                for prompt, answer in zip(prompts, answers)
            ]
        )
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "model")
    loaded.tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def recipe(folder: Path, kind: str, **algorithm: Any) -> dict:
    """A recipe over letters."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"prompt": letter * 2, "answer": letter}) for letter in "abcdefghijklmnopqrst"]
    (folder / "train.jsonl").write_text("\n".join(rows[:16]))
    (folder / "valid.jsonl").write_text("\n".join(rows[16:]))
    train = {
        "batch_size": 4, "schedule": "constant", "warmup": 0, "report_to": [], "log_every_steps": 1,
        "evaluate_every_steps": 1000, "keep_checkpoints": 9,
    }  # fmt: skip
    own = {
        "type": kind,
        "group_size": 4,
        "rollout": {"type": "sample", "max_completion_tokens": TOKENS},
        "rewards": [{"type": "exact_match"}],
        "validate_on": {"select_by": "last"},
        **algorithm,
    }
    prompts = {"path": str(folder / "train.jsonl"), "valid": str(folder / "valid.jsonl")}
    return {
        "name": "sick",
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 1},
        "domain": {"type": "chat", "prompts": prompts, "max_completion_tokens": TOKENS},
        "stages": {kind: {"algorithm": own, "train": train}},
        "engine": {"threads": 1},
    }


def trainer(
    folder: Path,
    start: Path,
    reward: Callable[[Rollouts], torch.Tensor] | None,
    *,
    steps: int = 16,
    rate: float = 1e-3,
    monitor: dict | None = None,
    kind: str = "grpo",
    train: dict | None = None,
    **algorithm: Any,
) -> PolicyTrainer:
    """A trainer of the starting model; the reward is any function of rollouts, or the recipe's."""
    tree = recipe(folder, kind, **algorithm)
    tree["stages"][kind]["train"] |= {"max_steps": steps, "learning_rate": rate, **(train or {})}
    tree["model"], tree["monitor"] = {"path": str(start)}, monitor or {}
    built = BUILD[kind](tiny_job(folder / "run", kind, tree))
    built.args.eval_on_start = False
    if reward is not None:
        built.collector.rewarder.parts = [WeightedReward("test", 1.0, reward)]
    return built


def alarms(folder: Path) -> list[dict]:
    """Read what was said."""
    path = folder / "run" / "alarms.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def names(folder: Path) -> set[str]:
    """Return the kinds of alarms that were said."""
    return {row["alarm"] for row in alarms(folder)}


def weights(built: PolicyTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in built.model.parameters()])


# ---- rewards, healthy and sick


def many(*tokens: int) -> Callable[[Rollouts], torch.Tensor]:
    """The share of some tokens among a completion's."""

    def score(rollouts: Rollouts) -> torch.Tensor:
        ids, mask = rollouts.batch.completions, rollouts.batch.mask
        hit = torch.isin(ids, torch.tensor(tokens)) & mask
        return hit.sum(-1) / mask.sum(-1).clamp_min(1)

    return score


def short_a(rollouts: Rollouts) -> torch.Tensor:
    """The letter a, and little else."""
    return many(97)(rollouts) - 0.1 * (length(rollouts) - 4).abs()


def length(rollouts: Rollouts) -> torch.Tensor:
    return rollouts.batch.mask.sum(-1).float()


def constant(rollouts: Rollouts) -> torch.Tensor:
    return torch.full(rollouts.batch.mask.shape[:2], 0.5)


class Turning:
    """A reward that becomes another one.

    Args:
        before: until ``turn`` rollouts were scored.
        after: from then on.
    """

    def __init__(self, before: Callable, after: Callable, turn: int) -> None:
        self.before, self.after, self.turn, self.calls = before, after, turn, 0

    def __call__(self, rollouts: Rollouts) -> torch.Tensor:
        self.calls += 1
        return (self.before if self.calls <= self.turn else self.after)(rollouts)


HALF = tuple(range(97, 110))
"""The letters a to m."""


def test_a_healthy_run_raises_no_alarm(tmp_path: Path, start: Path) -> None:
    built = trainer(tmp_path, start, many(*HALF), steps=30)
    built.train()
    first, last = built.health.watch.history.start[:5], built.health.watch.history.rows[-5:]
    assert sum(row["reward"] for row in last) > sum(row["reward"] for row in first), "it learns"
    assert alarms(tmp_path) == []


# ---- one sickness, one alarm


def half_and_short(rollouts: Rollouts) -> torch.Tensor:
    """Pay for half of the letters, and for completions of the length that the starting model gives."""
    return many(*HALF)(rollouts) - 0.1 * (length(rollouts) - 5.5).abs()


def test_a_learning_rate_of_a_thousand_times_as_much_is_named(tmp_path: Path, start: Path) -> None:
    trainer(tmp_path, start, many(*HALF), rate=1.0, steps=12).train()
    assert names(tmp_path) == {"large_updates"}, "what follows from it is not said"
    row = alarms(tmp_path)[0]
    assert "KL to the reference rose from" in row["symptom"]
    assert "stages.grpo.train.learning_rate" in row["change"]
    assert row["since"] <= 3


def test_a_constant_reward_is_named(tmp_path: Path, start: Path) -> None:
    trainer(tmp_path, start, constant, steps=24).train()
    assert [(row["alarm"], row["step"], row["since"]) for row in alarms(tmp_path)] == [("no_signal", 5, 1)]
    assert alarms(tmp_path)[0]["symptom"] == "all rewards of 5 rollouts are 0.5"


def test_a_reward_that_pays_for_length_is_named(tmp_path: Path, start: Path) -> None:
    trainer(tmp_path, start, length, steps=24, rate=3e-3, kl_coef=0.0).train()
    assert names(tmp_path) == {"length_growing"}
    assert "stages.grpo.algorithm.rewards (add length_penalty)" in alarms(tmp_path)[0]["change"]


def test_a_collapse_of_entropy_is_named_and_reward_does_not_excuse_it(tmp_path: Path, start: Path) -> None:
    built = trainer(tmp_path, start, short_a, steps=40, rate=1e-2, kl_coef=0.0, train={"batch_size": 16})
    built.train()
    rows = built.health.watch.history.rows
    assert rows[-1]["reward"] > rows[0]["reward"]
    assert names(tmp_path) == {"entropy_collapse"}


def test_a_policy_that_leaves_the_reference_is_named(tmp_path: Path, start: Path) -> None:
    trainer(tmp_path, start, half_and_short, steps=16, rate=5e-3, monitor={"kl_high": 0.05}).train()
    assert names(tmp_path) <= {"kl_growing", "kl_high"}
    assert "kl_high" in names(tmp_path)


def test_a_reward_that_falls_is_named(tmp_path: Path, start: Path) -> None:
    turning = Turning(many(*HALF), lambda rollouts: many(*HALF)(rollouts) - 1.0, turn=10)
    trainer(tmp_path, start, turning, steps=20).train()
    assert names(tmp_path) == {"reward_falling"}
    assert alarms(tmp_path)[0]["step"] > 10


def test_a_reward_that_pays_in_training_alone_shows_as_a_gap(tmp_path: Path, start: Path) -> None:
    def pays(rollouts: Rollouts) -> torch.Tensor:
        score, flip = half_and_short(rollouts), torch.tensor([prompt.answer >= "q" for prompt in rollouts.prompts])
        return torch.where(flip[:, None], -score, score)

    validate = {"every_steps": 8, "select_by": "last"}
    built = trainer(tmp_path, start, pays, steps=40, rate=2e-3, kl_coef=0.0, validate_on=validate)
    built.args.eval_on_start = True
    built.train()
    assert names(tmp_path) == {"hacking_gap"}
    assert "eval_reward fell from" in alarms(tmp_path)[0]["symptom"]


def test_a_slow_reward_is_named(tmp_path: Path, start: Path) -> None:
    def slow(rollouts: Rollouts) -> torch.Tensor:
        time.sleep(0.1)
        return many(*HALF)(rollouts)

    trainer(tmp_path, start, slow, steps=8, monitor={"reward_ms": 5.0}).train()
    assert names(tmp_path) == {"reward_slow"}
    assert alarms(tmp_path)[0]["symptom"].startswith("test takes ")


FICKLE = '''
import time
from typing import ClassVar, Literal
from rlkit.component import Component
from rlkit.config.rewards import RewardSettings
from rlkit.hookspecs import hookimpl
from rlkit.policy.text_rewards import TextReward

class FickleSettings(RewardSettings):
    """Raises, or sleeps, on every other completion."""
    type: Literal["fickle"] = "fickle"
    supervised: ClassVar[bool] = True
    sleeps: bool = False

def fickle(settings, domain):
    calls = []
    def score(samples):
        calls.append(1)
        if settings.sleeps and len(calls) == 3:
            time.sleep(60)
        if not settings.sleeps and len(calls) % 2:
            raise ValueError("bad day")
        return [float(len(samples[0].completion))]
    return TextReward(score, domain)

@hookimpl
def register_rewards():
    return [Component(FickleSettings, "fickle_reward:fickle")]
'''


@pytest.fixture
def fickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Give a supervised reward that misbehaves, out of an installed package."""
    site = tmp_path / "site"
    (info := site / "fickle_reward-1.0.dist-info").mkdir(parents=True)
    (site / "fickle_reward.py").write_text(FICKLE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fickle-reward\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rlkit]\nfickle_reward = fickle_reward\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("RLKIT_PLUGINS", "fickle_reward")
    load_plugins.cache_clear()
    yield
    load_plugins.cache_clear()


def fickle_run(folder: Path, start: Path, **settings: Any) -> list[dict]:
    """Train with the fickle reward itself, and return what was said."""
    rewards = [{"type": "fickle", "timeout_seconds": 1.0, **settings}]
    built = trainer(folder, start, None, steps=6, train={"batch_size": 1}, rewards=rewards)
    built.train()
    assert [worker.process for worker in built.collector.rewarder.parts[0].score.workers] == [None], "they have ended"
    return alarms(folder)


def test_a_reward_that_raises_is_named(tmp_path: Path, start: Path, fickle: None) -> None:
    rows = fickle_run(tmp_path, start)
    assert [row["alarm"] for row in rows] == ["reward_fails"]
    assert rows[0]["symptom"].startswith(
        "50% of completions could not be scored: ValueError: bad day (fickle_reward.py:"
    )


@pytest.mark.slow
def test_a_reward_that_sleeps_past_its_deadline_is_named(tmp_path: Path, start: Path, fickle: None) -> None:
    rows = fickle_run(tmp_path, start, sleeps=True)
    assert [row["alarm"] for row in rows] == ["reward_slow"]
    assert "could not be scored: no answer within 1 seconds" in rows[0]["symptom"]


# ---- what is not finite


def enormous(rollouts: Rollouts) -> torch.Tensor:
    """Finite numbers whose squares are not."""
    return torch.linspace(1e38, 3e38, rollouts.batch.mask.shape[1]).expand(rollouts.batch.mask.shape[:2])


class Snapshot(Turning):
    """Turns for ``turns`` rollouts and back again; keeps the weights from when it turned."""

    def __init__(self, after: Callable, turn: int, turns: int = 1000) -> None:
        super().__init__(many(*HALF), after, turn)
        self.turns, self.built = turns, None  # type: int, Any
        self.weights = torch.empty(0)

    def __call__(self, rollouts: Rollouts) -> torch.Tensor:
        if self.calls == self.turn:
            self.weights = weights(self.built)
        found = super().__call__(rollouts)
        if self.calls >= self.turn + self.turns:
            self.turn = 10**6
        return found


def test_a_step_that_is_not_finite_is_skipped_and_the_run_goes_on(tmp_path: Path, start: Path) -> None:
    reward = Snapshot(enormous, turn=3, turns=1)
    built = reward.built = trainer(tmp_path, start, reward, steps=6, train={"weight_decay": 0.1})
    seen: list[torch.Tensor] = []
    built.add_callback(AfterStep(lambda: seen.append(weights(built))))
    built.train()
    assert built.state.global_step == 6
    assert torch.equal(seen[3], seen[2]), "step 4 changes nothing, weight decay included"
    assert not torch.equal(seen[4], seen[3])
    taken = {int(state["step"]) for state in built.optimizer.state.values()}
    assert taken == {5}
    assert names(tmp_path) == {"non_finite"}
    assert [row["skipped_steps"] for row in built.state.log_history if "skipped_steps" in row] == [1.0]
    assert all(math.isfinite(row["loss"]) for row in built.state.log_history if "loss" in row)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    of_steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in of_steps if "policy_objective" in row] == [1, 2, 3, 5, 6]
    assert not any(math.isnan(value) for row in of_steps for value in row.values() if isinstance(value, float))


def test_a_skipped_step_is_left_out_of_the_means_of_the_others() -> None:
    log, follower = StepLog(), StepLog()
    log.follower = follower
    for loss in (1.0, 3.0):  # two micro-batches of a step: a share of 4
        log.share({"policy_objective": torch.tensor(loss)})
    for loss in (1.0, math.nan):
        log.share({"policy_objective": torch.tensor(loss)})
    log.skip(2)
    log.share({"policy_objective": torch.tensor(2.0)})
    assert log.flush(3) == follower.flush(3) == {"policy_objective": 3.0}
    log.share({"policy_objective": torch.tensor(5.0)})
    assert log.flush(4) == {"policy_objective": 5.0}


class AfterStep(TrainerCallback):
    """Calls something after each step."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.call()


def test_past_the_limit_the_run_stops_with_a_bundle(tmp_path: Path, start: Path) -> None:
    reward = Snapshot(enormous, turn=3)
    built = reward.built = trainer(tmp_path, start, reward, steps=12, monitor={"non_finite_limit": 2})
    with pytest.raises(TrainingError, match=r"of 3 steps was not finite \(limit 2\) at step 5; likely an overflow"):
        built.train()
    assert torch.equal(weights(built), reward.weights)
    bundle = tmp_path / "run" / "blackbox" / "grpo-5"
    assert {path.name for path in bundle.iterdir()} == {
        "about.json", "metrics.jsonl", "rollout.jsonl", "tensors.safetensors",
    }  # fmt: skip
    about = json.loads((bundle / "about.json").read_text())
    assert (about["alarm"], about["skips"]) == ("non_finite", 3)
    assert about["versions"]["torch"] == torch.__version__
    assert len((bundle / "metrics.jsonl").read_text().splitlines()) == 5
    group = json.loads((bundle / "rollout.jsonl").read_text().splitlines()[0])["group"]
    assert group[3]["reward"] == pytest.approx(3e38)
    tensors = load_file(bundle / "tensors.safetensors")
    assert not tensors["step/0/advantages"].isfinite().all()
    assert tensors["step/0/logprobs"].isfinite().all()
    assert built.processing_class.decode(group[0]["ids"]) == group[0]["text"]


def test_a_first_step_that_is_not_finite_leaves_a_bundle_too(tmp_path: Path, start: Path) -> None:
    built = trainer(tmp_path, start, enormous, steps=4, monitor={"non_finite_limit": 0})
    with pytest.raises(TrainingError, match=r"of 1 steps was not finite \(limit 0\) at step 0"):
        built.train()
    bundle = tmp_path / "run" / "blackbox" / "grpo-0"
    assert (bundle / "metrics.jsonl").read_text() == ""
    assert load_file(bundle / "tensors.safetensors")["step/0/logprobs"].isfinite().all()


def test_a_starting_model_that_is_not_finite_ends_the_run_in_spite_of_rollbacks(tmp_path: Path, start: Path) -> None:
    built = trainer(tmp_path, start, constant, steps=4, monitor={"actions": {"non_finite": "rollback"}})
    built.args.eval_on_start = True
    for tensor in (next(iter(built.model.parameters())).data, next(iter(built.start_state.values()))):
        tensor.fill_(torch.nan)
    with pytest.raises(TrainingError, match="weights are not finite"):
        built.train()


def test_a_weight_that_is_not_finite_ends_the_run_before_it_is_sampled_from(tmp_path: Path, start: Path) -> None:
    def breaks() -> None:
        if built.state.global_step == 3:
            next(iter(built.model.parameters())).data[0, 0] = torch.inf

    built = trainer(tmp_path, start, many(*HALF), steps=12, rollout_batch_size=8)
    built.add_callback(AfterStep(breaks))
    with pytest.raises(TrainingError, match=r"weights are not finite: .*embed_tokens"):
        built.train()
    assert built.state.global_step == 3
    assert names(tmp_path) == {"non_finite"}
    assert (tmp_path / "run" / "blackbox").is_dir()


# ---- what is done about it


def runaway(folder: Path, start: Path, turn: int = 9, **settings: Any) -> PolicyTrainer:
    """A trainer whose learning rate becomes a thousand times as high, with a checkpoint every other step."""

    def faster(rollouts: Rollouts) -> torch.Tensor:
        if reward.calls == turn + 1:
            built.lr_scheduler.base_lrs = [1.0 for _ in built.lr_scheduler.base_lrs]
        return many(*HALF)(rollouts)

    reward = Turning(many(*HALF), faster, turn)
    train = {"save_every_steps": 2}
    built = trainer(
        folder, start, reward, steps=40, train=train, monitor={"actions": {"large_updates": "rollback"}, **settings}
    )
    return built


def test_rolling_back_restores_the_healthy_weights_and_is_bounded(tmp_path: Path, start: Path) -> None:
    built, after = runaway(tmp_path, start, rollbacks=2), []
    say = built.health._say

    def watched(*args: Any) -> None:
        after.append((weights(built), built.optimizer.param_groups[0]["lr"]))
        say(*args)

    built.health._say = watched
    built.train()
    rows = [row for row in alarms(tmp_path) if row["alarm"] == "large_updates"]
    assert "rolled back to the weights of step 10; the learning rate is now 0.5" in rows[0]["done"]
    folder = Path(built.args.output_dir) / "checkpoint-10"
    healthy = trainer(tmp_path / "other", start, constant)
    load_wrapped(healthy.model, folder)
    assert torch.equal(after[0][0], weights(healthy))
    assert rows[0]["step"] > rows[0]["since"] > 10
    assert [rate for _, rate in after[:2]] == [0.5, 0.25]
    assert "the stage ends here" in rows[2]["done"]
    assert built.state.global_step == rows[2]["step"] < 40


def test_a_sick_checkpoint_is_neither_rolled_back_to_nor_the_best(tmp_path: Path, start: Path) -> None:
    """Looks and checkpoints at 4, 8 and 12; sick since 7, found at 10 and again, since 11, at 14."""
    built = trainer(
        tmp_path, start, many(*HALF), steps=16, train={"save_every_steps": 4, "keep_checkpoints": 9},
        validate_on={"every_steps": 4, "select_by": "reward"},
        monitor={"rollback_kl_coef": 2.0, "actions": {"kl_high": "rollback"}},
    )  # fmt: skip
    health, seen = built.health, []
    looks = {4: 0.2, 8: 0.9, 12: 0.3, 16: 0.1}
    built.collector.validate = lambda lm: {"reward": looks[built.state.global_step]}
    sick = {10: 7, 14: 11}

    def lasting() -> list:
        since = sick.get(built.state.global_step)
        return [alarm("kl_high", "grpo", built.state.global_step, ("sick", since), "rollback")] if since else []

    def watch() -> None:
        step, state = built.state.global_step, built.state
        if step in sick:
            kept = sorted(int(path.name[11:]) for path in Path(built.args.output_dir).glob("checkpoint-*"))
            seen.append((kept, state.best_metric, state.best_global_step, built.algorithm.state["kl_coef"]))

    health.watch.lasting = lasting
    built.add_callback(AfterStep(watch))
    built.train()
    assert seen == [([4], 0.2, 4, 0.002), ([4], 0.2, 4, 0.004)]
    assert ["the weights of step 4;" in row["done"] for row in alarms(tmp_path)] == [True, True]
    assert Path(built.state.best_model_checkpoint).name == "checkpoint-4"
    assert built.lr_scheduler.get_last_lr()[0] == pytest.approx(0.25e-3)


def test_what_is_left_of_a_sick_policys_rollout_trains_nothing(tmp_path: Path, start: Path) -> None:
    """Of the rollouts of four steps the second breaks in its first one: at step 5, after the checkpoint of step 4."""
    seen: list[tuple[torch.Tensor, float]] = []

    def watch() -> None:
        if built.state.global_step == 5:
            next(iter(built.model.parameters())).data[0, 0] = torch.inf
        seen.append((weights(built), built.lr_scheduler.get_last_lr()[0]))

    built = trainer(
        tmp_path, start, many(*HALF), steps=12, rollout_batch_size=16,
        monitor={"actions": {"non_finite": "rollback"}}, train={"save_every_steps": 4, "weight_decay": 0.1},
    )  # fmt: skip
    built.add_callback(AfterStep(watch))
    built.train()
    assert built.state.global_step == 12
    assert "rolled back to the weights of step 4" in alarms(tmp_path)[0]["done"]
    for step in (6, 7, 8):
        assert torch.equal(seen[step - 1][0], seen[3][0]), f"step {step} changes nothing"
    assert not torch.equal(seen[8][0], seen[7][0]), "the next rollout trains"
    assert seen[8][1] == pytest.approx(0.5e-3), "at the learning rate that the rollback left"


def test_stopping_ends_the_stage_and_says_so(tmp_path: Path, start: Path) -> None:
    built = trainer(tmp_path, start, constant, steps=20, monitor={"actions": {"no_signal": "stop"}})
    built.train()
    assert built.state.global_step == 5
    assert alarms(tmp_path)[0]["done"] == "the stage ends here, with its last model"


def test_a_stage_that_is_stopped_chooses_among_what_it_looked_at(tmp_path: Path, start: Path) -> None:
    built = trainer(
        tmp_path, start, constant, steps=20, monitor={"actions": {"no_signal": "stop"}},
        validate_on={"every_steps": 20, "select_by": "reward"},
    )  # fmt: skip
    built.args.eval_on_start = True
    looks = {0: 0.5, 5: 0.4}
    built.collector.validate = lambda lm: {"reward": looks[built.state.global_step]}
    before = weights(built)
    built.train()
    assert built.state.global_step == 5
    assert alarms(tmp_path)[0]["done"] == "the stage ends here, with its best model"
    assert torch.equal(weights(built), before), "the starting model was better than what training left"


def test_adapting_strengthens_the_penalty_while_kl_is_too_high(tmp_path: Path, start: Path) -> None:
    monitor = {"action": "adapt", "kl_high": 0.02, "kl_low": 0.0}
    built = trainer(tmp_path, start, many(*HALF), steps=20, rate=2e-3, monitor=monitor)
    built.train()
    over = sum(row["kl"] > 0.02 for row in built.health.watch.history.rows[5:])
    assert over > 3
    assert built.algorithm.state["kl_coef"] >= 0.001 * 1.2 ** (over - 3)
    rows = [row for row in alarms(tmp_path) if row["alarm"] == "kl_high"]
    assert len(rows) == 1, "it is said once"
    assert rows[0]["done"] == "kl_coef is now 0.0012"


def test_an_action_that_cannot_be_taken_is_refused(tmp_path: Path, start: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"^monitor: adapt moves kl_coef, but stages\.grpo\.algorithm has none above 0"
    ):
        trainer(tmp_path, start, constant, kl_coef=0.0, monitor={"action": "adapt"})
    for wrong, said in (
        ({"actions": {"truncated": "adapt"}}, "adapt moves kl_coef and is for kl_high"),
        ({"action": "ignore"}, "non_finite cannot be ignored"),
        ({"kl_low": 0.6}, "kl_low must lie below kl_high 0.5"),
        ({"actions": {"kl_hihg": "stop"}}, "kl_hihg"),
    ):
        with pytest.raises(RecipeError, match=said):
            trainer(tmp_path, start, constant, monitor=wrong)


def test_an_ignored_alarm_is_not_said_and_nobody_looks_without_a_monitor(tmp_path: Path, start: Path) -> None:
    trainer(tmp_path / "1", start, constant, steps=8, monitor={"actions": {"no_signal": "ignore"}}).train()
    assert alarms(tmp_path / "1") == []
    tree = recipe(tmp_path / "2", "grpo") | {"monitor": None}
    assert grpo(tiny_job(tmp_path / "2" / "run", "grpo", tree)).health is None


def test_a_resumed_stage_remembers_what_it_saw_and_said(tmp_path: Path, start: Path) -> None:
    train = {"save_every_steps": 4}
    whole = trainer(tmp_path / "1", start, many(*HALF), steps=8, train=train)
    whole.train()
    again = trainer(tmp_path / "2", start, many(*HALF), steps=8, train=train)
    again.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-4"))
    kls = [[row["kl"] for row in one.health.watch.history.rows] for one in (whole, again)]
    assert kls[0] == pytest.approx(kls[1], rel=1e-3)
    assert [row["step"] for row in again.health.watch.history.rows] == list(range(1, 9))


def test_a_monitor_that_warns_makes_no_other_run_and_one_that_acts_does(tmp_path: Path) -> None:
    def inputs(**monitor: Any) -> str:
        tree = recipe(tmp_path, "grpo") | {"monitor": monitor or None}
        loaded = recipe_from_tree(tree)
        return stage_inputs(loaded.recipe, load_plugins(), RunDirectory(tmp_path / "run"))["grpo"]

    assert inputs() == inputs(kl_high=0.7) == inputs(action="warn")
    assert inputs() != inputs(action="rollback")
