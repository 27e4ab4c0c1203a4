"""Process reward models: cross-entropy at the ends of labeled steps, and figures on held-out ones.

Lightman et al. 2023, arXiv 2305.20050, section 2.6; Uesato et al. 2022, arXiv 2211.14275, section 2.3. With two labels
cross-entropy is that of the log-odds between them. Labels may be probabilities. The loss counts every step of the
global batch alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from rlkit.algorithms.heads import model_with_head
from rlkit.algorithms.offline import WholeBatches, best_checkpoint, optimizer_steps, stage_arguments, stage_callbacks
from rlkit.config.process_rewards import ProcessRewardModelSettings
from rlkit.errors import DataError
from rlkit.job import Job
from rlkit.models.head_files import NOTES_FILE, PROCESS
from rlkit.models.scalar_head import length_batches, pad_right, scalar_trainable, token_budget
from rlkit.models.step_head import StepRow, load_step_head, log_odds, new_step_head, score_batch_steps, step_rows
from rlkit.models.wrapped import global_sum
from rlkit.ops.step_metrics import step_report
from rlkit.records import StepLabels

SHOWN = 20
"""Rows that an error names."""


class Labeled(NamedTuple):
    """A completion as tokens, how right each of its steps is, and the prompt that it answers."""

    row: StepRow
    labels: list[float]
    prompt: str


def step_loss(odds: Tensor, labels: Tensor, num_steps: Tensor) -> Tensor:
    """Return the cross-entropy per step.

    Args:
        odds: (N,) log-odds of "right" at the ends of steps; carries gradients.
        labels: (N,) how probably each step is right.
        num_steps: () steps of the whole global batch; add the results of micro-batches and ranks.
    """
    return nn.functional.binary_cross_entropy_with_logits(odds, labels, reduction="sum") / num_steps


class ProcessRewardTrainer(WholeBatches, Trainer):
    """A Trainer on completions whose steps are labeled.

    Args:
        settings: the algorithm's settings.
        held_out: what the report is measured on, and the split that it is.
        facts: what else is noted beside the model.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        settings: ProcessRewardModelSettings,
        held_out: tuple[Sequence[Labeled], str],
        facts: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        self.settings, self.held_out, self.facts = settings, held_out, facts
        self.report: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Return the step's micro-batches and how many steps the whole global batch has."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = sum(float(batch["is_end"].sum()) for batch in batches)
        return batches, global_sum(torch.tensor(count, device=device)).clamp_min(1)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the scaled loss of one micro-batch."""
        odds = log_odds(model, inputs["input_ids"], inputs["attention_mask"])  # (B, T)
        ends = inputs["is_end"]
        labels = inputs["right"][ends].to(odds.dtype)
        return step_loss(odds[ends], labels, num_items_in_batch) * self.args.world_size

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return likelihood and accuracy over all steps of the valid rows."""
        odds, labels = self.score(self.eval_dataset), flat_labels(self.eval_dataset)
        found = {
            "loss": float(step_loss(odds, labels, torch.tensor(max(len(labels), 1)))),
            "accuracy": float(((odds >= 0) == (labels >= 0.5)).float().mean()),
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def score(self, rows: Sequence[Labeled]) -> Tensor:
        """Return (N,) log-odds of all steps, row by row, on the CPU; each rank computes its share."""
        device = self.args.device
        starts = np.cumsum([0, *(len(one.labels) for one in rows)])
        lengths = [len(one.row.ids) for one in rows]
        batches = length_batches(lengths, max(64, self.args.per_device_eval_batch_size), token_budget(device))
        found = torch.zeros(int(starts[-1]), device=device)
        self.model.eval()
        for turn in range(0, len(batches), self.args.world_size):
            mine = turn + self.args.process_index
            batch = batches[min(mine, len(batches) - 1)]  # every rank computes as often: ZeRO-3 gathers weights
            odds = score_batch_steps(self.model, [rows[index].row for index in batch])
            if mine < len(batches):
                places = [place for index in batch for place in range(starts[index], starts[index + 1])]
                found[places] = odds
        return global_sum(found).cpu()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, then measure the model that is kept on held-out steps, on all ranks."""
        result = super().train(*args, **kwargs)
        rows, split = self.held_out
        predicted = self.score(rows).sigmoid().numpy().astype(float)
        owners = np.repeat(np.arange(len(rows)), [len(one.labels) for one in rows])
        report = step_report(predicted, flat_labels(rows).numpy(), owners, [one.prompt for one in rows])
        self.report = {"split": split, **report}
        self.log({f"held_out_{name}": value for name, value in headlines(self.report).items()})
        return result

    def save_beside(self, folder: Path) -> dict[str, Any]:
        """Write the figures beside the model, show the main ones, and return them for the manifest."""
        said = {"kind": PROCESS, "separator": self.settings.separator, "max_tokens": self.settings.max_tokens}
        notes = {**said, **self.facts, **self.report}
        (folder / NOTES_FILE).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
        print(summary(self.report))
        return {"kind": PROCESS, **self.facts, **headlines(self.report)}


def flat_labels(rows: Sequence[Labeled]) -> Tensor:
    """Return (N,) the labels of all steps, row by row."""
    return torch.tensor([label for one in rows for label in one.labels])


def headlines(report: dict[str, Any]) -> dict[str, float]:
    """Return the main figures of a report."""
    return {
        "steps": report["steps"],
        "accuracy": report["accuracy"]["value"],
        "majority": report["majority"],
        **({"auc": report["auc"]} if report["auc"] is not None else {}),
        "wrong_steps_f1": report["wrong_steps"]["f1"],
        "calibration_error": report["calibration"]["expected_error"],
    }


def summary(report: dict[str, Any]) -> str:
    """Return a line about a process reward model, beside the baseline that always says the same."""
    low, high = report["accuracy"]["interval"]
    area = f", AUC {report['auc']:.3f}" if report["auc"] is not None else ""
    return (
        f"process reward model on {report['steps']} steps of {report['rows']} {report['split']} answers: "
        f"accuracy {report['accuracy']['value']:.3f} ({low:.3f} to {high:.3f}), "
        f"always the same {report['majority']:.3f}{area}, wrong steps F1 {report['wrong_steps']['f1']:.3f}, "
        f"calibration error {report['calibration']['expected_error']:.3f}"
    )


def process_reward_model(job: Job) -> ProcessRewardTrainer:
    """Build the trainer of a process reward model's stage.

    Raises:
        DataError: a step holds the separator, or all labels say the same.
        ModelError: the model has no form with a step head.
    """
    settings: ProcessRewardModelSettings = job.settings.algorithm
    loaded, facts = model_with_head(job, PROCESS, load_step_head, new_step_head)
    records = {split: job.domain.step_labels(split) for split in ("train", "valid", "test")}
    check_labels(records["train"])
    rows = {split: labeled(found, loaded.tokenizer, settings) for split, found in records.items()}
    split = "valid" if records["test"] == records["valid"] else "test"
    metric = None if settings.select_by == "last" else settings.select_by
    best = best_checkpoint(metric, settings.select_by == "accuracy")
    pad = loaded.model.config.pad_token_id
    return ProcessRewardTrainer(
        model=scalar_trainable(loaded, job.model.adapter, settings.freeze_backbone, "TOKEN_CLS"),
        args=TrainingArguments(**stage_arguments(job, optimizer_steps(job.settings.train, len(rows["train"])), best)),
        settings=settings,
        held_out=(rows[split], split),
        facts=facts,
        train_dataset=rows["train"],
        eval_dataset=rows["valid"],
        data_collator=lambda batch: collate(batch, pad),
        processing_class=loaded.tokenizer,
        callbacks=stage_callbacks(job, metric),
    )


def check_labels(rows: Sequence[StepLabels]) -> None:
    """Refuse labels that there is nothing to learn from.

    Raises:
        DataError: all steps are right, or all are wrong.
    """
    right = {label >= 0.5 for row in rows for label in row.labels}
    if len(right) == 1:
        same = "right" if right.pop() else "wrong"
        raise DataError(
            f"{rows[0].source.path}: every step of the train split is {same}, so there is nothing to tell apart; "
            "add steps that are not"
        )


def labeled(records: Sequence[StepLabels], tokenizer: Any, settings: ProcessRewardModelSettings) -> list[Labeled]:
    """Tokenize answers as sampling writes them, prompt and answer apart, and find the ends of their steps.

    Raises:
        DataError: a step holds what parts steps, by file and line.
    """
    separator = settings.separator
    if not records:
        return []
    prompts = tokenizer([row.prompt for row in records], add_special_tokens=False).input_ids
    answers = tokenizer([separator.join(row.steps) for row in records], add_special_tokens=False).input_ids
    whole, limit = [False] * len(records), settings.max_tokens
    found = step_rows(tokenizer, prompts, answers, whole, separator=separator, max_tokens=limit)
    problems = [problem for row, one in zip(records, found) if (problem := _wrong_steps(row, one, separator))]
    if problems:
        more = [f"and {len(problems) - SHOWN:,} more rows"] if len(problems) > SHOWN else []
        raise DataError(*problems[:SHOWN], *more)
    return [Labeled(one, list(row.labels[: len(one.ends)]), row.prompt) for row, one in zip(records, found)]


def _wrong_steps(row: StepLabels, found: StepRow, separator: str) -> str:
    """Return why a row's steps are not those that would be scored; empty where they are."""
    for at, step in enumerate(row.steps):
        if separator in step.rstrip():
            wrong = f"completions[{at}]: holds what parts steps, {separator!r}, so it would be scored as several"
            return f"{row.source}: {wrong}; split it, or set algorithm.separator to what no step holds"
    if len(found.ends) != len(row.steps) and not found.unfinished:
        return (
            f"{row.source}: completions: {len(row.steps)} steps, of which the tokenizer leaves {len(found.ends)}; "
            "set algorithm.separator to what it keeps"
        )
    return ""


def collate(batch: Sequence[Labeled], pad: int) -> dict[str, Tensor]:
    """Pad rows on the right; the label stands where its step ends, the weaker one where two end in one token."""
    ids, mask = pad_right([one.row.ids for one in batch], pad)  # (B, T)
    is_end, right = torch.zeros_like(ids, dtype=torch.bool), torch.ones(ids.shape)
    for index, one in enumerate(batch):
        for end, label in zip(one.row.ends, one.labels):
            is_end[index, end] = True
            right[index, end] = min(float(right[index, end]), label)
    return {"input_ids": ids, "attention_mask": mask, "is_end": is_end, "right": right}
