"""The bundle that a run leaves behind where its loss stays infinite or NaN: what went in, and what came out of it.

``blackbox/<stage>-<step>/`` holds ``about.json``, ``metrics.jsonl`` (the last rollouts), ``rollout.jsonl`` (prompts,
completions and rewards of the last rollout as text and ids) and ``tensors.safetensors`` (the same rollout, and below
``step/N/`` the micro-batches of the last step with their log-probs and advantages). JSON writes NaN as null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.rollouts import Rollouts

FOLDER = "blackbox"
ROWS = 50


def write_bundle(
    folder: Path,
    *,
    about: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    rollouts: Rollouts | None,
    step: Sequence[tuple[GroupBatch, Tensor]],
    tokenizer: Any,
) -> Path:
    """Write the bundle and return its folder.

    Args:
        folder: of the bundle; made here.
        about: what happened, with which versions and settings.
        rows: metrics, a row per rollout.
        rollouts: the last rollout; None: there was none.
        step: the micro-batches of the last step on this rank, and (B, G, C) the log-probs that the loss saw.
        tokenizer: decodes completions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "about.json").write_text(json.dumps(_plain(about), indent=2) + "\n", encoding="utf-8")
    _write_lines(folder / "metrics.jsonl", rows[-ROWS:])
    tensors: dict[str, Tensor] = {}
    if rollouts is not None:
        _write_lines(folder / "rollout.jsonl", _texts(rollouts, tokenizer))
        tensors |= {f"rollout/{name}": value for name, value in _of_rollouts(rollouts).items()}
    for place, (batch, logprobs) in enumerate(step):
        found = {**_of_batch(batch), "logprobs": logprobs}
        tensors |= {f"step/{place}/{name}": value for name, value in found.items()}
    save_file(
        {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
        folder / "tensors.safetensors",
    )
    return folder


def _of_batch(batch: GroupBatch) -> dict[str, Tensor]:
    fields = {name: getattr(batch, name) for name in ("prompts", "prompt_mask", "completions", "mask")}
    return {**fields, **batch.numbers}


def _of_rollouts(rollouts: Rollouts) -> dict[str, Tensor]:
    parts = {f"part/{name}": value for name, value in rollouts.parts.items()}
    found = {"scores": rollouts.scores, "rewards": rollouts.rewards, "truncated": rollouts.truncated}
    return {**_of_batch(rollouts.batch), **found, **parts}


def _texts(rollouts: Rollouts, tokenizer: Any) -> list[dict[str, Any]]:
    """Return a row per prompt, with all of its completions."""
    rows = []
    for index, prompt in enumerate(rollouts.prompts):
        group = [
            {
                "text": tokenizer.decode(ids),
                "ids": ids,
                "reward": float(rollouts.rewards[index, place]),
                "parts": {name: float(part[index, place]) for name, part in rollouts.parts.items()},
            }
            for place, mask in enumerate(rollouts.batch.mask[index])
            for ids in [rollouts.batch.completions[index, place][mask].tolist()]
        ]
        rows.append({"prompt": prompt.text, "answer": prompt.answer, "source": str(prompt.source), "group": group})
    return rows


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", errors="replace")


def _plain(value: Any) -> Any:
    """Return data that strict JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def not_finite(model: torch.nn.Module) -> list[str]:
    """Return the names of the weights on this rank that hold an infinity or NaN."""
    with torch.no_grad():
        named = [(name, value.isfinite().all()) for name, value in model.named_parameters() if value.numel()]
        fine = torch.stack([flag for _, flag in named]).tolist() if named else []
    return [name for (name, _), good in zip(named, fine) if not good]
