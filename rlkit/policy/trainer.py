"""Online learning as a source of batches: prompts -> rollouts -> rewards -> experience -> mini-batches.

The hook is ``Trainer.get_batch_samples``. It is called once per optimizer step and returns exactly the asked number of
micro-batches, with the global counts that the loss divides by. One rollout of R prompts serves
``U = updates_epochs * R / batch_size`` optimizer steps out of a buffer. Rollouts, rewards and this loop never know the
algorithm: it supplies ``experience(rollouts)`` and ``loss(output, batch, counts)``.
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput

from rlkit.config.algorithms import PolicySettings
from rlkit.errors import TrainingError
from rlkit.models.wrapped import WrappedTrainer, copy_frozen, global_sum
from rlkit.ops.policy_loss import Counts
from rlkit.policy.collect import Collected, Collector
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import PolicyOutput
from rlkit.policy.metrics import rollout_metrics, sample_rows
from rlkit.policy.module import PolicyModel
from rlkit.policy.rollouts import Rollouts

logger = logging.getLogger("rlkit")

STATE_FILE = "policy.json"
RESUMED = ("cursor", "rollout", "start_metric", "synced_step")
"""What a checkpoint holds beside weights, optimizer and random states."""
REFERENCE_FOLDER = "reference"
FIRST_PASS_TOLERANCE = 1e-4
LOW_PRECISION_TOLERANCE = 2e-2


class PolicyAlgorithm(Protocol):
    """What an online algorithm supplies."""

    def experience(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """Return the numbers of all groups, (B, G) or (B, G, C): advantages, and whatever else its loss reads."""
        ...

    def loss(self, output: PolicyOutput, batch: GroupBatch, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a micro-batch's share of the loss, and shares of metrics; shares add up over the global batch."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """The arithmetic of the loop.

    Args:
        rollout_batch_size: prompts per rollout, over all ranks.
        batch_size: prompts per optimizer step, over all ranks.
        updates_epochs: passes over each rollout.
        rollouts: rollouts in all.
    """

    rollout_batch_size: int
    batch_size: int
    updates_epochs: int
    rollouts: int

    @property
    def updates(self) -> int:
        """Return U, the optimizer steps that one rollout serves."""
        return self.updates_epochs * self.rollout_batch_size // self.batch_size


class _Tickets(IterableDataset):
    """Counts steps for the Trainer; the prompts are ours, since its loader reads ahead."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


class _UpdateClock(TrainerCallback):
    """Times the optimizer."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.started = seconds, 0.0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds["update"] += time.perf_counter() - self.started


def _part(batch: GroupBatch, rows: Tensor) -> GroupBatch:
    """Return some groups; where there are none one group that counts nothing, so that every rank takes every step."""
    if len(rows):
        return batch.select(rows)
    part = batch.select([0])
    part.mask = torch.zeros_like(part.mask)
    return part


class PolicyTrainer(WrappedTrainer):
    """Trains a ``PolicyModel`` on its own rollouts.

    Args:
        model: the policy.
        args: the training arguments; steps and intervals count optimizer steps and end where a rollout ends.
        algorithm: experience and loss.
        settings: what every online algorithm shares.
        loop: the loop's arithmetic.
        collector: makes and rewards rollouts, and looks at the valid split.
        log_sample: takes a row of samples.jsonl.
        events: hooks of the callbacks that the recipe lists.
    """

    def __init__(
        self,
        model: PolicyModel,
        args: TrainingArguments,
        *,
        algorithm: PolicyAlgorithm,
        settings: PolicySettings,
        loop: LoopSettings,
        collector: Collector,
        log_sample: Any,
        events: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, eval_dataset=_Tickets(), **kwargs)  # never read: the collector has the prompts
        self.algorithm, self.settings, self.loop, self.collector = algorithm, settings, loop, collector
        self.log_sample, self.events = log_sample, events
        self.cursor = self.rollout = 0
        self.start_metric: float | None = None
        self.buffer: list[GroupBatch] = []
        self.shares: dict[str, list[Tensor]] = defaultdict(list)
        self.noted: dict[str, list[float]] = defaultdict(list)
        self.seconds: dict[str, float] = defaultdict(float)
        self.logged_step = self.synced_step = 0
        self.add_callback(_UpdateClock(self.seconds))
        self.start_state = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
        self.adapter = hasattr(model.lm, "disable_adapter")
        self.reference = self._make_reference()

    def _make_reference(self) -> PolicyModel | None:
        """Return the frozen starting model; under LoRA the policy without its adapter serves, so nothing is copied."""
        if self.settings.kl_coef == 0 or self.adapter:
            return None
        reference: Any = copy_frozen(self.model)
        return reference.to(self.args.device)

    # ---- the source of batches

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader that only counts."""
        return DataLoader(_Tickets(), batch_size=1)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Return exactly ``num_batches`` micro-batches of this rank, and the global counts of the optimizer step."""
        for _ in range(num_batches):
            next(epoch_iterator)
        if not self.buffer:
            self.buffer = self._collect()
        batch = self.buffer.pop(0)
        counts = torch.stack([batch.num_tokens, batch.num_completions]).float().to(device)
        parts = [_part(batch, rows) for rows in torch.arange(len(batch)).tensor_split(num_batches)]
        return parts, global_sum(counts).clamp_min(1)  # where all groups are filtered out, 0 / 0 would be nan

    @torch.no_grad()
    def _collect(self) -> list[GroupBatch]:
        """Make one rollout and cut it into the mini-batches of its updates; groups stay whole on a rank."""
        self._sync_reference()
        self.model.eval()
        with self._whole_policy() as lm:
            found = self.collector.collect(lm, self.rollout, self.cursor, self.loop.rollout_batch_size)
        self.cursor, self.rollout = found.cursor, self.rollout + 1
        self.events.on_rollouts(step=self.state.global_step, rollouts=found.rollouts)
        self._note(rollout_metrics(found.rollouts) | {"zero_signal": found.zero_signal}, found.seconds)
        self._write_samples(found.rollouts)
        numbers = self.algorithm.experience(found.rollouts) | {"scores": found.rollouts.scores}
        found.rollouts.batch.numbers |= numbers
        started = time.perf_counter()
        batches = [self._with_constants(part.to(self.args.device)) for part in self._mini_batches(found)]
        self.seconds["constants"] += time.perf_counter() - started
        self.model.train()
        return batches * self.settings.updates_epochs

    def _mini_batches(self, found: Collected) -> list[GroupBatch]:
        """Return this rank's part of each mini-batch: the same global mini-batches on any number of ranks."""
        batch = found.rollouts.batch
        parts = []
        for rows in torch.arange(len(batch)).split(self.loop.batch_size):
            kept = rows[found.keep[rows]]
            parts.append(_part(batch, kept.tensor_split(self.args.world_size)[self.args.process_index]))
        return parts

    def _with_constants(self, batch: GroupBatch) -> GroupBatch:
        """Add old and reference log-probs; with one update per rollout the old are the current ones: no forward."""
        if self.loop.updates > 1:
            batch.numbers["old_logprobs"] = self._logprobs(self.model_wrapped, batch)
        if self.reference is not None:
            batch.numbers["ref_logprobs"] = self._logprobs(self.reference, batch)
        elif self.settings.kl_coef > 0:
            with self.model.lm.disable_adapter():
                batch.numbers["ref_logprobs"] = self._logprobs(self.model_wrapped, batch)
        return batch

    def _logprobs(self, model: Any, batch: GroupBatch) -> Tensor:
        """Return (B, G, C) log-probs, a micro-batch at a time: as many on every rank, as ZeRO-3 has to have it."""
        width = batch.mask.shape[-1]
        parts = []
        with self.compute_loss_context_manager():
            for rows in torch.arange(len(batch)).tensor_split(self.args.gradient_accumulation_steps):
                part = model(_part(batch, rows), with_entropy=False).logprobs[: len(rows)]
                parts.append(torch.nn.functional.pad(part, (0, width - part.shape[-1])))
        return torch.cat(parts)

    @contextmanager
    def _whole_policy(self) -> Iterator[Any]:
        """Give the language model with all its weights on this rank (ZeRO-3: gathered while the block runs)."""
        if not self.is_sharded:
            yield self.model.lm
            return
        from trl.models import unwrap_model_for_generation

        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as policy:
            yield policy.lm

    # ---- loss

    def compute_loss(
        self, model: Any, inputs: GroupBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the scaled loss of one micro-batch, and keep its share of the metrics."""
        output: PolicyOutput = model(inputs)
        if len(self.buffer) == self.loop.updates - 1:  # the weights are still those that made the rollout
            self._check_first_pass(output.logprobs.detach(), inputs)
        inputs.numbers.setdefault("old_logprobs", output.logprobs.detach())
        counts = Counts(num_items_in_batch[0], num_items_in_batch[1], self.collector.max_completion_tokens)
        loss, shares = self.algorithm.loss(output, inputs, counts)
        for name, share in {"policy_objective": loss, **shares}.items():
            self.shares[name].append(share.detach())
        return loss * self.args.world_size

    def _check_first_pass(self, logprobs: Tensor, batch: GroupBatch) -> None:
        """Assert that training sees the probabilities that sampling saw: ratios of 1, per token and per completion."""
        off = (logprobs.sum(-1) - batch.numbers["scores"]).exp() - 1  # (B, G)
        sampled = batch.mask.any(-1) & ~batch.numbers["scores"].isnan()  # an added answer has no score
        worst = float(off.abs().masked_fill(~sampled, 0.0).max())
        if "old_logprobs" in batch.numbers:
            token = (logprobs - batch.numbers["old_logprobs"]).exp() - 1  # (B, G, C)
            worst = max(worst, float(token.abs().masked_fill(~batch.mask, 0.0).max()))
        full = not (self.args.bf16 or self.args.fp16) and next(self.model.parameters()).dtype == torch.float32
        tolerance = FIRST_PASS_TOLERANCE if full else LOW_PRECISION_TOLERANCE
        if not worst <= tolerance * batch.completions.shape[-1]:
            raise TrainingError(
                f"policy: training and sampling disagree on a rollout's probabilities by a ratio of {worst:.2g} "
                f"(limit {tolerance:g} per token); look for dropout, a changed temperature or normalization, "
                "or a lower precision in one of the two"
            )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Time forward and backward together."""
        started = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.seconds["forward_backward"] += time.perf_counter() - started
        return loss

    # ---- logs

    def _note(self, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.noted[name].append(value)
        for name, value in seconds.items():
            self.seconds[name] += value

    def _write_samples(self, rollouts: Rollouts) -> None:
        if self.rollout % self.args.logging_steps == 1 or self.args.logging_steps == 1:
            for row in sample_rows(rollouts, self.processing_class, self.settings.samples_per_log):
                self.log_sample({"step": self.state.global_step, **row})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of what was noted since the last log, and the seconds per phase."""
        if "loss" in logs:
            steps = max(self.state.global_step - self.logged_step, 1)
            totals = {name: torch.stack(values).float().sum() for name, values in self.shares.items()}
            if totals:
                summed = global_sum(torch.stack(list(totals.values()))) / steps
                logs |= {name: round(value, 6) for name, value in zip(totals, summed.tolist())}
            logs |= {name: round(sum(values) / len(values), 6) for name, values in self.noted.items()}
            logs |= {f"seconds/{name}": round(value, 3) for name, value in self.seconds.items()}
            self.logged_step = self.state.global_step
            for store in (self.shares, self.noted, self.seconds):
                store.clear()
        super().log(logs, start_time)

    # ---- the valid split and the best checkpoint

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> TrainOutput:
        """Train; the starting model is looked at first, so that it can turn out to be the best one."""
        if resume_from_checkpoint:
            self._load_state(Path(resume_from_checkpoint))
            self.logged_step = int(Path(resume_from_checkpoint).name.rsplit("-", 1)[1])
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Look at the valid split with the current policy."""
        started = time.perf_counter()
        self.model.eval()
        with self._whole_policy() as lm:
            found = self.collector.validate(lm)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.seconds["validate"] += time.perf_counter() - started
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.model.train()
        return metrics

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if self.state.global_step == 0 and self.args.metric_for_best_model:
            self.start_metric = metrics[f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"]
        return metrics

    def _load_best_model(self) -> None:
        best = self.state.best_metric
        if self.start_metric is not None and (best is None or best <= self.start_metric):
            logger.warning(
                "no checkpoint beats the starting model on valid (%s): the starting model is kept",
                self.args.metric_for_best_model,
            )
            self._restore_start()
        else:
            super()._load_best_model()

    def _restore_start(self) -> None:
        with self._gathered_for_writing():
            for name, parameter in self.model.named_parameters():
                if name in self.start_state:
                    parameter.data.copy_(self.start_state[name])

    @contextmanager
    def _gathered_for_writing(self) -> Iterator[None]:
        if self.is_sharded:
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(self.model.parameters()), modifier_rank=0):
                yield
        else:
            yield

    # ---- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        assert not self.buffer, "a checkpoint is written only where a rollout ends"
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            state = {name: getattr(self, name) for name in RESUMED}
            (folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
            if self.settings.reference_sync and self.reference is not None:
                self.reference.lm.save_pretrained(folder / REFERENCE_FOLDER)

    def _load_state(self, folder: Path) -> None:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        for name in RESUMED:
            setattr(self, name, state[name])
        self.args.eval_on_start = False
        if (folder / REFERENCE_FOLDER).is_dir():
            from rlkit.models.wrapped import load_wrapped

            assert self.reference is not None
            load_wrapped(self.reference, folder / REFERENCE_FOLDER)

    # ---- the reference that follows

    @torch.no_grad()
    def _sync_reference(self) -> None:
        """Move the reference towards the policy where it is time to; only where a rollout ends."""
        sync = self.settings.reference_sync
        if sync is None or self.reference is None or self.state.global_step - self.synced_step < sync.every_steps:
            return
        self.synced_step = self.state.global_step
        with self._whole_policy() as lm:
            for kept, new in zip(self.reference.lm.parameters(), lm.parameters()):
                kept.lerp_(new.to(kept), sync.mix)
