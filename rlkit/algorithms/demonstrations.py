"""SFT on demonstrations, through TRL's ``SFTTrainer``: what the assistant says is trained on, what it is told is not.

Rows are tokenized as sampling does, prompt and completion apart, so that training sees the tokens that decoding
continues. Rows that share a sequence, packed or without padding, are told apart by positions that restart; whether a
model does so is tried out before it is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import datasets
import torch
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rlkit.algorithms.offline import (
    IGNORE,
    WholeBatches,
    best_checkpoint,
    optimizer_steps,
    stage_arguments,
    stage_callbacks,
)
from rlkit.config.algorithms import SFTSettings
from rlkit.errors import DataError, ModelError
from rlkit.job import Job
from rlkit.models.load import LoadedModel, make_trainable
from rlkit.records import Demonstration

logger = logging.getLogger(__name__)

SHOWN = 20
"""Rows without anything to train on that an error names."""
PROBED_TOKENS = 8
"""Tokens of each of the two rows with which it is tried out whether rows keep apart."""


class DemonstrationTrainer(WholeBatches, SFTTrainer):
    """TRL's trainer on rows that are tokenized, masked and packed already."""


def demonstration_trainer(job: Job, loaded: LoadedModel) -> DemonstrationTrainer:
    """Build the trainer of an SFT stage on demonstrations.

    Raises:
        DataError: a demonstration has nothing to train on.
        ModelError: rows are to share a sequence, which the model would mix.
        RecipeError: checkpoints are not written where the valid split is looked at.
    """
    settings: SFTSettings = job.settings.algorithm
    data = {
        split: tokenized(job.domain.demonstrations(split), loaded, settings.max_tokens) for split in ("train", "valid")
    }
    shared = settings.packing or settings.padding_free
    if shared:
        check_rows_keep_apart(loaded, data["train"])
    if settings.packing:
        data["train"] = pack_dataset(data["train"], settings.max_tokens, "bfd")
    ours = {
        "max_length": None,  # cut already
        "padding_free": shared,
        "neftune_noise_alpha": settings.neftune_alpha,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    steps = optimizer_steps(job.settings.train, len(data["train"]))
    return DemonstrationTrainer(
        model=make_trainable(loaded, job.model),
        args=SFTConfig(**ours | stage_arguments(job, steps, best_checkpoint("loss"))),  # ``train.extra`` wins
        train_dataset=data["train"],
        eval_dataset=data["valid"],
        processing_class=loaded.tokenizer,
        callbacks=stage_callbacks(job),
    )


# ---- tokens and masks


def tokenized(rows: Sequence[Demonstration], loaded: LoadedModel, max_tokens: int) -> datasets.Dataset:
    """Tokenize demonstrations and mask all that the assistant does not say; longer ones are cut on the left.

    Args:
        rows: demonstrations, earlier turns included.
        loaded: the model, for its tokenizer.
        max_tokens: of a row.

    Returns:
        ``input_ids`` and ``labels``, the ids themselves where they are trained on, else ``IGNORE``.

    Raises:
        DataError: nothing of a row would be trained on.
    """
    pieces = [piece for row in rows for turn in (*row.earlier, (row.prompt, row.completion)) for piece in turn]
    ids = iter(loaded.tokenizer(pieces, add_special_tokens=False).input_ids if pieces else [])
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    cut = 0
    for row in rows:
        turns = [(next(ids), next(ids)) for _ in range(len(row.earlier) + 1)]
        turns[-1] = (turns[-1][0], [*turns[-1][1], loaded.tokenizer.eos_token_id])
        cut += len(turns[-1][1]) >= max_tokens
        columns["input_ids"].append([token for turn in turns for part in turn for token in part][-max_tokens:])
        labels = [token for told, said in turns for token in (*[IGNORE] * len(told), *said)]
        columns["labels"].append(labels[-max_tokens:])
    _check_labels(rows, columns["labels"])
    if cut:
        logger.warning(
            "%d of %d answers fill max_tokens %d, so that nothing of their prompts is left; raise algorithm.max_tokens",
            *(cut, len(rows), max_tokens),
        )
    return datasets.Dataset.from_dict(columns)


def _check_labels(rows: Sequence[Demonstration], labels: Sequence[Sequence[int]]) -> None:
    """Raise the rows without a label behind their first token: the first one is predicted from nothing."""
    empty = [row for row, row_labels in zip(rows, labels) if all(label == IGNORE for label in row_labels[1:])]
    if empty:
        shown = [f"{row.source}: nothing to train on, got no token of an answer; delete the row" for row in empty]
        more = [f"and {len(empty) - SHOWN:,} more rows"] if len(empty) > SHOWN else []
        raise DataError(*shown[:SHOWN], *more)


# ---- rows that share a sequence


def check_rows_keep_apart(loaded: LoadedModel, rows: datasets.Dataset) -> None:
    """Try out whether a model computes the same for two rows in one sequence as for each by itself.

    Flash attention takes the rows' lengths and is trusted: it cannot be tried where the model lies now.

    Raises:
        ModelError: it mixes them.
    """
    attention = loaded.model.config._attn_implementation
    if "flash" in attention:
        return
    parts = [rows[index % len(rows)]["input_ids"][:PROBED_TOKENS] for index in range(2)]
    collate = DataCollatorForLanguageModeling(loaded.tokenizer.pad_token_id, padding_free=True)
    together = collate([{"input_ids": ids} for ids in parts])
    del together["labels"]
    was_training = loaded.model.training
    loaded.model.eval()
    with torch.no_grad():
        packed = loaded.model(**together, use_cache=False).logits[0].float()  # (T, V)
        alone = [loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float() for ids in parts]
    loaded.model.train(was_training)
    apart = torch.cat(alone)  # (T, V)
    difference = float((packed - apart).abs().max() / apart.std())
    if not difference < _tolerance(loaded.model.dtype):
        name = type(loaded.model).__name__
        raise ModelError(
            f"algorithm: packing and padding_free would mix rows: {name} with attention {attention!r} computes other "
            f"logits for rows that share a sequence, got {difference:.2g} standard deviations; set both to false"
        )


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-3 if dtype == torch.float32 else 0.1
