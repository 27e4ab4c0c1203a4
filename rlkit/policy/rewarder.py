"""Score rollouts with every part of the reward, and mix the parts.

A part is clipped, then centered and scaled within its group where asked, then weighted. Gates multiply what the other
parts add up to. A completion that some part could not score leaves its group: it is neither rewarded nor punished.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlkit.config.rewards import RewardSettings
from rlkit.errors import TrainingError
from rlkit.ops.advantages import group_advantages
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.supervised import SupervisedReward, close_rewards, within
from rlkit.policy.text_rewards import Outcome, samples

logger = logging.getLogger("rlkit")

Reward = Callable[[Rollouts], Tensor]


@dataclass(frozen=True)
class WeightedReward:
    """One part of the reward.

    Args:
        name: its type; a type that stands twice gets a number.
        weight: it is multiplied by this.
        score: rollouts in, (B, G) out, or (B, G, C) where tokens are scored.
        settings: how else it is mixed, and its deadline.
    """

    name: str
    weight: float
    score: Reward
    settings: RewardSettings = field(default_factory=RewardSettings)


@dataclass
class Spent:
    """What scoring took, over several calls.

    Args:
        completions: that were there to be scored.
        unscored: those of them that some part could not score.
        milliseconds: by the name of a part.
        error: the first reason why one could not be scored; empty where all were.
    """

    completions: int = 0
    unscored: int = 0
    milliseconds: dict[str, float] = field(default_factory=dict)
    error: str = ""

    def __add__(self, other: Spent) -> Spent:
        names = dict.fromkeys([*self.milliseconds, *other.milliseconds])
        return Spent(
            self.completions + other.completions,
            self.unscored + other.unscored,
            {name: self.milliseconds.get(name, 0.0) + other.milliseconds.get(name, 0.0) for name in names},
            self.error or other.error,
        )

    def notes(self) -> dict[str, float]:
        """Return what is logged: milliseconds per completion of each part, and the share that could not be scored."""
        count = max(self.completions, 1)
        each = {f"reward_ms/{name}": took / count for name, took in self.milliseconds.items()}
        return {**each, "unscored": self.unscored / count}


class Rewarder:
    """Puts rewards into rollouts.

    Args:
        parts: of the reward.
        device: where learned parts compute.
        offload: keep learned parts in CPU memory while they do not compute.
        quarantine: takes a row about each completion that had no score.
    """

    def __init__(
        self,
        parts: Sequence[WeightedReward],
        device: Any = "cpu",
        offload: bool = False,
        quarantine: Callable[[dict[str, Any]], None] = lambda row: None,
    ) -> None:
        self.parts, self.device, self.offload, self.quarantine = parts, device, offload, quarantine
        self.spent = Spent()
        """Since the last ``reset``: completions, those that could not be scored, and milliseconds by part."""

    def reset(self) -> None:
        """Count anew."""
        self.spent = Spent()

    def close(self) -> None:
        """End the processes of the parts that have any; a later call starts them again."""
        close_rewards(part.score for part in self.parts)

    def __call__(self, rollouts: Rollouts) -> None:
        """Fill in ``rewards``, ``parts``, ``dense`` and ``unstandardized``, and take out what could not be scored.

        Raises:
            TrainingError: a part returns something else than a number for each completion.
        """
        self.spent.completions += int(rollouts.present.sum())
        scored = [(part, self._scored(part, rollouts)) for part in self.parts]
        self._take_out(rollouts, scored)
        scored = [(part, score.masked_fill(~_counted(score, rollouts), 0.0)) for part, score in scored]
        rollouts.parts |= {part.name: score.sum(-1) if score.ndim == 3 else score for part, score in scored}
        rollouts.rewards, rollouts.dense = _mix(rollouts, scored, standardize=True)
        if any(part.settings.standardize for part in self.parts):
            rollouts.unstandardized, _ = _mix(rollouts, scored, standardize=False)

    def _scored(self, part: WeightedReward, rollouts: Rollouts) -> Tensor:
        """Return what a part says, on the CPU; a learned one visits the device where it may not stay.

        Raises:
            TrainingError: the shape is wrong, or a number is not finite (NaN, where a reward reads text, is no score).
        """
        started, mask = time.perf_counter(), rollouts.batch.mask
        move = getattr(part.score, "to", None)
        if move is not None:
            move(self.device)
        found = self._called(part, rollouts)
        if not isinstance(found, Tensor) or found.is_complex():
            raise TrainingError(
                f"reward {part.name}: must return a tensor of real numbers, got "
                f"{found.dtype if isinstance(found, Tensor) else type(found).__name__}; look at the reward's code"
            )
        score = found.float().cpu()
        if move is not None and self.offload:
            move("cpu")
        took = 1000 * (time.perf_counter() - started)
        self.spent.milliseconds[part.name] = self.spent.milliseconds.get(part.name, 0.0) + took
        counted = {mask.shape[:2]: rollouts.present, mask.shape: mask}.get(score.shape)
        may_lack = len(getattr(part.score, "outcomes", ())) == int(rollouts.present.sum())  # it says why, one by one
        wrong = counted is None or not (torch.isfinite(score) | (score.isnan() if may_lack else False))[counted].all()
        if wrong or (part.settings.gate and score.ndim == 3):
            raise TrainingError(
                f"reward {part.name}: must return finite numbers of shape {tuple(mask.shape[:2])}, "
                f"got {tuple(score.shape)}; look at the reward's code"
            )
        if part.settings.standardize and score.ndim == 3:
            raise TrainingError(
                f"reward {part.name}: standardize compares completions, got a score for each token; "
                "take standardize out of this reward"
            )
        return score

    def _called(self, part: WeightedReward, rollouts: Rollouts) -> Tensor:
        if isinstance(part.score, SupervisedReward):
            return part.score(rollouts)
        seconds = part.settings.timeout_seconds * max(int(rollouts.present.sum()), 1)
        return within(seconds, part.name, lambda: torch.no_grad()(part.score)(rollouts))

    def _take_out(self, rollouts: Rollouts, scored: Sequence[tuple[WeightedReward, Tensor]]) -> None:
        """Mask out completions that some part could not score, after a row about each went to the quarantine."""
        present = rollouts.present
        lost = torch.zeros_like(present)
        for part, score in scored:
            failed = score.isnan() if score.ndim == 2 else torch.zeros_like(present)
            if (failed & present).any():
                self._report(part, rollouts, (failed & present)[present])
            lost |= failed
        self.spent.unscored += int((lost & present).sum())
        rollouts.batch.mask = rollouts.batch.mask & ~lost[..., None]
        rollouts.scores = rollouts.scores.masked_fill(lost, -torch.inf)

    def _report(self, part: WeightedReward, rollouts: Rollouts, failed: Tensor) -> None:
        outcomes: Sequence[Outcome] = part.score.outcomes  # type: ignore[attr-defined]
        rows = samples(rollouts, part.score.domain.tokenizer)  # type: ignore[attr-defined]
        chosen = failed.nonzero()[:, 0].tolist()
        logger.warning("reward %s: %d completions have no score: %s", part.name, len(chosen), outcomes[chosen[0]].error)
        self.spent.error = self.spent.error or f"{part.name}: {outcomes[chosen[0]].error}"
        for index in chosen:
            row = rows[index]
            self.quarantine(
                {
                    "reward": part.name,
                    "settings": part.settings.model_dump(mode="json"),
                    "error": outcomes[index].error,
                    "prompt": row.prompt,
                    "completion": row.completion,
                    "answer": row.answer,
                    "truncated": row.truncated,
                    "context": json.loads(json.dumps(row.context, default=str)),
                }
            )


def _counted(score: Tensor, rollouts: Rollouts) -> Tensor:
    """Return which of a part's numbers count: (B, G), or (B, G, C) where it scores tokens."""
    return rollouts.batch.mask if score.ndim == 3 else rollouts.present


def _mix(
    rollouts: Rollouts, scored: Sequence[tuple[WeightedReward, Tensor]], *, standardize: bool
) -> tuple[Tensor, Tensor | None]:
    """Return (B, G) the mix of all parts, and (B, G, C) what of it single tokens were given; None: nothing.

    Args:
        rollouts: what was scored.
        scored: parts with their scores, 0 where nothing counts.
        standardize: whether parts that ask for it are standardized.
    """
    present, dense = rollouts.present, None
    total, gate = torch.zeros(present.shape), torch.ones(present.shape)
    for part, score in scored:
        mixed = _mixed(score, part, _counted(score, rollouts), standardize)
        if part.settings.gate:
            gate = gate * mixed
        elif score.ndim == 3:  # tokens were scored
            dense = mixed if dense is None else dense + mixed
        else:
            total = total + mixed
    if dense is not None:
        total, dense = total + dense.sum(-1), dense * gate[..., None]
    return (total * gate).masked_fill(~present, 0.0), dense


def _mixed(score: Tensor, part: WeightedReward, counted: Tensor, standardize: bool) -> Tensor:
    """Return a part's contribution: clipped, standardized within the group where asked, weighted."""
    if part.settings.clip is not None:
        score = score.clamp(*part.settings.clip)
    if standardize and part.settings.standardize:
        score = group_advantages(score, counted)
    return (score * part.weight).masked_fill(~counted, 0.0)


def weighted(rewards: Sequence[Any], load: Callable[[Any], Reward]) -> list[WeightedReward]:
    """Build the parts of the reward; a type that stands twice gets a number in its name."""
    names: Mapping[str, int] = {}
    result = []
    for settings in rewards:
        names = {**names, settings.type: names.get(settings.type, 0) + 1}
        name = settings.type if names[settings.type] == 1 else f"{settings.type}_{names[settings.type]}"
        result.append(WeightedReward(name, settings.weight, load(settings), settings))
    return result
