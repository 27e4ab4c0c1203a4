"""Direct preference optimization: from pairs of completions to a policy, without a reward model or rollouts.

Rafailov et al. 2023, arXiv 2305.18290. The losses are TRL's; this module brings it pairs that are tokenized as sampling
would, the reference, and checkpoints that a run can go on from.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from trl import DPOConfig, DPOTrainer

from rlkit.algorithms.offline import (
    OfflineTrainer,
    best_checkpoint,
    frozen_reference,
    optimizer_steps,
    stage_arguments,
    stage_callbacks,
    tokenized,
)
from rlkit.config.preferences import DPOSettings
from rlkit.errors import DataError, RecipeError
from rlkit.job import Job
from rlkit.models.load import make_trainable
from rlkit.records import Preference

logger = logging.getLogger("rlkit")

METRICS = {"loss": ("loss", False), "accuracy": ("rewards/accuracies", True), "margin": ("rewards/margins", True)}
"""``select_by`` -> the metric's name in TRL's logs, and whether more of it is better."""
REFERENCE_FOLDER = "reference"


class PreferenceTrainer(OfflineTrainer, DPOTrainer):
    """TRL's trainer with a reference that may be absent, or follow the policy and be kept in checkpoints.

    Args:
        reference_free: take reference log-probs of 0 instead of computing any.
    """

    def __init__(self, *args: Any, reference_free: bool = False, **kwargs: Any) -> None:
        self.reference_free = reference_free
        super().__init__(*args, **kwargs)

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.reference_free:
            return super()._precompute_ref_logps(dataset, *args, **kwargs)
        nothing = [0.0] * len(dataset)
        return dataset.add_column("ref_chosen_logps", nothing).add_column("ref_rejected_logps", nothing)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.sync_ref_model and self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / REFERENCE_FOLDER
            self.accelerator.unwrap_model(self.ref_model).save_pretrained(folder)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train; a reference that followed the policy goes on from where it was."""
        if resume_from_checkpoint and self.args.sync_ref_model:
            folder = str(Path(resume_from_checkpoint) / REFERENCE_FOLDER)
            self._load_from_checkpoint(folder, self.accelerator.unwrap_model(self.ref_model))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)


def dpo(job: Job) -> PreferenceTrainer:
    """Build the trainer of a DPO stage.

    Raises:
        RecipeError: the reference is to follow a policy that is an adapter on it.
        DataError: a pair has nothing to prefer.
    """
    settings: DPOSettings = job.settings.algorithm
    _check_sync(job, settings)
    loaded = job.load_model()
    pairs = {
        split: _tokenized(job.domain.preferences(split), loaded.tokenizer, settings) for split in ("train", "valid")
    }
    steps = optimizer_steps(job.settings.train, len(pairs["train"]))
    metric, greater = METRICS.get(settings.select_by, (None, False))
    alone = settings.reference_free or settings.precompute_reference  # no reference while it trains
    reference = None if alone else frozen_reference(loaded, job)
    return PreferenceTrainer(
        model=make_trainable(loaded, job.model),
        ref_model=reference,
        reference_free=settings.reference_free,
        args=DPOConfig(**_arguments(settings) | stage_arguments(job, steps, best_checkpoint(metric, greater))),
        train_dataset=pairs["train"],
        eval_dataset=pairs["valid"],
        processing_class=loaded.tokenizer,
        callbacks=stage_callbacks(job, metric),
    )


def _check_sync(job: Job, settings: DPOSettings) -> None:
    if settings.reference_sync is None:
        return
    where = f"stages.{job.stage}.algorithm.reference_sync"
    if job.model.adapter is not None:
        raise RecipeError(
            f"{where}: with model.adapter the model without it is the reference and cannot follow; leave one out"
        )
    if getattr(job.recipe.engine, "zero", 0) == 3:
        raise RecipeError(
            f"{where}: under ZeRO-3 the reference lies in parts, which no checkpoint keeps; use engine.zero 2"
        )


def _arguments(settings: DPOSettings) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "loss_type": list(settings.losses),
        "loss_weights": list(settings.losses.values()),
        "beta": settings.beta,
        "label_smoothing": settings.label_smoothing,
        "precompute_ref_log_probs": settings.reference_free or settings.precompute_reference,
        "max_length": None,  # cut already
    }
    if sync := settings.reference_sync:
        arguments |= {
            "sync_ref_model": True,
            "ref_model_mixup_alpha": sync.mix,
            "ref_model_sync_steps": sync.every_steps,
        }
    return arguments


def _tokenized(rows: Sequence[Preference], tokenizer: Any, settings: DPOSettings) -> datasets.Dataset:
    """Return TRL's columns: prompt_ids, chosen_ids and rejected_ids."""
    _check(rows)
    columns = tokenized(rows, tokenizer, ("chosen", "rejected"), settings.max_tokens)
    same = sum(better == worse for better, worse in zip(columns["chosen_ids"], columns["rejected_ids"]))
    if same:
        logger.warning(
            "dpo: %d of %d pairs differ only after max_tokens %d and teach nothing; raise algorithm.max_tokens",
            same,
            len(rows),
            settings.max_tokens,
        )
    return datasets.Dataset.from_dict(columns)


def _check(rows: Sequence[Preference]) -> None:
    """Refuse pairs that hold no preference.

    The chat domain's reader does so before any stage; this is for other domains. A completion may be empty: to say
    nothing is an answer, too.

    Raises:
        DataError: every such pair, by file and line.
    """
    problems = [f"{row.source}: {wrong}" for row in rows if (wrong := _wrong(row))]
    if problems:
        raise DataError(*problems)


def _wrong(row: Preference) -> str:
    if not row.prompt:
        return "prompt: empty, got ''; write it, or delete the row"
    if row.chosen == row.rejected:
        return f"chosen and rejected are the same, got {row.chosen[:60]!r}; delete the row"
    return ""
