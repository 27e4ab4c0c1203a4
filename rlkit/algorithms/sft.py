"""Supervised fine-tuning.

Two paths, by what the domain offers. Whole sequences (compact template): a plain Trainer that predicts every position
of a user's sequence in one pass, with log-probs normalized over the constraint's allowed tokens. Demonstrations
(instruct template, chat): TRL's ``SFTTrainer``, with the loss on completions alone (``demonstrations.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import TrainingArguments

from rlkit.algorithms.offline import IGNORE, best_checkpoint, optimizer_steps, stage_arguments, stage_callbacks
from rlkit.config.algorithms import SFTSettings
from rlkit.config.train import TrainSettings
from rlkit.errors import RecipeError
from rlkit.job import Job
from rlkit.models.attention import decoder, head_logits
from rlkit.models.constraint import Constraint
from rlkit.models.load import LoadedModel, add_dropout, make_trainable
from rlkit.models.wrapped import WrappedModel, WrappedTrainer, global_sum
from rlkit.ops.logprobs import pick, selected_logprobs
from rlkit.policy.token_logprobs import children_logprobs, chosen_child
from rlkit.training import batch_plan


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
        from rlkit.algorithms.demonstrations import demonstration_trainer  # TRL takes seconds to import

        return demonstration_trainer(job, loaded)
    _check_used(job)
    add_dropout(loaded.model, job.model.dropout)
    return _sequence_trainer(job, loaded, sequences)


def _check_used(job: Job) -> None:
    """Refuse what whole sequences do not use: every position of them is trained on, and they have a loss of their own.

    Raises:
        RecipeError: a setting would do nothing.
    """
    settings: SFTSettings = job.settings.algorithm
    unused = [name for name in ("packing", "padding_free", "neftune_alpha") if getattr(settings, name)]
    if unused:
        raise RecipeError(
            f"stages.{job.stage}.algorithm: {' and '.join(unused)} do nothing for whole sequences (template compact); "
            "leave them out, or choose the template instruct"
        )


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
        TrainingArguments(**stage_arguments(job, optimizer_steps(train, len(sequences)), best_checkpoint("loss"))),
        batches=batches,
        train_dataset=sequences,
        eval_dataset=job.domain.valid_sequences(),
        data_collator=sequences.collate,
        processing_class=loaded.tokenizer,
        callbacks=stage_callbacks(job),
    )
