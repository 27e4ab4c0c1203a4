"""What trainers on fixed records share: whole global batches, tokens as sampling sees them, the best checkpoint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from torch.utils.data import RandomSampler, Sampler
from transformers import EarlyStoppingCallback

from rlkit.config.train import TrainSettings
from rlkit.errors import RecipeError
from rlkit.job import Job
from rlkit.models.load import LoadedModel
from rlkit.models.wrapped import copy_frozen

# TRL asks transformers by the old name, several times a step.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


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


def prompt_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of rendered prompts, as sampling sees them."""
    return tokenizer(list(texts), add_special_tokens=False).input_ids


def completion_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of completions, each with its end token; apart from the prompt, as sampling makes them."""
    return [[*ids, tokenizer.eos_token_id] for ids in prompt_ids(tokenizer, texts)]


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
