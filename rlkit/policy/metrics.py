"""What is logged about rollouts, and the samples that people read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rlkit.policy.rollouts import Rollouts


def rollout_metrics(rollouts: Rollouts) -> dict[str, float]:
    """Describe one rollout: rewards, their parts and spread, lengths, truncation, diversity.

    Rewards are those before standardization, which makes every group's mean 0.
    ``reward_spread`` is the standard deviation over all completions, ``reward_std`` the mean of that within groups.
    ``diversity/candidates`` is the share of distinct completions in a group, ``diversity/tokens`` and
    ``diversity/pairs`` those of distinct tokens and pairs of tokens among all of a group's (distinct-1 and -2); means
    over groups. ``diversity/rollout`` is the share of distinct completions among the first ones of all groups: a policy
    that is sure of its answers keeps it, one that says the same whatever it is asked does not.
    """
    present, mask = rollouts.present, rollouts.batch.mask
    count = present.sum().clamp_min(1)

    def mean(values: Tensor) -> float:
        return float(values.masked_fill(~present, 0.0).sum() / count)

    some = present.any(-1)  # groups of which nothing could be scored have no spread
    mean_std = float(_group_std(rollouts.plain, present)[some].mean()) if some.any() else 0.0
    metrics = {
        "reward": mean(rollouts.plain),
        "reward_spread": float(rollouts.plain[present].std(correction=0)) if present.any() else 0.0,
        "reward_std": mean_std,
        "completion_length": float(mask.sum() / count),
        "truncated": mean(rollouts.truncated.float()),
        **_diversity(rollouts),
    }
    return metrics | {f"reward/{name}": mean(part) for name, part in rollouts.parts.items()}


def _group_std(rewards: Tensor, present: Tensor) -> Tensor:
    """Return (B,) the unbiased standard deviation within each group."""
    size = present.sum(-1)
    center = rewards.masked_fill(~present, 0.0).sum(-1) / size.clamp_min(1)
    squares = (rewards - center[:, None]).square().masked_fill(~present, 0.0).sum(-1)
    return (squares / (size - 1).clamp_min(1)).sqrt()


def _diversity(rollouts: Rollouts) -> dict[str, float]:
    shares: dict[str, list[float]] = {"candidates": [], "tokens": [], "pairs": []}
    firsts: list[tuple[int, ...]] = []
    for group, mask in zip(rollouts.batch.completions, rollouts.batch.mask):
        rows = [tuple(row[kept].tolist()) for row, kept in zip(group, mask) if kept.any()]
        firsts += rows[:1]
        of_group = {
            "candidates": rows,
            "tokens": [token for row in rows for token in row],
            "pairs": [pair for row in rows for pair in pairwise(row)],
        }
        for name, found in of_group.items():
            shares[name] += [len(set(found)) / len(found)] if found else []
    shares["rollout"] = [len(set(firsts)) / max(len(firsts), 1)]
    return {f"diversity/{name}": sum(found) / max(len(found), 1) for name, found in shares.items()}


def sample_rows(rollouts: Rollouts, tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """Return rows for samples.jsonl: of each of the first prompts its best and its worst completion, if it has any."""
    rows = []
    for index in rollouts.present.any(-1).nonzero()[:count, 0].tolist():
        rewards = rollouts.rewards[index].masked_fill(~rollouts.present[index], torch.nan)
        chosen = {int(rewards.nan_to_num(-torch.inf).argmax()), int(rewards.nan_to_num(torch.inf).argmin())}
        for place in sorted(chosen):
            ids = rollouts.batch.completions[index, place][rollouts.batch.mask[index, place]].tolist()
            if ids[-1:] == [tokenizer.eos_token_id]:
                ids.pop()  # any other special token stays visible: it may be why the completion is wrong
            rows.append(
                {
                    "prompt": rollouts.prompts[index].text,
                    "completion": tokenizer.decode(ids),
                    "answer": rollouts.prompts[index].answer,
                    "source": str(rollouts.prompts[index].source),
                    "place": place,
                    "reward": round(float(rollouts.rewards[index, place]), 6),
                    "parts": {name: round(float(part[index, place]), 6) for name, part in rollouts.parts.items()},
                    "truncated": bool(rollouts.truncated[index, place]),
                }
            )
    return rows
