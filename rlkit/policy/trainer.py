"""Online learning as a source of batches: prompts -> rollouts -> rewards -> experience -> mini-batches.

The hook is ``Trainer.get_batch_samples``. It is called once per optimizer step and returns exactly the asked number of
micro-batches, with the global counts that the loss divides by. One rollout of R prompts serves
``U = updates_epochs * R / batch_size`` optimizer steps out of a buffer. Rollouts, rewards and this loop never know the
algorithm: it is a ``PolicyAlgorithm``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.trainer_utils import TrainOutput

from rlkit.config.algorithms import PolicySettings
from rlkit.models.wrapped import WrappedTrainer, global_sum
from rlkit.ops.kl import kl_full
from rlkit.ops.policy_loss import Counts
from rlkit.policy.algorithm import PolicyAlgorithm
from rlkit.policy.collect import Collector
from rlkit.policy.first_pass import check_first_pass
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import PolicyOutput
from rlkit.policy.health import Health
from rlkit.policy.metrics import rollout_metrics, sample_rows
from rlkit.policy.mini_batches import LoopSettings, Tickets, mini_batches, nothing_of, part_of
from rlkit.policy.module import PolicyModel
from rlkit.policy.reference import Reference
from rlkit.policy.rollback import read_state
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.step_log import StepLog, UpdateClock
from rlkit.policy.value import VALUE_FOLDER

logger = logging.getLogger("rlkit")

STATE_FILE = "policy.json"
RESUMED = ("cursor", "rollout", "start_metric", "synced_step")
"""What a checkpoint holds beside weights, optimizer, random states and the algorithm's own state."""
REFERENCE_FOLDER = "reference"
KL_LIMIT = 1.5
"""A rollout's remaining updates are skipped where the policy has moved this many times ``target_kl``."""


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
        health: watches the stage; None: nobody does.
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
        health: Health | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, eval_dataset=Tickets(), **kwargs)  # never read: the collector has the prompts
        self.algorithm, self.settings, self.loop, self.collector = algorithm, settings, loop, collector
        self.log_sample, self.events, self.health = log_sample, events, health
        self.cursor = self.rollout = 0
        self.start_metric: float | None = None
        self.buffer: list[GroupBatch] = []
        self.notes = StepLog()
        self.synced_step = 0
        self.moved: list[Tensor] = []
        """Shares of the KL divergence to the sampling policy, of the step that is being computed."""
        self.skipping = False  # whether what is left of the rollout trains nothing
        self.add_callback(UpdateClock(self.notes.seconds))
        if health is not None:
            health.attach(self)
        self.start_state = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
        self.start_algorithm = dict(algorithm.state)
        self.reference = None if settings.kl_coef == 0 else Reference(model, args.device, settings.offload)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Build the optimizer; what values states may have a learning rate of its own."""
        optimizer = super().create_optimizer(model)
        rate = self.algorithm.value_learning_rate
        mine = {id(parameter) for name, parameter in self.model.named_parameters() if name.startswith("value.")}
        for group in list(optimizer.param_groups) if rate and mine else ():
            values = [parameter for parameter in group["params"] if id(parameter) in mine]
            if values:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in mine]
                optimizer.add_param_group({**group, "params": values, "lr": rate})
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    # ---- the source of batches

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader that only counts."""
        return DataLoader(Tickets(), batch_size=1)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Return exactly ``num_batches`` micro-batches of this rank, and the global counts of the optimizer step."""
        for _ in range(num_batches):
            next(epoch_iterator)
        if self.health is not None:
            self.health.check_weights()
        if not self.buffer:
            self.buffer, self.skipping = self._collect(), False
        batch = self.buffer.pop(0)
        batch = self._skipped(batch) if self._skips() else batch
        if self.algorithm.target_kl is not None:
            self.notes.note({"updates_skipped": float(self.skipping)}, {})
        counts = torch.stack([batch.num_tokens, batch.num_completions]).float().to(device)
        parts = [part_of(batch, rows) for rows in torch.arange(len(batch)).tensor_split(num_batches)]
        return parts, global_sum(counts).clamp_min(1)  # where all groups are filtered out, 0 / 0 would be nan

    def _skips(self) -> bool:
        """Return whether the policy left the one that sampled: rolled back, or past ``target_kl``; a collective."""
        limit, moved = self.algorithm.target_kl, self.moved
        self.moved = []
        if limit is not None and not self.skipping and len(self.buffer) < self.loop.updates - 1:  # not a fresh rollout
            self.skipping = bool(global_sum(torch.stack(moved).sum()) > KL_LIMIT * limit)
        return self.skipping

    def _skipped(self, batch: GroupBatch) -> GroupBatch:
        """Make the coming step change no weight: no group counts, and learning rates are 0 until the schedule goes on.

        The step is still taken, so that steps, schedule and checkpoints fall where they do without an early stop; the
        optimizer's moments fade as they do under a gradient of 0, and the means of the log hold it as a 0.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        return nothing_of(batch)

    @torch.no_grad()
    def _collect(self) -> list[GroupBatch]:
        """Make one rollout and cut it into the mini-batches of its updates; groups stay whole on a rank."""
        self._sync_reference()
        self.model.eval()
        with self._whole_policy() as lm:
            found = self.collector.collect(lm, self.rollout, self.cursor, self.loop.rollout_batch_size)
        self.cursor, self.rollout = found.cursor, self.rollout + 1
        self.events.on_rollouts(step=self.state.global_step, rollouts=found.rollouts)
        metrics = rollout_metrics(found.rollouts) | found.notes
        self.notes.note(metrics, found.seconds)
        self._write_samples(found.rollouts)
        if self.health is not None:
            self.health.rollouts = found.rollouts
        batch = found.rollouts.batch
        batch.numbers |= self.algorithm.experience(found.rollouts) | {"scores": found.rollouts.scores}
        place = {"rank": self.args.process_index, "processes": self.args.world_size}
        started = time.perf_counter()
        parts = [part.to(self.args.device) for part in mini_batches(batch, found.keep, self.loop.batch_size, **place)]
        for part in parts:
            part.numbers |= self._constants(part)
        if self.algorithm.credits:
            self.notes.note(self.algorithm.credit(parts), {})
        self.notes.seconds["constants"] += time.perf_counter() - started
        self.model.train()
        return parts * self.settings.updates_epochs

    def _constants(self, batch: GroupBatch) -> dict[str, Tensor]:
        """Return log-probs and values of the sampling policy, and the reference's log-probs.

        With one update per rollout the loss takes the current ones as old: unless another asks, no forward is needed.
        """
        numbers: dict[str, Tensor] = {}
        if self.loop.updates > 1 or self.algorithm.credits:
            numbers |= self._numbers(self.model_wrapped, batch)
        if self.reference is None:
            return numbers
        with self.reference.in_use(self.model_wrapped) as reference:
            if self.settings.kl_estimator == "full":
                return numbers | {"ref_kl": self._exact_kl(reference, batch)}
            return numbers | {"ref_logprobs": self._numbers(reference, batch)["old_logprobs"]}

    def _numbers(self, model: Any, batch: GroupBatch) -> dict[str, Tensor]:
        """Return (B, G, C) log-probs, and values where there are any."""

        def compute(part: GroupBatch) -> dict[str, Tensor]:
            output = model(part, with_entropy=False)
            return {"old_logprobs": output.logprobs} | ({} if output.values is None else {"values": output.values})

        return self._by_micro_batch(compute, batch)

    def _exact_kl(self, reference: Any, batch: GroupBatch) -> Tensor:
        """Return (B, G, C) the KL divergence of the policy's distribution of each token from the reference's."""

        def compute(part: GroupBatch) -> dict[str, Tensor]:
            asked = {"with_entropy": False, "with_distributions": True}
            mine, other = self.model_wrapped(part, **asked), reference(part, **asked)
            kl = torch.zeros_like(mine.logprobs)
            kl[part.mask] = kl_full(mine.distributions, other.distributions)
            return {"ref_kl": kl}

        return self._by_micro_batch(compute, batch)["ref_kl"]

    def _by_micro_batch(self, compute: Any, batch: GroupBatch) -> dict[str, Tensor]:
        """Return what is computed a micro-batch at a time: as many on every rank, as ZeRO-3 has to have it."""
        width = batch.mask.shape[-1]
        found: list[dict[str, Tensor]] = []
        with self.compute_loss_context_manager():
            for rows in torch.arange(len(batch)).tensor_split(self.args.gradient_accumulation_steps):
                numbers = {name: value[: len(rows)] for name, value in compute(part_of(batch, rows)).items()}
                found.append({name: F.pad(value, (0, width - value.shape[-1])) for name, value in numbers.items()})
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

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
        self.notes.share({"policy_objective": loss, **shares})
        if self.algorithm.target_kl is not None:
            self.moved.append(shares["approx_kl"].detach())
        if self.health is not None:
            self.health.saw(inputs, output.logprobs, loss)
        return loss * self.args.world_size

    def _check_first_pass(self, logprobs: Tensor, batch: GroupBatch) -> None:
        """Assert that training sees the probabilities that sampling saw; what is not finite is the monitor's."""
        full = not (self.args.bf16 or self.args.fp16) and next(self.model.parameters()).dtype == torch.float32
        if self.health is None or logprobs[batch.mask].isfinite().all():
            check_first_pass(logprobs, batch, full)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Time forward and backward together."""
        started = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.notes.seconds["forward_backward"] += time.perf_counter() - started
        return loss if self.health is None else loss.nan_to_num(0.0, 0.0, 0.0)  # that step is not taken

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        return norm if self.health is None else self.health.gradient(norm)

    # ---- logs

    def _write_samples(self, rollouts: Rollouts) -> None:
        if self.rollout % self.args.logging_steps == 1 or self.args.logging_steps == 1:
            for row in sample_rows(rollouts, self.processing_class, self.settings.samples_per_log):
                self.log_sample({"step": self.state.global_step, **row})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of what was noted since the last log, and the seconds per phase."""
        if "loss" in logs:
            logs |= self.notes.flush(self.state.global_step)
        super().log(logs, start_time)

    # ---- the valid split and the best checkpoint

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> TrainOutput:
        """Train; the starting model is looked at first, so that it can turn out to be the best one."""
        if resume_from_checkpoint:
            self._load_state(Path(resume_from_checkpoint))
            self.notes.step = int(Path(resume_from_checkpoint).name.rsplit("-", 1)[1])
        with closing(self.collector.rewarder):
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Look at the valid split with the current policy."""
        started = time.perf_counter()
        if self.health is not None:
            self.health.check_weights()
        self.model.eval()
        with self._whole_policy() as lm:
            found = self.collector.validate(lm)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.notes.seconds["validate"] += time.perf_counter() - started
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
            self.restore_start()
        else:
            super()._load_best_model()

    def restore_start(self) -> None:
        """Put the starting model's weights back."""
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

    def save_beside(self, folder: Path) -> dict[str, Any]:
        """Give a value model that lies beside the policy the tokenizer that it needs to be a model of its own."""
        if (folder / VALUE_FOLDER).is_dir():
            self.processing_class.save_pretrained(folder / VALUE_FOLDER)
        return {}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        assert not self.buffer, "a checkpoint is written only where a rollout ends"
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            state = {name: getattr(self, name) for name in RESUMED} | {
                "algorithm": self.algorithm.state,
                **self.collector.state(),
            }
            (folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
            if self.health is not None:
                self.health.save(folder)
            if self.settings.reference_sync and self.reference is not None:
                self.reference.save(folder / REFERENCE_FOLDER)

    def saved_state(self, folder: Path) -> dict[str, Any]:
        """Return what a checkpoint holds of the loop and of the algorithm."""
        return read_state(folder / STATE_FILE)

    def _load_state(self, folder: Path) -> None:
        state = self.saved_state(folder)
        for name in RESUMED:
            setattr(self, name, state[name])
        self.algorithm.state.update(state["algorithm"])
        self.collector.load(state)
        self.args.eval_on_start = False
        if self.health is not None:
            self.health.load(folder)
        if (folder / REFERENCE_FOLDER).is_dir():
            assert self.reference is not None
            self.reference.load(folder / REFERENCE_FOLDER)

    # ---- the reference that follows

    @torch.no_grad()
    def _sync_reference(self) -> None:
        """Move the reference towards the policy where it is time to; only where a rollout ends."""
        sync = self.settings.reference_sync
        if sync is None or self.reference is None or self.state.global_step - self.synced_step < sync.every_steps:
            return
        self.synced_step = self.state.global_step
        with self._whole_policy() as lm:
            self.reference.follow(lm, sync.mix)
