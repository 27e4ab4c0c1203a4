"""Make rollouts and reward them: each rank completes its share, then all hold all of them, in the global order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlkit.config.algorithms import PolicySettings
from rlkit.errors import TrainingError
from rlkit.ops.advantages import zero_signal
from rlkit.policy.pass_rates import PassRates
from rlkit.policy.rewarder import Rewarder, Spent
from rlkit.policy.rollouts import PromptStream, Rollouts, concat, generator_for
from rlkit.policy.sampler import RolloutRequest
from rlkit.records import Prompt


@dataclass(frozen=True)
class Collected:
    """One rollout.

    Args:
        rollouts: B groups, rewarded.
        keep: (B,) which groups are trained on.
        cursor: where the prompt stream goes on.
        zero_signal: the share of groups whose rewards were all equal, among all that were completed.
        seconds: per phase.
        notes: what is logged of it beside what rollouts say themselves.
    """

    rollouts: Rollouts
    keep: Tensor
    cursor: int
    zero_signal: float
    seconds: dict[str, float]
    notes: dict[str, float]


class Collector:
    """Completes and rewards prompts.

    Args:
        settings: what every online algorithm shares.
        rollout: a rollout component.
        rewarder: puts rewards into rollouts.
        domain: gives the constraint and looks at ranked lists.
        tokenizer: the policy's.
        stream: train prompts.
        valid: valid prompts, the same ones at every look.
        seed: of the sampling noise.
        chunk: prompts that are completed together.
        device: where the policy lies.
        amend: what the algorithm does to fresh rollouts, such as adding the ground truth; or None.
        rates: keeps the pass rates that the stream skips by; or None.
    """

    def __init__(
        self,
        settings: PolicySettings,
        *,
        rollout: Any,
        rewarder: Rewarder,
        domain: Any,
        tokenizer: Any,
        stream: PromptStream,
        valid: Sequence[Prompt],
        seed: int,
        chunk: int,
        device: Any,
        amend: Callable[[Rollouts], Rollouts] | None = None,
        rates: PassRates | None = None,
    ) -> None:
        self.settings, self.rollout, self.rewarder, self.domain = settings, rollout, rewarder, domain
        self.tokenizer, self.stream, self.valid, self.seed = tokenizer, stream, valid, seed
        self.chunk, self.device, self.amend, self.rates = chunk, device, amend, rates
        self.errors: dict[str, float] = {}
        """Standard errors of the figures of the last look: what other valid prompts might have changed."""
        self.constraint = None if domain.constraint is None else domain.constraint.to(device)

    @property
    def max_completion_tokens(self) -> int:
        """Return the longest completion that a rollout may hold, in tokens."""
        limit = self.rollout.max_completion_tokens if self.constraint is None else self.constraint.max_tokens
        assert limit is not None, "a rollout without a limit of its own needs a constraint"
        return limit

    def collect(self, lm: Any, rollout: int, cursor: int, count: int) -> Collected:
        """Complete the next ``count`` prompts of the stream; groups without a signal are handled as the settings say.

        Args:
            lm: the policy's language model, whole on this rank.
            rollout: the rollout's number; keys the noise.
            cursor: where the stream stands.
            count: prompts.

        Raises:
            TrainingError: not one completion of all ranks could be scored.
        """
        seconds: dict[str, float] = {"rollout": 0.0, "reward": 0.0}
        self.rewarder.reset()
        rollouts, cursor, notes = self._next(lm, cursor, count, rollout, seconds)
        dead = self._without_signal(rollouts)
        rolled, without = count, int(dead.sum())
        tries = self.settings.max_refills if self.settings.zero_signal == "refill" else 0
        while tries and dead.any():
            missing = int(dead.sum())
            more, cursor, _ = self._next(lm, cursor, missing, rollout, seconds)
            rollouts = concat([rollouts.select((~dead).nonzero()[:, 0].tolist()), more])
            dead = self._without_signal(rollouts)
            tries, rolled = tries - 1, rolled + missing
            without += int(self._without_signal(more).sum())
        keep = torch.ones_like(dead) if self.settings.zero_signal == "keep" else ~dead
        spent = sum(_gather(self.rewarder.spent), Spent())
        if not rollouts.present.any():
            raise TrainingError(
                f"reward: none of {spent.completions} completions could be scored, the first because of "
                f"{spent.error}; mend the reward (see quarantine.jsonl in the run), or start its server, and run again"
            )
        notes |= {"zero_signal": without / rolled, **spent.notes()}
        return Collected(rollouts, keep, cursor, without / rolled, seconds, notes)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold."""
        return {} if self.rates is None else {"rates": self.rates.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        if self.rates is not None:
            self.rates.load(state["rates"])

    def _next(
        self, lm: Any, cursor: int, count: int, rollout: int, seconds: dict[str, float]
    ) -> tuple[Rollouts, int, dict[str, float]]:
        """Complete the stream's next prompts; return where it goes on, and what is known of their difficulty."""
        prompts, after, skipped = self.stream.draw(cursor, count)
        rollouts = self._complete(lm, prompts, ("train", rollout), seconds)
        if self.rates is None:
            return rollouts, after, {}
        self.rates.skipped += skipped
        buckets = self.rates.record(rollouts, cursor // len(self.stream.prompts))
        return rollouts, after, {"skipped_prompts": float(self.rates.skipped), **buckets}

    def _without_signal(self, rollouts: Rollouts) -> Tensor:
        """Return (B,) True where all rewards of a group are equal; a group of one is not compared with itself."""
        if self.settings.group_size == 1:
            return torch.zeros(len(rollouts.prompts), dtype=torch.bool)
        return zero_signal(rollouts.rewards, rollouts.present)

    @torch.no_grad()
    def validate(self, lm: Any) -> dict[str, float]:
        """Return the mean reward of valid prompts, and the domain's own metrics.

        NaN where none could be scored: such a look never wins, also where rewards are negative.
        """
        rollouts = self._complete(lm, self.valid, ("valid",), {"rollout": 0.0, "reward": 0.0})
        present = rollouts.present
        sums = rollouts.plain.masked_fill(~present, 0.0).sum(-1)  # (B,)
        found = {"reward": float(sums.sum() / present.sum())}
        each = {"reward": (sums / present.sum(-1))[present.any(-1)]}  # a figure per prompt
        mine = self._share(self.valid)
        values = self.domain.validate(lm, self.tokenizer, mine, self.settings.validate_on, self.device)
        parts = _gather({name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()})
        each |= {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.errors = {name: _standard_error(values) for name, values in each.items()}
        return found | {name: float(each[name].mean()) for name in parts[0]}

    def _share(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        rank, processes = _place()
        bounds = [len(prompts) * part // processes for part in (rank, rank + 1)]
        return list(prompts[bounds[0] : bounds[1]])

    def _complete(self, lm: Any, prompts: Sequence[Prompt], key: tuple, seconds: dict[str, float]) -> Rollouts:
        """Complete and reward prompts, over all ranks: each its share, whole groups."""
        started = time.perf_counter()
        mine = self._share(prompts)
        parts = [self._request(lm, mine[start : start + self.chunk], key) for start in range(0, len(mine), self.chunk)]
        rollouts = concat(parts) if parts else None
        if self.amend is not None and key[0] == "train" and rollouts is not None:
            rollouts = self.amend(rollouts)
        seconds["rollout"] += time.perf_counter() - started
        started = time.perf_counter()
        if rollouts is not None:
            self.rewarder(rollouts)
        seconds["reward"] += time.perf_counter() - started
        return concat([part for part in _gather(rollouts) if part is not None])

    def _request(self, lm: Any, prompts: list[Prompt], key: tuple) -> Rollouts:
        return self.rollout(
            RolloutRequest(
                lm=lm,
                tokenizer=self.tokenizer,
                prompts=prompts,
                group_size=self.settings.group_size,
                constraint=self.constraint,
                normalization=self.domain.normalization,
                alive=None,
                generators=[generator_for(self.seed, *key, prompt.key) for prompt in prompts],
                device=self.device,
            )
        )


def _standard_error(values: Tensor) -> float:
    """Return the standard error of a mean; 0 where there are too few values to tell."""
    return float(values.float().std() / len(values) ** 0.5) if len(values) > 1 else 0.0


def _place() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _gather(value: Any) -> list[Any]:
    """Return every rank's value, in the order of ranks."""
    _, processes = _place()
    if processes == 1:
        return [value]
    values: list[Any] = [None] * processes
    dist.all_gather_object(values, value)
    return values
