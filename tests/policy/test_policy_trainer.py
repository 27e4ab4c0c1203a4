"""The online loop's contract, point by point (docs/architecture.md)."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toys import tiny_job, tiny_recipe

from rlkit.algorithms.grpo import grpo
from rlkit.errors import DataError, RecipeError, TrainingError
from rlkit.models.tokenizer import byte_tokenizer
from rlkit.policy.rewarder import WeightedReward
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.text_rewards import Outcome
from rlkit.policy.trainer import PolicyTrainer
from rlkit.records import Prompt, Source


def trainer(folder: Path, train: dict | None = None, model: dict | None = None, **algorithm) -> PolicyTrainer:
    """A trainer over a model of random weights; two epochs over rollouts of 16 prompts in two mini-batches."""
    tree = copy.deepcopy(tiny_recipe())
    tree["model"] |= model or {}
    stage = tree["stages"]["grpo"]
    ours = {"rollout_batch_size": 16, "updates_epochs": 2, "kl_coef": 0.05, "rewards": [{"type": "prefix_match"}]}
    stage["algorithm"] |= {**ours, **algorithm}
    stage["train"] |= {"batch_size": 8, "max_steps": 8, "evaluate_every_steps": 100, **(train or {})}
    built = grpo(tiny_job(folder, "grpo", tree))
    built.args.eval_on_start = False
    return built


def weights(built: PolicyTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in built.model.parameters()])


def batches_of(built: PolicyTrainer, num_batches: int):
    return built.get_batch_samples(iter(built.get_train_dataloader()), num_batches, torch.device("cpu"))


def test_a_step_gets_exactly_the_micro_batches_that_it_asks_for(tmp_path: Path) -> None:
    built = trainer(tmp_path)
    for num_batches in (1, 2, 4):
        batches, _ = batches_of(built, num_batches)
        assert [len(batch) for batch in batches] == [8 // num_batches] * num_batches


def test_the_count_that_the_loss_divides_by_is_that_of_the_whole_step(tmp_path: Path) -> None:
    batches, (num_tokens, num_completions) = batches_of(trainer(tmp_path), 4)
    assert num_tokens == sum(batch.mask.sum() for batch in batches)
    assert num_completions == 8 * 4


def test_one_rollout_serves_epochs_times_mini_batches_steps(tmp_path: Path) -> None:
    built = trainer(tmp_path)
    assert built.loop.updates == 4
    first = [batches_of(built, 1)[0][0].completions for _ in range(4)]
    assert torch.equal(first[0], first[2]), "the second epoch repeats the first"
    assert torch.equal(first[1], first[3])
    assert not torch.equal(first[0], first[1])
    assert built.rollout == 1
    batches_of(built, 1)
    assert (built.rollout, built.cursor) == (2, 32)


def test_a_run_ends_where_a_rollout_ends(tmp_path: Path) -> None:
    built = trainer(tmp_path, train={"max_steps": 6})  # 6 steps are one and a half rollouts of 4 updates
    built.train()
    assert built.state.global_step == 8
    assert (built.rollout, built.buffer) == (2, [])


def test_prompts_come_from_a_seeded_stream_and_not_from_the_trainers_loader(tmp_path: Path) -> None:
    one, two = trainer(tmp_path / "1"), trainer(tmp_path / "2")
    keys = [prompt.key for prompt in one.collector.stream.take(0, 16)]
    assert keys == [prompt.key for prompt in two.collector.stream.take(0, 16)]
    assert keys[8:] == [prompt.key for prompt in two.collector.stream.take(8, 8)]
    size = len(one.collector.stream.prompts)
    assert len({prompt.key for prompt in one.collector.stream.take(size, size)}) == size, (
        "a pass shows every prompt once"
    )


def test_sampling_noise_is_keyed_by_seed_rollout_and_prompt(tmp_path: Path) -> None:
    built = trainer(tmp_path, rollout={"type": "sample"})
    built.model.eval()
    prompts = built.collector.stream.take(0, 6)
    seconds = {"rollout": 0.0, "reward": 0.0}

    def completions(chosen, rollout):
        return built.collector._complete(built.model.lm, chosen, ("train", rollout), dict(seconds)).batch.completions

    together, apart = completions(prompts, 0), [completions([prompt], 0) for prompt in prompts]
    assert all(torch.equal(together[i], part[0]) for i, part in enumerate(apart))
    assert not torch.equal(together, completions(prompts, 1))


def test_micro_batches_change_no_weight(tmp_path: Path) -> None:
    whole, split = trainer(tmp_path / "1"), trainer(tmp_path / "2", train={"micro_batch_size": 2})
    for built in (whole, split):
        built.train()
    assert split.args.gradient_accumulation_steps == 4
    assert torch.allclose(weights(whole), weights(split), atol=2e-6)
    assert not torch.allclose(weights(whole), weights(trainer(tmp_path / "3")), atol=1e-4), "training moves the weights"


def test_inputs_keep_their_precision_on_the_way_to_the_loss(tmp_path: Path) -> None:
    built = trainer(tmp_path)
    batch = batches_of(built, 1)[0][0]
    numbers = built._prepare_inputs(batch).numbers
    assert {name: number.dtype for name, number in numbers.items()} == dict.fromkeys(numbers, torch.float32)
    assert {"advantages", "old_logprobs", "ref_logprobs"} <= set(numbers)


def test_dropout_is_off_in_policy_training(tmp_path: Path) -> None:
    built = trainer(tmp_path, model={"adapter": {"rank": 4, "dropout": 0.5}})
    built.model.train()
    batch = batches_of(built, 1)[0][0]
    assert torch.equal(built.model(batch).logprobs, built.model(batch).logprobs)


def test_the_first_pass_over_a_rollout_has_ratios_of_one_and_a_mismatch_names_its_causes(tmp_path: Path) -> None:
    built = trainer(tmp_path)
    batch = batches_of(built, 1)[0][0]
    logprobs = built.model(batch).logprobs.detach()
    built._check_first_pass(logprobs, batch)
    batch.numbers["old_logprobs"] = logprobs + 0.1 * batch.mask
    with pytest.raises(TrainingError, match=r"disagree .* look for dropout, a changed temperature"):
        built._check_first_pass(logprobs, batch)


def test_sampling_at_another_temperature_than_training_is_found_on_the_first_pass(tmp_path: Path) -> None:
    built = trainer(tmp_path, updates_epochs=1, rollout_batch_size=8)
    built.model.temperature = 1.5
    with pytest.raises(TrainingError, match="training and sampling disagree"):
        built.train()


def test_the_reference_is_the_starting_model_and_stays(tmp_path: Path) -> None:
    built = trainer(tmp_path)
    start = weights(built).clone()
    built.train()
    reference = torch.cat([parameter.flatten() for parameter in built.reference.module.parameters()])
    assert torch.equal(reference, start)
    assert not torch.equal(weights(built), start)


def test_with_an_adapter_the_policy_without_it_is_the_reference(tmp_path: Path) -> None:
    built = trainer(tmp_path, model={"adapter": {"rank": 4}})
    assert built.reference.module is None
    batch = batches_of(built, 1)[0][0]
    assert torch.allclose(batch.numbers["ref_logprobs"], batch.numbers["old_logprobs"], atol=1e-5)
    built.buffer.clear()
    built.train()
    with torch.no_grad():
        now = built.model(batch).logprobs
        with built.model.lm.disable_adapter():
            before = built.model(batch).logprobs
    assert torch.allclose(before, batch.numbers["ref_logprobs"], atol=1e-5)
    assert not torch.allclose(now, before, atol=1e-4)


def test_a_reference_that_follows_moves_by_its_mix_where_a_rollout_ends(tmp_path: Path) -> None:
    built = trainer(tmp_path, reference_sync={"mix": 0.5, "every_steps": 1})
    start = weights(built).clone()
    for _ in range(built.loop.updates):
        batches_of(built, 1)
    with torch.no_grad():
        for parameter in built.model.lm.parameters():
            parameter.add_(1.0)
    built.state.global_step = built.loop.updates
    batches_of(built, 1)
    reference = torch.cat([parameter.flatten() for parameter in built.reference.module.parameters()])
    assert torch.allclose(reference, start + 0.5, atol=1e-6)


def test_a_checkpoint_inside_a_rollout_is_refused(tmp_path: Path) -> None:
    built = trainer(tmp_path)
    batches_of(built, 1)
    with pytest.raises(AssertionError, match="only where a rollout ends"):
        built._save_checkpoint(built.model, None)


def test_groups_without_a_signal_are_left_out_when_asked(tmp_path: Path) -> None:
    kept, dropped = trainer(tmp_path / "1"), trainer(tmp_path / "2", zero_signal="drop")
    counts = [float(batches_of(built, 1)[1][1]) for built in (kept, dropped)]
    assert counts[0] == 32
    assert counts[1] < 32
    assert counts[1] % 4 == 0, "groups leave whole"


def test_refilled_rollouts_hold_as_many_groups_with_a_signal_as_can_be_found(tmp_path: Path) -> None:
    dropped, refilled = (trainer(tmp_path / kind, zero_signal=kind) for kind in ("drop", "refill"))
    found = [built.collector.collect(built.model.eval().lm, 0, 0, 16) for built in (dropped, refilled)]
    assert found[1].keep.sum() > found[0].keep.sum()
    assert found[1].cursor > found[0].cursor == 16
    assert len(found[1].rollouts.prompts) == 16
    assert 0 < found[1].zero_signal < 1


@pytest.mark.parametrize(
    ("select_by", "metric"), [(None, "eval_ndcg@10"), ("hit_rate@10", "eval_hit_rate@10"), ("last", None)]
)
def test_the_best_checkpoint_is_chosen_by_the_domains_own_metric_unless_another_is_named(
    select_by: str | None, metric: str | None, tmp_path: Path
) -> None:
    args = trainer(tmp_path, validate_on={"select_by": select_by}).args
    assert (args.metric_for_best_model, args.load_best_model_at_end) == (metric, metric is not None)


def test_a_standardized_reward_still_shows_in_looks_at_the_valid_split(tmp_path: Path) -> None:
    plain, scaled = (
        trainer(tmp_path / str(asked), rewards=[{"type": "prefix_match", "standardize": asked}])
        for asked in (False, True)
    )
    found = [built.collector.validate(built.model.eval().lm)["reward"] for built in (plain, scaled)]
    assert found[0] == found[1] > 0


class Failing:
    """A reward with a say on why it has no score, that fails on its first calls.

    Args:
        calls: that have no score at all.
    """

    def __init__(self, calls: int) -> None:
        self.left, self.outcomes, self.domain = calls, [], None  # type: int, list, Any

    def __call__(self, rollouts: Rollouts) -> torch.Tensor:
        self.domain = SimpleNamespace(tokenizer=byte_tokenizer())
        fails, self.left = self.left > 0, self.left - 1
        self.outcomes = [Outcome(math.nan if fails else 1.0, "down" if fails else "")] * int(rollouts.present.sum())
        scores = torch.arange(rollouts.present.shape[1]).expand(rollouts.present.shape).float()
        return scores.masked_fill(rollouts.present, math.nan) if fails else scores


def failing(folder: Path, calls: int, **algorithm) -> PolicyTrainer:
    built = trainer(folder, **algorithm)
    built.collector.rewarder.parts = [WeightedReward("failing", 1.0, Failing(calls))]
    built.model.eval()
    return built


def test_a_refill_goes_on_where_the_first_completions_had_no_score_and_counts_them(tmp_path: Path) -> None:
    built = failing(tmp_path, 1, zero_signal="refill")
    found = built.collector.collect(built.model.lm, 0, 0, 4)
    assert found.rollouts.present.any()
    assert found.keep.all()
    assert found.notes["unscored"] == 0.5, "the first of two rollouts of as many completions"
    again = built.collector.collect(built.model.lm, 1, found.cursor, 4)
    assert again.notes["unscored"] == 0.0, "each rollout counts its own"


def test_a_rollout_without_any_score_ends_the_run_and_says_where_to_look(tmp_path: Path) -> None:
    built = failing(tmp_path, 100, zero_signal="refill", max_refills=1)
    with pytest.raises(
        TrainingError, match=r"none of \d+ .* could be scored, the first because of failing: down; mend the reward"
    ):
        built.collector.collect(built.model.lm, 0, 0, 4)
    assert math.isnan(built.collector.validate(built.model.lm)["reward"])


def test_a_look_without_any_score_is_never_the_best_one(tmp_path: Path) -> None:
    asked = {"select_by": "reward", "every_steps": 4}
    built = trainer(tmp_path, train={"max_steps": 12, "batch_size": 16}, validate_on=asked, updates_epochs=1)
    built.args.eval_on_start, looks = True, {0: math.nan, 4: -2.0, 8: math.nan, 12: -3.0}
    built.evaluate = lambda *args, **kwargs: {"eval_reward": looks[built.state.global_step]}  # type: ignore[method-assign]
    built.train()
    assert built.state.best_metric == -2.0
    assert str(built.state.best_model_checkpoint).endswith("checkpoint-4")


def test_training_stops_after_as_many_looks_without_a_better_one_as_the_patience_allows(tmp_path: Path) -> None:
    train = {"early_stopping_patience": 2, "max_steps": 40, "evaluate_every_steps": 4, "learning_rate": 1e-12}
    built = trainer(tmp_path, train, samples_per_log=0)
    built.train()
    assert built.state.global_step == 12  # the look after 4 steps is the best; those after 8 and 12 are no better


def test_a_patience_without_a_metric_to_wait_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^train.early_stopping_patience: there is no metric to wait for"):
        trainer(tmp_path, {"early_stopping_patience": 2}, validate_on={"select_by": "last"})


def test_the_starting_model_is_kept_where_no_checkpoint_beats_it_on_valid(tmp_path: Path) -> None:
    built = trainer(
        tmp_path, train={"learning_rate": 0.5, "max_steps": 4}, validate_on={"prompts": 16, "num_beams": 10}
    )
    built.args.eval_on_start = True
    start = weights(built).clone()
    built.start_metric = None
    built.evaluate = lambda *args, **kwargs: {"eval_ndcg@10": 1.0 if built.state.global_step == 0 else 0.5}  # type: ignore[method-assign]
    built.train()
    assert torch.equal(weights(built), start)


def test_steps_whose_groups_are_all_filtered_out_have_a_loss_of_zero(tmp_path: Path) -> None:
    built = trainer(tmp_path, zero_signal="drop", rewards=[{"type": "item_match", "clip": [5, 6]}])
    before = weights(built).clone()
    built.train()
    assert [row["loss"] for row in built.state.log_history if "loss" in row] == [0.0] * 4
    assert torch.equal(weights(built), before)


def test_all_ranks_take_as_many_forwards_for_old_logprobs_however_few_groups_they_keep(tmp_path: Path) -> None:
    built = trainer(tmp_path, train={"micro_batch_size": 2})  # 4 micro-batches a step
    built.model.eval()
    batch = built.collector.collect(built.model.lm, 0, 0, 8).rollouts.batch
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return built.model(*args, **kwargs)

    with torch.no_grad():
        whole = built._numbers(built.model, batch)["old_logprobs"]
        few = built._numbers(counted, batch.select([0, 1, 2]))["old_logprobs"]
    assert len(calls) == 4
    assert torch.allclose(few, whole[:3, :, : few.shape[-1]], atol=1e-5)


def test_going_on_from_the_last_steps_checkpoint_takes_no_further_step(tmp_path: Path) -> None:
    first = trainer(tmp_path, train={"max_steps": 4})
    first.train()
    again = trainer(tmp_path, train={"max_steps": 4})
    again.train(resume_from_checkpoint=str(again.args.output_dir) + "/checkpoint-4")
    assert again.state.global_step == 4
    assert torch.equal(weights(again), weights(first))


@pytest.mark.parametrize(("select_by", "steps"), [("last", 12), ("reward", 8)])
def test_checkpoints_are_written_as_often_as_asked_unless_each_look_needs_one(
    select_by: str, steps: int, tmp_path: Path
) -> None:
    train = {"max_steps": 40, "evaluate_every_steps": 8, "save_every_steps": 10}
    args = trainer(tmp_path, train=train, validate_on={"select_by": select_by}).args
    assert (args.eval_steps, args.save_steps) == (8, steps)


def test_a_batch_that_does_not_divide_over_the_processes_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match=r"^train.batch_size: 8 does not divide into 3 processes"):
        trainer(tmp_path)


def test_prompts_without_room_in_train_and_valid_are_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(tmp_path)
    given = job.domain.prompts

    def with_a_long_one(split: str, limit: int | None = None) -> list[Prompt]:
        return [*given(split, limit), Prompt("long", "x " * 10_000, "", Source(f"{split}.jsonl", 7))]

    monkeypatch.setattr(job.domain, "prompts", with_a_long_one)
    with pytest.raises(DataError) as error:
        grpo(job)
    assert [problem.partition(" tokens")[0][:22] for problem in error.value.problems] == [
        "train.jsonl:7: prompt:",
        "valid.jsonl:7: prompt:",
    ]


def test_settings_that_would_do_nothing_or_train_another_distribution_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"reference_sync: with model\.adapter"):
        trainer(tmp_path / "1", model={"adapter": {"rank": 4}}, reference_sync={})
    with pytest.raises(RecipeError, match="reference_sync does nothing where kl_coef is 0"):
        trainer(tmp_path / "2", kl_coef=0.0, reference_sync={})
    tree = copy.deepcopy(tiny_recipe())
    tree["domain"]["normalization"] = "vocabulary"
    tree["stages"]["grpo"]["algorithm"]["rollout"] = {"type": "sample"}
    with pytest.raises(RecipeError, match="normalizes over the vocabulary"):
        grpo(tiny_job(tmp_path / "3", "grpo", tree))
