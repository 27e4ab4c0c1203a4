"""Rollouts: prompts with their groups of completions and rewards, and the stream that prompts come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.group_batch import concat as concat_batches
from rlkit.records import Prompt


@dataclass
class Rollouts:
    """What rewards see: B prompts with G completions each, in the global order, on the CPU.

    Args:
        prompts: B records.
        batch: their tokens.
        scores: (B, G) summed log-probs under the policy that made them; ``-inf`` where a completion is absent.
        leaves: (B, G) where the constraint's walk ended, -1 where absent; None without a constraint.
        truncated: (B, G) True where a completion was cut off before its end.
        answers: (B, C') the answers' tokens, padded with 0, and ``answer_mask`` (B, C').
        rewards: (B, G) the weighted sum of ``parts``.
        parts: reward name -> (B, G), unweighted; a reward that scores tokens counts with its sum.
        dense: (B, G, C) the weighted sum of what single tokens were given, also part of ``rewards``; None: nothing.
        unstandardized: (B, G) ``rewards`` as they would be if no part were standardized; None: none is.
    """

    prompts: list[Prompt]
    batch: GroupBatch
    scores: Tensor
    leaves: Tensor | None
    truncated: Tensor
    answers: Tensor
    answer_mask: Tensor
    rewards: Tensor = field(default_factory=lambda: torch.empty(0))
    parts: dict[str, Tensor] = field(default_factory=dict)
    dense: Tensor | None = None
    unstandardized: Tensor | None = None

    @property
    def plain(self) -> Tensor:
        """Return (B, G) what completions are worth: standardized rewards have a mean of 0, whatever the policy does."""
        return self.rewards if self.unstandardized is None else self.unstandardized

    @property
    def present(self) -> Tensor:
        """Return (B, G) True where a completion exists."""
        return self.batch.mask.any(-1)

    def select(self, rows: Sequence[int]) -> Rollouts:
        """Return some of the prompts with their groups."""
        index = torch.as_tensor(list(rows), dtype=torch.long)
        return replace(
            self,
            prompts=[self.prompts[row] for row in rows],
            batch=self.batch.select(index),
            scores=self.scores[index],
            leaves=None if self.leaves is None else self.leaves[index],
            truncated=self.truncated[index],
            answers=self.answers[index],
            answer_mask=self.answer_mask[index],
            rewards=self.rewards[index] if len(self.rewards) else self.rewards,
            parts={name: value[index] for name, value in self.parts.items()},
            dense=None if self.dense is None else self.dense[index],
            unstandardized=None if self.unstandardized is None else self.unstandardized[index],
        )


def concat(rollouts: Sequence[Rollouts]) -> Rollouts:
    """Join rollouts in order."""
    if len(rollouts) == 1:
        return rollouts[0]
    width = max(r.answers.shape[1] for r in rollouts)

    def pad(value: Tensor) -> Tensor:
        return torch.nn.functional.pad(value, (0, width - value.shape[1]))

    first = rollouts[0]
    return Rollouts(
        prompts=[prompt for r in rollouts for prompt in r.prompts],
        batch=concat_batches([r.batch for r in rollouts]),
        scores=torch.cat([r.scores for r in rollouts]),
        leaves=None if first.leaves is None else torch.cat([r.leaves for r in rollouts if r.leaves is not None]),
        truncated=torch.cat([r.truncated for r in rollouts]),
        answers=torch.cat([pad(r.answers) for r in rollouts]),
        answer_mask=torch.cat([pad(r.answer_mask) for r in rollouts]),
        rewards=torch.cat([r.rewards for r in rollouts]),
        parts={name: torch.cat([r.parts[name] for r in rollouts]) for name in first.parts},
        dense=_concat_dense(rollouts),
        unstandardized=None if first.unstandardized is None else torch.cat([r.plain for r in rollouts]),
    )


def _concat_dense(rollouts: Sequence[Rollouts]) -> Tensor | None:
    width = max(r.batch.mask.shape[-1] for r in rollouts)
    found = [r.dense for r in rollouts if r.dense is not None]
    assert len(found) in (0, len(rollouts)), "rewards score tokens always or never"
    return torch.cat([torch.nn.functional.pad(d, (0, width - d.shape[-1])) for d in found]) if found else None


class PromptStream:
    """An endless, seeded stream of prompts with a cursor: refills, filters and resuming need no more than a number.

    Every pass over the prompts is a permutation of its own, drawn from (seed, pass).

    Args:
        prompts: all of them.
        seed: of the permutations.
        skips: whether a prompt, by its key, is left out of a pass; none: all passes have all prompts.
    """

    def __init__(
        self, prompts: Sequence[Prompt], seed: int, skips: Callable[[str, int], bool] = lambda key, turn: False
    ) -> None:
        self.prompts, self.seed, self.skips = prompts, seed, skips
        self._order: tuple[int, Any] = (-1, None)

    def take(self, cursor: int, count: int) -> list[Prompt]:
        """Return ``count`` prompts from position ``cursor`` on."""
        return self.draw(cursor, count)[0]

    def draw(self, cursor: int, count: int) -> tuple[list[Prompt], int, int]:
        """Return ``count`` prompts from a position on, where the stream goes on, and how many were skipped.

        As many positions as there are prompts are looked at; where too few of them count, skipped ones fill up.
        """
        taken: list[Prompt] = []
        skipped = 0
        while len(taken) < count:
            kept: list[Prompt] = []
            left: list[Prompt] = []
            end, missing = cursor + len(self.prompts), count - len(taken)
            while len(kept) < missing and cursor < end:
                prompt, turn = self._at(cursor)
                (left if self.skips(prompt.key, turn) else kept).append(prompt)
                cursor += 1
            filled = left[: missing - len(kept)]
            skipped += len(left) - len(filled)
            taken += kept + filled
        return taken, cursor, skipped

    def _at(self, cursor: int) -> tuple[Prompt, int]:
        turn, place = divmod(cursor, len(self.prompts))
        if self._order[0] != turn:
            self._order = turn, np.random.default_rng((self.seed, turn)).permutation(len(self.prompts))
        return self.prompts[self._order[1][place]], turn


def generator_for(*key: Any) -> torch.Generator:
    """Return a CPU generator keyed by (seed, rollout, prompt): the same noise on any rank, in any batch."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
