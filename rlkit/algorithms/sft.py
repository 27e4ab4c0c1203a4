"""Supervised fine-tuning.

Two paths, by what the domain offers. Whole sequences (compact template): a plain Trainer that predicts every position
of a user's sequence in one pass, with log-probs normalized over the constraint's allowed tokens. Demonstrations
(instruct template, chat): TRL's ``SFTTrainer``, with the loss on the completion alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import EarlyStoppingCallback, TrainingArguments

from rlkit.config.algorithms import SFTSettings
from rlkit.config.train import TrainSettings
from rlkit.job import Job
from rlkit.models.attention import decoder, head_logits
from rlkit.models.constraint import Constraint
from rlkit.models.load import LoadedModel, add_dropout, make_trainable
from rlkit.models.wrapped import WrappedModel, WrappedTrainer, global_sum
from rlkit.ops.logprobs import pick, selected_logprobs
from rlkit.policy.token_logprobs import children_logprobs, chosen_child
from rlkit.records import Demonstration
from rlkit.training import batch_plan

IGNORE = -100


def sequence_loss(logprobs: Tensor, num_tokens: Tensor) -> Tensor:
    """Return the negative log-likelihood per predicted token.

    Args:
        logprobs: (N,) of the tokens to predict; carries gradients.
        num_tokens: () predicted tokens of the whole global batch; add the results of micro-batches and ranks.
    """
    return -logprobs.sum() / num_tokens


class SequenceModel(WrappedModel):
    """A language model that returns the log-probs of the labels.

    Args:
        lm: the language model.
        constraint: normalize over the allowed tokens of this tree; None: over the vocabulary.
        teacher_weight: of soft targets, where a batch brings them.
    """

    def __init__(self, lm: Any, constraint: Constraint | None, teacher_weight: float = 0.0) -> None:
        super().__init__(lm)
        self.constraint, self.teacher_weight = constraint, teacher_weight

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, nodes: Tensor, soft: Tensor | None = None
    ) -> Tensor:
        """Return (N,) log-probs of the labels that count, mixed with the teacher's expectation of them.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T).
            labels: (B, T) the token ids, ``IGNORE`` where none is predicted.
            nodes: (B, T) the constraint's node before each token.
            soft: (B, T, W) the teacher's distribution over the node's continuations; 0 where it has none.
        """
        hidden = decoder(self.lm)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]  # (B, T, D)
        counted = labels[:, 1:] != IGNORE
        states, tokens = hidden[:, :-1][counted], labels[:, 1:][counted]  # (N, D), (N,)
        if self.constraint is None:
            return selected_logprobs(head_logits(self.lm, states), tokens)
        constraint = self.constraint.to(states.device)
        logprobs, children = children_logprobs(self.lm, states, nodes[:, 1:][counted], constraint)
        chosen = pick(logprobs, chosen_child(children, tokens))
        if soft is None:
            return chosen
        return with_teacher(chosen, logprobs, soft[:, 1:][counted], self.teacher_weight)


def with_teacher(chosen: Tensor, logprobs: Tensor, soft: Tensor, weight: float) -> Tensor:
    """Return (N,) (log p(true) + weight * E_teacher[log p]) / (1 + weight), log p(true) where there is no teacher.

    Args:
        chosen: (N,) log-probs of the true tokens.
        logprobs: (N, W) of all continuations, 0 where there is none.
        soft: (N, W') the teacher's distribution; a row of 0 where it has none.
        weight: of the teacher.
    """
    soft = soft[:, : logprobs.shape[1]]
    weights = weight * soft.sum(-1)
    return (chosen + weight * (soft * logprobs).sum(-1)) / (1 + weights)


class GlobalBatches(Sampler):
    """This rank's micro-batches of ``(epoch, index)``: the same global batches on any number of ranks.

    An epoch is a permutation drawn from (seed, epoch), cut into whole global batches; the rest of it waits for
    another epoch. Inside a global batch sequences are ordered by length, so that micro-batches hold little padding;
    the loss divides by global counts, so this changes no gradient. ``batch_sampler`` points to the sampler itself
    because that is where the Trainer looks for ``set_epoch``.

    Args:
        lengths: about how long each sequence is.
        batch_size: sequences per optimizer step, over all ranks.
        micro_batch_size: sequences per forward, on one rank.
        rank: of this process.
        processes: ranks.
        seed: of the permutations.
    """

    def __init__(
        self, lengths: np.ndarray, *, batch_size: int, micro_batch_size: int, rank: int, processes: int, seed: int
    ) -> None:
        self.lengths, self.seed, self.epoch = lengths, seed, 0
        self.batch_size, self.slice = batch_size, micro_batch_size * processes
        self.rank, self.processes = rank, processes
        self.batch_sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation."""
        self.epoch = epoch

    @property
    def steps(self) -> int:
        """Return the optimizer steps of an epoch."""
        return max(len(self.lengths) // self.batch_size, 1)

    def __len__(self) -> int:
        return self.steps * (self.batch_size // self.slice)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.lengths))
        for batch in np.resize(order, (self.steps, self.batch_size)):
            batch = batch[np.argsort(self.lengths[batch], kind="stable")]
            for start in range(0, self.batch_size, self.slice):
                mine = batch[start + self.rank : start + self.slice : self.processes]
                yield [(self.epoch, int(index)) for index in mine]


class SequenceTrainer(WrappedTrainer):
    """Trains a ``SequenceModel``; evaluates the mean loss per valid target."""

    def __init__(self, *args: Any, batches: GlobalBatches, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches = batches

    def get_train_dataloader(self) -> DataLoader:
        """Return this rank's micro-batches; our own sampler already shards."""
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Return the step's micro-batches and how many tokens the whole global batch predicts."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        count = sum(float((batch["labels"][:, 1:] != IGNORE).sum()) for batch in batches)
        return batches, global_sum(torch.tensor(count, device=device))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the scaled loss of one micro-batch."""
        return sequence_loss(model(**inputs), num_items_in_batch) * self.args.world_size

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the mean loss per target of the valid rows, each rank taking its share of them."""
        self.model.eval()
        mine = np.argsort(self.eval_dataset.lengths, kind="stable")[self.args.process_index :: self.args.world_size]
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        size = 256
        for start in range(0, -(-len(self.eval_dataset) // self.args.world_size), size):  # as often on every rank
            rows = mine[start : start + size]
            batch = self.data_collator([self.eval_dataset[index] for index in (rows if len(rows) else mine[:1])])
            logprobs = self.model(**self._prepare_inputs(batch)).double()[: None if len(rows) else 0]
            total += torch.stack([-logprobs.sum(), torch.tensor(float(len(logprobs)), device=total.device).double()])
        loss, count = global_sum(total).tolist()
        metrics = {f"{metric_key_prefix}_loss": loss / count}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def sft(job: Job) -> Any:
    """Build the trainer of an SFT stage: on whole sequences where the domain has them, else on demonstrations."""
    loaded = job.load_model()
    sequences = job.domain.train_sequences()
    if sequences is None:
        return _demonstration_trainer(job, loaded)
    add_dropout(loaded.model, job.model.dropout)
    return _sequence_trainer(job, loaded, sequences)


def _sequence_trainer(job: Job, loaded: LoadedModel, sequences: Any) -> SequenceTrainer:
    train: TrainSettings = job.settings.train
    plan = batch_plan(train, job.processes)
    batches = GlobalBatches(
        sequences.lengths,
        batch_size=plan.batch_size,
        micro_batch_size=plan.micro_batch_size,
        rank=job.rank,
        processes=job.processes,
        seed=job.seed,
    )
    constraint = job.domain.constraint if job.domain.normalization == "children" else None
    trainable = make_trainable(loaded, job.model)
    return SequenceTrainer(
        SequenceModel(trainable, constraint, job.domain.teacher_weight),
        TrainingArguments(**_keep_best(train) | job.training_arguments(_steps(train, len(sequences)))),
        batches=batches,
        train_dataset=sequences,
        eval_dataset=job.domain.valid_sequences(),
        data_collator=sequences.collate,
        processing_class=loaded.tokenizer,
        callbacks=[*job.callbacks(), *_early_stopping(train)],
    )


def _demonstration_trainer(job: Job, loaded: LoadedModel) -> Any:
    from trl import SFTConfig, SFTTrainer

    class DemonstrationTrainer(SFTTrainer):
        """Takes whole global batches only, the same on any number of ranks; an epoch's rest waits for another one."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
            if self.args.train_sampling_strategy != "random":  # of ``train.extra``
                return super()._get_train_sampler(train_dataset)
            steps = max(len(self.train_dataset) // train.batch_size, 1)
            return RandomSampler(self.train_dataset, num_samples=steps * train.batch_size)

    settings: SFTSettings = job.settings.algorithm
    train: TrainSettings = job.settings.train
    data = {
        split: _tokenized(job.domain.demonstrations(split), loaded, settings.max_tokens) for split in ("train", "valid")
    }
    ours = {
        **_keep_best(train),
        "max_length": settings.max_tokens,
        "packing": settings.packing,
        "dataset_kwargs": {"skip_prepare_dataset": not settings.packing},
    }
    return DemonstrationTrainer(
        model=make_trainable(loaded, job.model),
        args=SFTConfig(**ours | job.training_arguments(_steps(train, len(data["train"])))),  # ``train.extra`` wins
        train_dataset=data["train"],
        eval_dataset=data["valid"],
        processing_class=loaded.tokenizer,
        callbacks=[*job.callbacks(), *_early_stopping(train)],
    )


def _tokenized(rows: Sequence[Demonstration], loaded: LoadedModel, max_tokens: int) -> datasets.Dataset:
    """Tokenize as sampling does, prompt and completion apart: training sees the tokens that decoding continues."""
    tokenize = partial(loaded.tokenizer, add_special_tokens=False)
    prompts = tokenize([row.prompt for row in rows]).input_ids
    completions = tokenize([row.completion for row in rows]).input_ids
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for prompt, completion in zip(prompts, completions):
        answer = [*completion, loaded.tokenizer.eos_token_id]
        prompt = prompt[-max(max_tokens - len(answer), 0) :] if len(answer) < max_tokens else []
        columns["input_ids"].append([*prompt, *answer][-max_tokens:])
        columns["labels"].append([*[IGNORE] * len(prompt), *answer][-max_tokens:])
    return datasets.Dataset.from_dict(columns)


def _steps(train: TrainSettings, rows: int) -> int:
    return train.max_steps or max(1, math.ceil(train.epochs * (rows // train.batch_size)))


def _keep_best(train: TrainSettings) -> dict[str, Any]:
    return {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}


def _early_stopping(train: TrainSettings) -> list[EarlyStoppingCallback]:
    return [EarlyStoppingCallback(train.early_stopping_patience)] if train.early_stopping_patience else []
