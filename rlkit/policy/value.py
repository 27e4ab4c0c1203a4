"""Values of states: a head on the policy's own backbone, or a model of its own.

The value of a completion token is that of the state before it, which also predicts it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from rlkit.config.ppo import ValueSettings
from rlkit.errors import ModelError
from rlkit.job import Job
from rlkit.models.attention import decoder
from rlkit.models.head_files import headless
from rlkit.models.load import LoadedModel
from rlkit.models.scalar_head import load_scalar_head, new_scalar_head
from rlkit.models.tokenizer import fingerprint
from rlkit.models.wrapped import HEADS_FILE
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import Mode, completion_hidden

logger = logging.getLogger("rlkit")

VALUE_FOLDER = "value_model"
"""Beside a policy: the separate model that valued its states, a sequence classifier with one label."""


class ValueHead(nn.Module):
    """A linear head on the policy's states; it starts at 0, so that the first advantages are the rewards themselves.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Return (B, G, C) values of the states (B, G, C, D)."""
        return self.linear(states.to(self.linear.weight.dtype)).squeeze(-1).float()


class ValueModel(nn.Module):
    """A model with a scalar head of its own.

    Args:
        model: a sequence classifier with one label: its decoder and its ``score`` are used.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: GroupBatch, mode: Mode) -> Tensor:
        """Return (B, G, C) values, the prompt computed once per group where that is right and pays."""
        return self.model.score(completion_hidden(self.model, batch, mode)).squeeze(-1).float()

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write it in Hugging Face layout.

        Args:
            folder: that of the policy.
            state: weights by name, gathered.
        """
        self.model.save_pretrained(folder / VALUE_FOLDER, state_dict=dict(state))


def make_value(job: Job, settings: ValueSettings, policy: LoadedModel) -> ValueHead | ValueModel:
    """Build what values the policy's states.

    Raises:
        ModelError: the folder that it starts from has another tokenizer, or holds no value head to go on from.
    """
    start = _start(job, settings)
    if settings.backbone == "shared":
        backbone: Any = decoder(policy.model)
        head = ValueHead(backbone.config.hidden_size)
        if start is not None:
            _load_head(head, start)
        return head
    if start is not None and headless(str(start)) is None:
        loaded = load_scalar_head(job.model, start)
    else:
        loaded = new_scalar_head(job.load_model(start), job.seed)
    if fingerprint(loaded.tokenizer) != fingerprint(policy.tokenizer):
        raise ModelError(
            f"stages.{job.stage}.algorithm.value: the tokenizer of {str(start)!r} is not the policy's; "
            "start both from stages of one model"
        )
    return ValueModel(loaded.model)


def _start(job: Job, settings: ValueSettings) -> Path | None:
    """Return the folder that a value starts from; None: a fresh head, on the recipe's model where it is separate."""
    if settings.path is not None:
        return Path(settings.path).expanduser()
    path: Path | None
    if settings.start_from is not None:
        path = job.model_of(settings.start_from)
    elif settings.backbone == "shared":
        return None
    else:
        scorers = job.trained_stages("reward_model")
        path = job.model_of(scorers[-1]) if scorers else job.start_model()
    return path / VALUE_FOLDER if path is not None and (path / VALUE_FOLDER).is_dir() else path


def _load_head(head: ValueHead, folder: Path) -> None:
    state = load_file(folder / HEADS_FILE) if (folder / HEADS_FILE).is_file() else {}
    found = {name.removeprefix("value."): tensor for name, tensor in state.items() if name.startswith("value.linear.")}
    if not found:
        raise ModelError(
            f"algorithm.value.start_from: no value head in {str(folder)!r}; name a PPO stage with a shared backbone"
        )
    head.load_state_dict(found)
