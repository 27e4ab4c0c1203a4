"""Rewards that read text: rollouts are decoded into samples, and each sample gets a score."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from rlkit.errors import RlkitError, TrainingError
from rlkit.policy.rollouts import Rollouts

if TYPE_CHECKING:  # a reward's worker process starts without transformers
    from transformers import PreTrainedTokenizerBase


MAX_REASON = 500
"""Characters of why a sample has no score, its place aside."""
_OURS = Path(__file__).resolve().parents[1]


class Answer(NamedTuple):
    """What a model said."""

    text: str
    """Without the end token; any other special token stays visible, so that it cannot pass for nothing."""
    truncated: bool
    """Whether it was cut off before its end."""
    tokens: int
    """Its length, the end token included."""


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Tensor, mask: Tensor, truncated: Tensor) -> list[Answer]:
    """Turn completions into answers.

    Args:
        tokenizer: the policy's.
        tokens: (N, C) right-padded ids.
        mask: (N, C) True up to and including the end token.
        truncated: (N,) True where no end token came in time.
    """
    rows = [row[kept].tolist() for row, kept in zip(tokens, mask)]
    ended = [row[-1:] == [tokenizer.eos_token_id] and not cut for row, cut in zip(rows, truncated.tolist())]
    spoken = [row[:-1] if end else row for row, end in zip(rows, ended)]
    texts = tokenizer.batch_decode(spoken, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return [Answer(text, cut, len(row)) for text, cut, row in zip(texts, truncated.tolist(), rows)]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a reward reads.

    Args:
        prompt: the rendered prompt.
        completion: without its end token.
        answer: what counts as right; empty where there is none.
        truncated: whether the completion was cut off before its end.
        context: the domain's own view of the record.
    """

    prompt: str
    completion: str
    answer: str = ""
    truncated: bool = False
    context: Any = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reward said about one sample.

    Args:
        score: NaN where there is none: the sample is left out of its group instead of being scored 0.
        error: why there is none; empty where there is one.
        milliseconds: what it took; of a batch that was scored together, its share.
        parts: what the score is made of, by name, where the reward tells.
    """

    score: float
    error: str = ""
    milliseconds: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)


class Scores(NamedTuple):
    """The scores of samples that are made of parts."""

    totals: Sequence[float]
    parts: Mapping[str, Sequence[float]]
    """By name, a number for each sample."""


Score = Callable[[Sequence[Sample]], Sequence[float] | Scores]


class TextReward:
    """A reward on rollouts out of a score on samples; ``score`` alone serves where there are rows but no rollouts.

    Args:
        score: samples in, one number each out, with their parts where it tells; NaN where a sample cannot be scored.
        domain: whose tokenizer decodes rollouts; None where there are none.
    """

    isolates: ClassVar[bool] = True
    """Whether an error is taken for that of single samples; a model's is not."""

    def __init__(self, score: Score, domain: Any) -> None:
        self.score, self.domain = score, domain
        self.outcomes: list[Outcome] = []
        """Of the last rollouts: one for each present completion, in order."""

    def judge(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Score samples, and say what each took and why one has no score.

        Where the reward raises, samples that it raises for alone have no score; the others are scored again, together,
        since it may compare them.

        Raises:
            RlkitError: the reward says itself what is to be mended.
        """
        found = self._tried(samples)
        if isinstance(found, list):
            return found
        alone = [self._tried([sample]) for sample in samples] if len(samples) > 1 else [found]
        kept = [sample for sample, said in zip(samples, alone) if isinstance(said, list)]
        again = self._tried(kept) if kept else []
        others = iter(again if isinstance(again, list) else [Outcome(math.nan, again)] * len(kept))
        return [next(others) if isinstance(said, list) else Outcome(math.nan, said) for said in alone]

    def _tried(self, samples: Sequence[Sample]) -> list[Outcome] | str:
        """Return what each sample gets, or why the reward raised; an error that is no sample's is raised."""
        try:
            return self._scored_as_one(samples)
        except (RlkitError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            if not self.isolates:
                raise
            return reason(error)

    def _scored_as_one(self, samples: Sequence[Sample]) -> list[Outcome]:
        started = time.perf_counter()
        found = self.score(samples)
        totals, parts = found if isinstance(found, Scores) else (found, {})
        scores = [float(score) + 0.0 for score in totals]  # + 0.0: no -0.0
        if len(scores) != len(samples):
            raise TrainingError(
                f"reward: {len(scores)} scores for {len(samples)} completions; look at the reward's code"
            )
        took = 1000 * (time.perf_counter() - started) / max(len(samples), 1)
        return [
            Outcome(
                score,
                "the reward gave no score" if math.isnan(score) else "",
                took,
                {name: float(values[index]) for name, values in parts.items()},
            )
            for index, score in enumerate(scores)
        ]

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """Return (B, G) scores, 0 where a completion is absent, NaN where it could not be scored."""
        present = rollouts.present
        scores = torch.zeros(present.shape)
        self.outcomes = self.judge(samples(rollouts, self.domain.tokenizer))
        scores[present] = torch.tensor([outcome.score for outcome in self.outcomes], dtype=torch.float32)
        return scores


def reason(error: BaseException) -> str:
    """Return an error as a line that says why a sample has no score, and where in the reward's code it arose."""
    said = str(error) if isinstance(error, RlkitError) else f"{type(error).__name__}: {_said(error)}"
    text = " ".join(said[: MAX_REASON + 1].split()).removesuffix(":")
    text = text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 3]}..."
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be written
    return f"{text}{_place(error)}"


def _place(error: BaseException) -> str:
    """Return the line in the first file beyond ours that was reached last; what that calls is not its author's."""
    frames = [frame for frame in extract_tb(error.__traceback__) if not Path(frame.filename).is_relative_to(_OURS)]
    lines = [frame.lineno for frame in frames if frame.filename == frames[0].filename]
    return f" ({Path(frames[0].filename).name}:{lines[-1]})" if frames else ""


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # its __str__ is the user's, too
        return "what it says cannot be read"


def samples(rollouts: Rollouts, tokenizer: PreTrainedTokenizerBase) -> list[Sample]:
    """Return the present completions of all groups as text, in order."""
    present, batch = rollouts.present, rollouts.batch
    answers = decode(tokenizer, batch.completions[present], batch.mask[present], rollouts.truncated[present])
    prompts = [rollouts.prompts[row] for row in present.nonzero()[:, 0].tolist()]
    return [
        Sample(prompt.text, answer.text, prompt.answer, answer.truncated, prompt.context)
        for prompt, answer in zip(prompts, answers)
    ]
