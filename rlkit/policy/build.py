"""Put a ``PolicyTrainer`` together for any online algorithm: what is not the algorithm's is the same for all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import EarlyStoppingCallback, TrainingArguments

from rlkit.config.ppo import ValueSettings
from rlkit.errors import RecipeError
from rlkit.job import Job
from rlkit.models.load import make_trainable
from rlkit.policy.algorithm import PolicyAlgorithm
from rlkit.policy.collect import Collector
from rlkit.policy.health import Health
from rlkit.policy.mini_batches import LoopSettings
from rlkit.policy.module import PolicyModel
from rlkit.policy.pass_rates import PassRates
from rlkit.policy.rewarder import Rewarder, WeightedReward, weighted
from rlkit.policy.rollback import KEPT_CHECKPOINTS
from rlkit.policy.rollouts import PromptStream, Rollouts
from rlkit.policy.sampler import check_prompts, prompt_limit
from rlkit.policy.supervised import load_supervised
from rlkit.policy.trainer import PolicyTrainer
from rlkit.policy.value import make_value
from rlkit.records import Prompt


@dataclass(frozen=True)
class _Parts:
    """What a collector needs of the trainer."""

    rewards: list[WeightedReward]
    arguments: TrainingArguments
    amend: Callable[[Rollouts], Rollouts] | None
    health: Health | None


def policy_trainer(
    job: Job,
    algorithm: PolicyAlgorithm,
    settings: Any,
    amend: Callable[[Rollouts], Rollouts] | None = None,
    value: ValueSettings | None = None,
) -> PolicyTrainer:
    """Build the trainer of an online stage.

    Args:
        job: the stage.
        algorithm: experience and loss.
        settings: the algorithm's settings, a ``PolicySettings``.
        amend: what the algorithm does to fresh rollouts before they are rewarded.
        value: what values states; none: nothing does.

    Raises:
        DataError: the model has no room for some prompts.
    """
    loaded = job.load_model()
    valued = make_value(job, value, loaded) if value else None
    # Once training arguments exist, ZeRO-3 would shard what is loaded, and look for what it sharded in what is made.
    trained = make_trainable(loaded, job.model)
    rewards = weighted(settings.rewards, lambda reward: load_supervised(job, reward))
    prompts = job.domain.prompts("train")
    loop = _loop(job, settings, len(prompts))
    arguments = _arguments(job, settings, loop)
    _check(job, settings)
    health = _health(job, algorithm, loop)
    collector = _collector(job, settings, loaded.tokenizer, prompts, _Parts(rewards, arguments, amend, health))
    limit = prompt_limit(loaded.model, collector.max_completion_tokens)
    check_prompts(loaded.tokenizer, [*prompts, *collector.valid], limit)
    model = PolicyModel(
        trained,
        collector.constraint,
        job.domain.normalization,
        collector.rollout.temperature,
        settings.forward,
        valued,
        settings.entropy_coef > 0,
    )
    return PolicyTrainer(
        model.to(arguments.device),
        arguments,
        algorithm=algorithm,
        settings=settings,
        loop=loop,
        collector=collector,
        log_sample=job.log_sample,
        events=job.events.hook,
        health=health,
        processing_class=loaded.tokenizer,
        callbacks=[*job.callbacks(), *_early_stopping(job, arguments)],
    )


def _collector(job: Job, settings: Any, tokenizer: Any, prompts: list[Prompt], parts: _Parts) -> Collector:
    def quarantine(row: dict[str, Any]) -> None:
        if parts.health is not None:
            parts.health.quarantined(row)
        job.quarantine(row)

    device = parts.arguments.device
    rates = PassRates(settings.skip_solved) if settings.skip_solved else None
    return Collector(
        settings,
        rollout=job.load("rollout", settings.rollout),
        rewarder=Rewarder(parts.rewards, device, settings.offload, quarantine),
        domain=job.domain,
        tokenizer=tokenizer,
        stream=PromptStream(prompts, job.seed, rates.skips) if rates else PromptStream(prompts, job.seed),
        valid=job.domain.prompts("valid", settings.validate_on.prompts),
        seed=job.seed,
        chunk=parts.arguments.per_device_train_batch_size,
        device=device,
        amend=parts.amend,
        rates=rates,
    )


def _health(job: Job, algorithm: PolicyAlgorithm, loop: LoopSettings) -> Health | None:
    """Return who watches the stage; None where the recipe says so.

    Raises:
        RecipeError: an action cannot be taken here.
    """
    settings = job.recipe.monitor
    if settings is None:
        return None
    actions = {settings.action, *settings.actions.values()}
    if "adapt" in actions and not algorithm.state.get("kl_coef"):
        raise RecipeError(
            f"monitor: adapt moves kl_coef, but stages.{job.stage}.algorithm has none above 0; "
            "set kl_coef, or choose warn or stop"
        )
    if "rollback" in actions and job.recipe.engine.type == "deepspeed":  # type: ignore[attr-defined]
        raise RecipeError("monitor: rollback does not go with the engine deepspeed; choose stop or adapt")
    held_out = ("reward", *getattr(job.recipe.domain, "valid_metrics", ()))
    return Health(
        settings,
        job.stage,
        folder=job.run.path,
        append=job.run.append,
        planned=loop.rollouts,
        held_out=tuple(f"eval_{name}" for name in held_out),
    )


def _check(job: Job, settings: Any) -> None:
    """Refuse what would do nothing, or train another distribution than the one that is sampled.

    Raises:
        RecipeError: the settings do not go together.
    """
    if settings.reference_sync is not None and job.model.adapter is not None:
        raise RecipeError(
            f"stages.{job.stage}.algorithm.reference_sync: with model.adapter the model without it is the reference "
            "and cannot follow; leave one of them out"
        )
    if (
        job.domain.constraint is not None
        and job.domain.normalization == "vocabulary"
        and settings.rollout.type == "sample"
    ):
        raise RecipeError(
            f"stages.{job.stage}.algorithm.rollout: samples are drawn among the allowed tokens, but this model "
            "normalizes over the vocabulary; use rollout.type beam, or a model trained with normalization children"
        )


def _early_stopping(job: Job, arguments: TrainingArguments) -> list[EarlyStoppingCallback]:
    patience = job.settings.train.early_stopping_patience
    if patience and arguments.metric_for_best_model is None:
        raise RecipeError(
            "train.early_stopping_patience: there is no metric to wait for, since validate_on.select_by is 'last'; "
            "name a metric, or leave the patience out"
        )
    return [EarlyStoppingCallback(patience)] if patience else []


def _loop(job: Job, settings: Any, prompts: int) -> LoopSettings:
    train = job.settings.train
    size = settings.rollout_batch_size or train.batch_size
    if size % train.batch_size:
        raise RecipeError(
            f"algorithm.rollout_batch_size: {size} is not a multiple of train.batch_size {train.batch_size}; "
            "choose a multiple"
        )
    updates = settings.updates_epochs * size // train.batch_size
    rollouts = math.ceil(train.max_steps / updates) if train.max_steps else max(1, round(train.epochs * prompts / size))
    return LoopSettings(size, train.batch_size, settings.updates_epochs, rollouts)


def _arguments(job: Job, settings: Any, loop: LoopSettings) -> TrainingArguments:
    """Return training arguments whose looks and checkpoints fall where a rollout ends."""
    steps = loop.rollouts * loop.updates
    arguments = job.training_arguments(steps)
    look = settings.validate_on.every_steps or arguments["eval_steps"]
    look = math.ceil(look / loop.updates) * loop.updates
    metric = settings.validate_on.select_by or getattr(job.recipe.domain, "best_by", "reward")
    best = metric != "last"
    arguments |= {"max_steps": steps, "eval_steps": look, "save_steps": look, "eval_on_start": True}
    if not best and job.settings.train.save_every_steps:  # else every look needs its checkpoint: it may be the best
        arguments["save_steps"] = math.ceil(job.settings.train.save_every_steps / loop.updates) * loop.updates
    monitor = job.recipe.monitor
    if monitor is not None and "rollback" in (monitor.action, *monitor.actions.values()):
        arguments["save_total_limit"] = max(arguments["save_total_limit"], KEPT_CHECKPOINTS)
    arguments |= {"load_best_model_at_end": best, "greater_is_better": True if best else None}
    arguments["metric_for_best_model"] = f"eval_{metric}" if best else None
    return TrainingArguments(**arguments)
