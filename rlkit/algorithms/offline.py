"""What trainers on fixed records share: whole global batches, tokens as sampling sees them, the best checkpoint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch.utils.data import RandomSampler, Sampler
from transformers import EarlyStoppingCallback

from rlkit.config.train import TrainSettings
from rlkit.errors import RecipeError
from rlkit.job import Job
from rlkit.models.load import LoadedModel
from rlkit.models.wrapped import copy_frozen
from rlkit.policy.module import without_dropout

# TRL asks transformers by the old name, several times a step.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

IGNORE = -100
"""The label of a token that is not predicted."""


class WholeBatches:
    """Stands before one of TRL's trainers among the bases of a class, and mends two things.

    Every epoch is whole global batches, the same ones on any number of ranks; its rest waits for another epoch. A stage
    that goes on from the checkpoint of its last step takes no further one.
    """

    args: Any
    state: Any
    control: Any
    train_dataset: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        steps = max(len(self.train_dataset) // size, 1)
        return RandomSampler(self.train_dataset, num_samples=steps * size)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]
        else:
            self.control.should_training_stop = True


class OfflineTrainer(WholeBatches):
    """Takes rows that are tokenized already, with dropout off, in whole batches.

    Under LoRA the model without its adapter is the reference: TRL's copy of the fresh adapter goes.
    """

    model: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        without_dropout(kwargs["model"])
        super().__init__(*args, **kwargs)
        if "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def tokenized(rows: Sequence[Any], tokenizer: Any, completions: Sequence[str], max_tokens: int) -> dict[str, list]:
    """Tokenize as sampling does, prompt and completions apart, each completion with its end token.

    Args:
        rows: records with a ``prompt``.
        tokenizer: the policy's.
        completions: the fields of a record that are completions of its prompt.
        max_tokens: of a prompt and any of its completions together.

    Returns:
        TRL's columns: ``prompt_ids``, and ``<field>_ids`` for every field.
    """
    encode = partial(tokenizer, add_special_tokens=False)
    prompts = encode([row.prompt for row in rows]).input_ids
    said = [encode([getattr(row, field) for row in rows]).input_ids for field in completions]
    names = ["prompt_ids", *(f"{field}_ids" for field in completions)]
    columns: dict[str, list] = {name: [] for name in names}
    for prompt, *found in zip(prompts, *said):
        prompt, cut = fit(prompt, [[*ids, tokenizer.eos_token_id] for ids in found], max_tokens)
        for name, ids in zip(names, [prompt, *cut]):
            columns[name].append(ids)
    return columns


def fit(prompt: list[int], completions: Sequence[list[int]], max_tokens: int) -> tuple[list[int], list[list[int]]]:
    """Cut a prompt and what may follow it to a length.

    The prompt loses its beginning, down to one token; only then do completions lose their end.

    Args:
        prompt: its tokens, at least one.
        completions: what is compared after the same prompt.
        max_tokens: of prompt and completion together.
    """
    room = max(max_tokens - max(map(len, completions)), 1)
    prompt = prompt[-room:]
    return prompt, [completion[: max_tokens - len(prompt)] for completion in completions]


def optimizer_steps(train: TrainSettings, rows: int) -> int:
    """Return the optimizer steps of a stage that takes whole batches of its rows."""
    return train.max_steps or max(1, math.ceil(train.epochs * (rows // train.batch_size)))


def best_checkpoint(metric: str | None, greater_is_better: bool = False) -> dict[str, Any]:
    """Return the training arguments that keep the checkpoint with the best valid metric; None: the last one."""
    if metric is None:
        return {"load_best_model_at_end": False}
    return {
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{metric}",
        "greater_is_better": greater_is_better,
    }


def stage_arguments(job: Job, steps: int, best: dict[str, Any]) -> dict[str, Any]:
    """Return the training arguments of a stage that keeps its best checkpoint.

    Args:
        job: the stage.
        steps: optimizer steps in all.
        best: of ``best_checkpoint``.

    Raises:
        RecipeError: checkpoints would be written where nothing says how good they are.
    """
    arguments = best | job.training_arguments(steps)
    looks, saves = arguments["eval_steps"], arguments["save_steps"]
    if arguments["load_best_model_at_end"] and arguments["save_strategy"] == "steps" and saves % looks:
        raise RecipeError(
            f"stages.{job.stage}.train.save_every_steps: must be a multiple of evaluate_every_steps, which is {looks}, "
            f"got {saves}; the best checkpoint is chosen among those that were looked at"
        )
    return arguments


def stage_callbacks(job: Job, metric: str | None = "loss") -> list[Any]:
    """Return the callbacks of a stage: what every trainer reports to, and early stopping where the recipe wants it.

    Raises:
        RecipeError: there is no metric to wait for.
    """
    patience = job.settings.train.early_stopping_patience
    if patience and metric is None:
        raise RecipeError(
            f"stages.{job.stage}.train.early_stopping_patience: there is no metric to wait for, since "
            "algorithm.select_by is 'last'; name a metric, or leave the patience out"
        )
    return [*job.callbacks(), *([EarlyStoppingCallback(patience)] if patience else [])]


def frozen_reference(loaded: LoadedModel, job: Job) -> Any:
    """Return a frozen copy of the starting model; None under LoRA, where the model without its adapter serves."""
    return None if job.model.adapter is not None else copy_frozen(loaded.model)
