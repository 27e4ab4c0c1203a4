"""Process rewards: what a model says of every step of a completion, as one score or credited where steps end.

Rollouts are scored by the very tokens that were sampled. Lightman et al. 2023, arXiv 2305.20050; that a step is paid
what it adds to the whole, and not its own score, keeps a sum over steps from rewarding ever more of them (Cheng et al.
2025, arXiv 2504.15275, for the minimum).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlkit.config.models import CausalLMSettings
from rlkit.config.process_rewards import ProcessRewardSettings
from rlkit.errors import ModelError
from rlkit.models.head_files import notes
from rlkit.models.step_head import StepRow, load_step_head, score_steps, step_rows
from rlkit.models.tokenizer import fingerprint
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.text_rewards import Outcome, Sample, TextReward
from rlkit.reward_models.scorer import MAX_TOKENS, tokenizer_problem

SEPARATOR = "\n"
"""What parts steps if neither settings nor training say."""


@dataclass(frozen=True, eq=False)
class StepModel:
    """A process reward model.

    Args:
        folder: where it was loaded from.
        model: in evaluation mode, frozen.
        tokenizer: its own.
        separator: what parts steps.
        max_tokens: of a row.
    """

    folder: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    separator: str
    max_tokens: int


class ProcessReward(TextReward):
    """The scores of a completion's steps, on rollouts or on samples of text.

    Args:
        settings: how scores are put together, and where they are paid.
        scorer: the model.
        domain: whose rollouts are scored; None where there are none.
    """

    def __init__(self, settings: ProcessRewardSettings, scorer: StepModel, domain: Any) -> None:
        super().__init__(lambda samples: [outcome.score for outcome in self.judge(samples)], domain)
        self.settings, self.scorer = settings, scorer
        self.progress: Callable[[float], None] | None = None  # called with the share of the rows that is done
        self.checked = False

    @property
    def tokenizer_fingerprint(self) -> str:
        """Return the fingerprint of the model's tokenizer."""
        return fingerprint(self.scorer.tokenizer)

    def to(self, device: Any) -> ProcessReward:
        """Move the model, in place."""
        self.scorer.model.to(device)
        return self

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """Return the text that an answer to a conversation follows, by the model's chat template."""
        tokenizer = self.scorer.tokenizer
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def judge(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Score samples; the parts of a score are those of its steps, ``step_1`` and so on."""
        started = time.perf_counter()
        tokenizer = self.scorer.tokenizer
        prompts, completions = (
            tokenizer(texts, add_special_tokens=False).input_ids if texts else []
            for texts in ([one.prompt for one in samples], [one.completion for one in samples])
        )
        rows = self._rows(prompts, completions, [sample.truncated for sample in samples])
        scores = self._scored(rows)
        took = 1000 * (time.perf_counter() - started) / max(len(samples), 1)
        return [Outcome(self._whole(row, said), "", took, _named(said)) for row, said in zip(rows, scores)]

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """Return (B, G) scores or, where steps are credited, (B, G, C); 0 where a completion is absent.

        Raises:
            ModelError: the domain's tokenizer is not the model's.
        """
        self._check_tokenizer()
        batch, places = rollouts.batch, rollouts.present.nonzero().tolist()
        prompts = [batch.prompts[b][batch.prompt_mask[b].bool()].tolist() for b, _ in places]
        cut = [bool(rollouts.truncated[b, g]) for b, g in places]
        said = [batch.completions[b, g][batch.mask[b, g].bool()].tolist() for b, g in places]
        rows = self._rows(prompts, [ids if short else ids[:-1] for ids, short in zip(said, cut)], cut)
        scores = self._scored(rows)
        self.outcomes = [Outcome(self._whole(row, found), "", 0.0, _named(found)) for row, found in zip(rows, scores)]
        if self.settings.credit == "end":
            whole = torch.zeros(batch.mask.shape[:2])  # (B, G)
            whole[rollouts.present] = torch.tensor([outcome.score for outcome in self.outcomes])
            return whole
        result = torch.zeros(batch.mask.shape)  # (B, G, C)
        for (b, g), ids, row, found in zip(places, said, rows, scores):
            for place, share in self._credits(row, found, len(ids)):
                result[b, g, place] += share
        return result

    def _rows(self, prompts: Any, completions: Any, truncated: Sequence[bool]) -> list[StepRow]:
        if not prompts:
            return []
        tokenizer, separator, limit = self.scorer.tokenizer, self.scorer.separator, self.scorer.max_tokens
        return step_rows(tokenizer, prompts, completions, truncated, separator=separator, max_tokens=limit)

    def _scored(self, rows: Sequence[StepRow]) -> list[list[float]]:
        def progress(done: int) -> None:
            if self.progress is not None:
                self.progress(done / max(len(rows), 1))

        limits: dict[str, Any] = {"batch_size": self.settings.batch_size, "batch_tokens": self.settings.batch_tokens}
        return score_steps(self.scorer.model, rows, progress=progress, **limits)

    def _counted(self, row: StepRow, scores: Sequence[float]) -> list[float]:
        """Return the scores that count: a step that was not finished is one of 0."""
        return [*scores, 0.0] if row.unfinished and self.settings.unfinished == "wrong" else list(scores)

    def _whole(self, row: StepRow, scores: Sequence[float]) -> float:
        return aggregated(self._counted(row, scores), self.settings.aggregate)

    def _credits(self, row: StepRow, scores: Sequence[float], length: int) -> list[tuple[int, float]]:
        """Return (place in the completion, what is paid there); an unfinished step is paid at the last token."""
        places = [end - row.prompt_tokens for end in row.ends]
        shares = step_shares(self._counted(row, scores), self.settings.aggregate)
        return list(zip([*places, length - 1], shares))

    def _check_tokenizer(self) -> None:
        if self.checked:
            return
        problem = tokenizer_problem(self.scorer.folder, self.scorer.tokenizer, self.domain.tokenizer)
        if problem:
            raise ModelError(problem)
        self.checked = True


def _named(scores: Sequence[float]) -> dict[str, float]:
    return {f"step_{index}": score for index, score in enumerate(scores, 1)}


def aggregated(scores: Sequence[float], how: str) -> float:
    """Return one score out of those of the steps, 0 where there is none.

    Args:
        scores: probabilities, in the order of the steps.
        how: product, min, mean or last.
    """
    if not scores:
        return 0.0
    return sum(scores) / len(scores) if how == "mean" else reduce(_JOIN[how], scores)


def step_shares(scores: Sequence[float], how: str) -> list[float]:
    """Return what each step adds to the score of the whole: all of them add up to it.

    The mean gives each step its score over the number of steps. The others give the first step its score, and every
    further one the change that it makes to the score so far, which for the product and the minimum is never above 0.

    Args:
        scores: probabilities, in the order of the steps.
        how: product, min, mean or last.
    """
    if how == "mean":
        return [score / len(scores) for score in scores]
    so_far = list(accumulate(scores, _JOIN[how]))
    return [new - old for old, new in zip([0.0, *so_far], so_far)]


_JOIN: dict[str, Callable[[float, float], float]] = {
    "product": lambda whole, score: whole * score,
    "min": min,
    "last": lambda whole, score: score,
}


def process_reward(settings: ProcessRewardSettings, domain: Any) -> ProcessReward:
    """Load the process reward model that the settings name.

    Raises:
        ModelError: the folder holds none, or none is named.
    """
    folder = settings.path
    if folder is None:
        raise ModelError("process reward: no folder is named; give it a path, such as path=DIR")
    form = CausalLMSettings(path=folder, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code)
    loaded = load_step_head(form, folder, name="process reward")
    loaded.model.eval().requires_grad_(False)
    noted = notes(folder)
    separator = settings.separator or str(noted.get("separator", SEPARATOR))
    max_tokens = settings.max_tokens or int(noted.get("max_tokens", MAX_TOKENS))
    return ProcessReward(settings, StepModel(folder, loaded.model, loaded.tokenizer, separator, max_tokens), domain)
