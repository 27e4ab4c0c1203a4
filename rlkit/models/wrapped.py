"""One module, one engine: a language model with whatever is trained beside it, and the Trainer that drives it.

Log-probs, entropies, values and restricted heads are computed inside ``forward`` of one module, called through the
wrapper that DDP or DeepSpeed put around it; a head called outside drifts (DDP) or crashes (ZeRO-3).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer

HEADS_FILE = "heads.safetensors"
"""Whatever a wrapped model trains beside its language model."""


class WrappedModel(nn.Module):
    """A language model inside a module of ours; subclasses add heads and a ``forward``."""

    supports_gradient_checkpointing = True

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    @property
    def config(self) -> Any:
        """Return the language model's config; Trainer and DeepSpeed look at it."""
        return self.lm.config

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Return whether activations are recomputed; TRL looks at it."""
        return bool(getattr(self.lm, "is_activation_checkpointing", False))

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Pass on to the language model."""
        self.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Pass on to the language model."""
        self.lm.gradient_checkpointing_disable()

    def save_beside(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write what is trained beside the language model, where it has been saved.

        Args:
            folder: the language model's.
            state: all weights of this module by name, gathered.
        """
        heads = {name: value.contiguous() for name, value in state.items() if not name.startswith("lm.")}
        if heads:
            save_file(heads, folder / HEADS_FILE)


def save_wrapped(model: WrappedModel, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the language model in Hugging Face layout and the heads beside it."""
    state = state if state is not None else model.state_dict()
    lm_state = {name[3:]: value for name, value in state.items() if name.startswith("lm.")}
    model.lm.save_pretrained(folder, state_dict=lm_state)
    WrappedModel.save_beside(model, folder, state)


def load_wrapped(model: WrappedModel, folder: Path) -> None:
    """Read what ``save_wrapped`` wrote, into a model of the same shape."""
    adapter = folder / "adapter_model.safetensors"
    if adapter.is_file():
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model.lm, load_file(adapter))
    else:
        state: dict[str, Tensor] = {}
        for shard in sorted(folder.glob("model*.safetensors")):
            state |= load_file(shard)
        missing, unexpected = model.lm.load_state_dict(state, strict=False)
        tied = set(getattr(model.lm, "all_tied_weights_keys", None) or {})
        assert not unexpected, unexpected
        assert set(missing) <= tied, missing
        model.lm.tie_weights()
    if (folder / HEADS_FILE).is_file():
        model.load_state_dict(load_file(folder / HEADS_FILE), strict=False)


def global_sum(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


class WrappedTrainer(Trainer):
    """A Trainer whose loss divides by a global count, and whose checkpoints are in Hugging Face layout, without pickle.

    ``compute_loss`` of a subclass returns ``sum / global count * world size``: DDP and DeepSpeed average gradients over
    ranks, the Trainer adds them over micro-batches, so the result is the sum over the global batch over its count.
    """

    loss_is_scaled_for_ga = True

    model: Any
    control: Any

    def _prepare_inputs(self, inputs: Any) -> Any:
        # The default casts float inputs to bf16 under DeepSpeed; old log-probs and advantages must stay as they are.
        move = getattr(inputs, "to", None)
        if move is not None:
            return move(self.args.device)
        return {
            key: value.to(self.args.device) if isinstance(value, Tensor) else value for key, value in inputs.items()
        }

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The default takes a step too many when it goes on from the checkpoint of the last one.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: the batches are ours, and nobody reads the estimate."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_wrapped(self.model, folder, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_wrapped(model or self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            load_wrapped(self.model, Path(self.state.best_model_checkpoint))

    @property
    def is_sharded(self) -> bool:
        """Return whether parameters are spread over ranks (ZeRO-3)."""
        engine = self.model_wrapped
        return self.is_deepspeed_enabled and engine is not self.model and engine.zero_optimization_stage() == 3


@torch.no_grad()
def copy_frozen(model: nn.Module) -> nn.Module:
    """Return a frozen copy in evaluation mode: a reference that no optimizer sees."""
    import copy

    return copy.deepcopy(model).eval().requires_grad_(False)
