"""Learned rewards: what one reward model, or an ensemble of them, says about rollouts and about rows of text.

Rollouts are scored by the very tokens that were sampled: a completion that was cut off has no end token, and nothing is
decoded and tokenized anew. Ensembles: Coste et al. 2023, arXiv 2310.02743, sections 3.2 and 4; the minimum is their
worst-case optimization.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlkit.config.models import CausalLMSettings
from rlkit.config.reward_models import LearnedRewardSettings
from rlkit.errors import ModelError
from rlkit.models.head_files import normalization, notes
from rlkit.models.scalar_head import load_scalar_head, score_rows, text_ids
from rlkit.models.tokenizer import fingerprint
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.text_rewards import Sample, TextReward

MAX_TOKENS = 1024
"""Where rows are cut if neither settings nor training say."""


@dataclass(frozen=True, eq=False)
class Member:
    """One reward model.

    Args:
        folder: where it was loaded from.
        model: in evaluation mode, frozen.
        tokenizer: its own.
        max_tokens: longer rows are cut on the left.
        mean: subtracted from its scores.
        std: they are divided by this.
    """

    folder: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    mean: float
    std: float


class LearnedReward(TextReward):
    """The score of one or several reward models, on rollouts or on samples of text.

    Args:
        settings: how scores are made and put together.
        members: the models.
        domain: whose rollouts are scored; None where there are none.
    """

    isolates: ClassVar[bool] = False

    def __init__(self, settings: LearnedRewardSettings, members: Sequence[Member], domain: Any) -> None:
        super().__init__(self._score_samples, domain)
        self.settings, self.members = settings, members
        self.progress: Callable[[float], None] | None = None  # called with the share of the rows that is done
        self.checked = False

    @property
    def tokenizer_fingerprint(self) -> str:
        """Return the fingerprint of the first model's tokenizer; those of the others are checked beside it."""
        return fingerprint(self.members[0].tokenizer)

    def to(self, device: Any) -> LearnedReward:
        """Move all models, in place."""
        for member in self.members:
            member.model.to(device)
        return self

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """Return the text that an answer to a conversation follows, by the first model's chat template."""
        tokenizer = self.members[0].tokenizer
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """Return (B, G) scores, 0 where a completion is absent.

        Raises:
            ModelError: the domain's tokenizer is not that of every model.
        """
        self._check_tokenizers()
        present = rollouts.present
        rows = token_rows(rollouts)
        scores = torch.zeros(present.shape)
        scores[present] = self._together([self._scored(member, rows) for member in self.members])
        return scores

    def _score_samples(self, samples: Sequence[Sample]) -> list[float]:
        """Score text, tokenized as in training; a completion that was cut off has no end token."""
        triples = [(sample.prompt, sample.completion, not sample.truncated) for sample in samples]
        parts = [
            self._scored(member, text_ids(member.tokenizer, triples, member.max_tokens)) for member in self.members
        ]
        return self._together(parts).tolist()

    def _scored(self, member: Member, rows: Sequence[Sequence[int]]) -> Tensor:
        cut = [row[-member.max_tokens :] for row in rows]
        before, total = self.members.index(member), len(self.members) * max(len(rows), 1)

        def progress(done: int) -> None:
            if self.progress is not None:
                self.progress((before * len(rows) + done) / total)

        scores = score_rows(
            member.model,
            cut,
            batch_size=self.settings.batch_size,
            batch_tokens=self.settings.batch_tokens,
            progress=progress,
        )
        return (scores - member.mean) / member.std

    def _together(self, parts: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(parts))  # (members, N)
        return stacked.mean(0) if self.settings.aggregate == "mean" else stacked.min(0).values

    def _check_tokenizers(self) -> None:
        if self.checked:
            return
        problems = [
            problem
            for member in self.members
            if (problem := tokenizer_problem(member.folder, member.tokenizer, self.domain.tokenizer))
        ]
        if problems:
            raise ModelError(*problems)
        self.checked = True


def tokenizer_problem(folder: str, tokenizer: PreTrainedTokenizerBase, policy: PreTrainedTokenizerBase) -> str | None:
    """Return what is wrong where a reward model has another tokenizer than the policy, None where it has the same."""
    own, wanted = fingerprint(tokenizer), fingerprint(policy)
    if own == wanted:
        return None
    return (
        f"reward model: the tokenizer of {folder!r} ({own}) is not the policy's ({wanted}), so the sampled "
        "tokens would mean something else; train the reward model from the policy's starting model"
    )


def token_rows(rollouts: Rollouts) -> list[list[int]]:
    """Return prompt and completion of every present completion as one row of token ids, in order."""
    batch, rows = rollouts.batch, []
    for index, member in rollouts.present.nonzero().tolist():
        prompt = batch.prompts[index][batch.prompt_mask[index].bool()]
        completion = batch.completions[index, member][batch.mask[index, member].bool()]
        rows.append([*prompt.tolist(), *completion.tolist()])
    return rows


def learned_reward(settings: LearnedRewardSettings, domain: Any) -> LearnedReward:
    """Load the reward models that the settings name.

    Raises:
        ModelError: a folder holds no reward model, or none is named.
    """
    if not settings.folders:
        raise ModelError("reward model: no folder is named; give it a path, such as model=DIR")
    return LearnedReward(settings, [_member(settings, folder) for folder in settings.folders], domain)


def _member(settings: LearnedRewardSettings, folder: str) -> Member:
    form = CausalLMSettings(path=folder, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code)
    loaded = load_scalar_head(form, folder, name="reward model")
    loaded.model.eval().requires_grad_(False)
    spread = normalization(folder) if settings.normalize else (0.0, 1.0)
    if spread is None:
        raise ModelError(
            f"reward model: {folder!r} notes no mean and standard deviation of its scores; set normalize to false"
        )
    max_tokens = settings.max_tokens or int(notes(folder).get("max_tokens", MAX_TOKENS))
    return Member(folder, loaded.model, loaded.tokenizer, max_tokens, *spread)
