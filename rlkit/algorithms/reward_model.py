"""Reward models: TRL's ``RewardTrainer`` on tokens as sampling makes them, and figures on held-out pairs.

The loss of Bradley and Terry, margins and centering are TRL's. Ours: a frozen backbone, label smoothing, further loss
terms, exact figures on the valid pairs over any number of ranks, and the report that is saved beside the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor
from trl import RewardConfig, RewardTrainer

from rlkit.algorithms.heads import model_with_head
from rlkit.algorithms.offline import OfflineTrainer, best_checkpoint, optimizer_steps, stage_arguments, stage_callbacks
from rlkit.config.reward_models import RewardModelSettings
from rlkit.job import Job
from rlkit.models.head_files import NOTES_FILE, OUTCOME
from rlkit.models.scalar_head import (
    length_batches,
    load_scalar_head,
    new_scalar_head,
    scalar_trainable,
    score_batch,
    text_ids,
    token_budget,
)
from rlkit.models.wrapped import global_sum
from rlkit.ops.pairwise import distribution, pairwise_report, preference_loss, smoothing_term, wins
from rlkit.records import Preference

TRAIN_PAIRS = 1_000
"""Of about how many train pairs the spread of scores is noted."""


class HeldOut(NamedTuple):
    """The pairs that a trained reward model is measured on, as records and as tokens, and the split that they are."""

    rows: Sequence[Preference]
    pairs: datasets.Dataset
    split: str


class RewardModelTrainer(OfflineTrainer, RewardTrainer):
    """TRL's trainer on pairs that are tokenized already.

    Args:
        settings: the algorithm's settings.
        terms: further terms of the loss.
        held_out: the pairs of the report.
        facts: what else is noted beside the model.
    """

    def __init__(
        self,
        *args: Any,
        settings: RewardModelSettings,
        terms: Sequence[Any],
        held_out: HeldOut,
        facts: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        self.settings, self.terms, self.held_out, self.facts = settings, terms, held_out, facts
        self.report: dict[str, Any] = {}
        # Past OfflineTrainer's, which switches dropout off: small reward models need it (``model.dropout``, LoRA's).
        RewardTrainer.__init__(self, *args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return TRL's loss, a mean over the pairs, with label smoothing and the further terms added."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)  # (B,) each
        margin = inputs.get("margin", torch.zeros_like(chosen))
        if self.settings.label_smoothing:
            loss = loss + smoothing_term(chosen, rejected, margin, self.settings.label_smoothing)
        for term in self.terms:
            loss = loss + term(chosen, rejected, margin)
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return likelihood, accuracy and mean difference over the valid pairs; TRL averages over uneven batches."""
        pairs = self.eval_dataset
        chosen, rejected = self.score_pairs(pairs)
        margin = torch.tensor(pairs["margin"]) if "margin" in pairs.column_names else torch.zeros(len(pairs))
        found = {
            "loss": float(preference_loss(chosen, rejected, margin)),
            "accuracy": float(wins(chosen.numpy(), rejected.numpy()).mean()),
            "margin": float((chosen - rejected).mean()),
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def score_pairs(self, pairs: datasets.Dataset) -> tuple[Tensor, Tensor]:
        """Return the rewards (N,) of the better and of the worse completions; each rank computes its share."""
        rows = [*pairs["chosen_ids"], *pairs["rejected_ids"]]
        lengths, budget = [len(row) for row in rows], token_budget(self.args.device)
        batches = length_batches(lengths, max(64, self.args.per_device_eval_batch_size), budget)
        scores = torch.zeros(len(rows), device=self.args.device)
        self.model.eval()
        for turn in range(0, len(batches), self.args.world_size):
            mine = turn + self.args.process_index
            batch = batches[min(mine, len(batches) - 1)]  # every rank computes as often: ZeRO-3 gathers weights
            found = score_batch(self.model, [rows[index] for index in batch])
            if mine < len(batches):
                scores[batch] = found
        chosen, rejected = global_sum(scores).cpu().chunk(2)
        return chosen, rejected

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, then score held-out and train pairs with the model that is kept, on all ranks."""
        result = super().train(*args, **kwargs)
        chosen, rejected = (side.numpy().astype(float) for side in self.score_pairs(self.held_out.pairs))
        rows = self.held_out.rows
        lengths = [np.array([len(getattr(row, side)) for row in rows]) for side in ("chosen", "rejected")]
        prompts = np.array([row.prompt for row in rows])
        self.report = {"split": self.held_out.split, **pairwise_report(chosen, rejected, lengths, prompts)}
        some = range(0, len(self.train_dataset), max(1, len(self.train_dataset) // TRAIN_PAIRS))
        seen = torch.cat(self.score_pairs(self.train_dataset.select(some))).numpy().astype(float)
        self.report["train"] = distribution(seen)
        self.log({f"held_out_{name}": value for name, value in headlines(self.report).items()})
        return result

    def save_beside(self, folder: Path) -> dict[str, Any]:
        """Write the figures beside the model, show the main ones, and return them for the manifest."""
        notes = {**self.facts, "max_tokens": self.settings.max_tokens, **self.report}
        (folder / NOTES_FILE).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
        print(summary(self.report))
        return {**self.facts, **headlines(self.report)}


def headlines(report: dict[str, Any]) -> dict[str, float]:
    """Return the main figures of a report."""
    return {
        "pairs": report["pairs"],
        "accuracy": report["accuracy"]["value"],
        "longer_wins": report["longer_wins"]["value"],
        "calibration_error": report["calibration"]["expected_error"],
    }


def summary(report: dict[str, Any]) -> str:
    """Return a line about a reward model, beside the baseline that takes the longer completion."""

    def share(name: str) -> str:
        low, high = report[name]["interval"]
        return f"{report[name]['value']:.3f} ({low:.3f} to {high:.3f})"

    return (
        f"reward model on {report['pairs']} {report['split']} pairs: accuracy {share('accuracy')}, "
        f"the longer one wins {share('longer_wins')}, calibration error {report['calibration']['expected_error']:.3f}, "
        f"rewards {report['chosen']['mean']:.3g} chosen and {report['rejected']['mean']:.3g} rejected"
    )


def reward_model(job: Job) -> RewardModelTrainer:
    """Build the trainer of a reward-model stage.

    Raises:
        ModelError: the model has no form with a reward head.
        RecipeError: settings of the recipe's model mean nothing here.
    """
    settings: RewardModelSettings = job.settings.algorithm
    loaded, facts = model_with_head(job, OUTCOME, load_scalar_head, new_scalar_head)
    pairs = {split: job.domain.preferences(split) for split in ("train", "valid", "test")}
    margins = any(row.margin is not None for rows in pairs.values() for row in rows)
    tokens = {split: tokenized(rows, loaded.tokenizer, settings.max_tokens, margins) for split, rows in pairs.items()}
    split = "valid" if pairs["test"] == pairs["valid"] else "test"
    greater = {"loss": False, "accuracy": True}
    metric = None if settings.select_by == "last" else settings.select_by
    best = best_checkpoint(metric, greater.get(settings.select_by, False))
    ours = {
        "max_length": None,  # rows are cut already
        "center_rewards_coefficient": settings.center_rewards_coefficient or None,
        "disable_dropout": not (job.model.adapter and job.model.adapter.dropout),  # LoRA's is asked for
    }
    steps = optimizer_steps(job.settings.train, len(pairs["train"]))
    return RewardModelTrainer(
        model=scalar_trainable(loaded, job.model.adapter, settings.freeze_backbone),
        args=RewardConfig(**ours | stage_arguments(job, steps, best)),
        settings=settings,
        terms=[job.load("loss_term", term) for term in settings.loss_terms],
        held_out=HeldOut(pairs[split], tokens[split], split),
        facts=facts,
        train_dataset=tokens["train"],
        eval_dataset=tokens["valid"],
        processing_class=loaded.tokenizer,
        callbacks=stage_callbacks(job, metric),
    )


def tokenized(rows: Sequence[Preference], tokenizer: Any, max_tokens: int, margins: bool) -> datasets.Dataset:
    """Return the tokens of both completions after their prompt, and the margins where some row has one."""
    columns: dict[str, Any] = {
        f"{side}_ids": text_ids(tokenizer, [(row.prompt, getattr(row, side), True) for row in rows], max_tokens)
        for side in ("chosen", "rejected")
    }
    if margins:
        columns["margin"] = [row.margin or 0.0 for row in rows]
    return datasets.Dataset.from_dict(columns)
