"""What a model thinks of given tokens: their log-probs, and how far its distribution is from a reference's.

Rows hold the ids of a text and which of them are scored. States are computed once per batch, logits in parts, so that a
large vocabulary never fills the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlkit.models.attention import decoder, head_logits
from rlkit.ops.logprobs import log_distribution, selected_logprobs
from rlkit.records import Demonstration

LOGITS_AT_ONCE = 2**26
"""Numbers held at once, of one model: 256 MB in float32."""


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A text as ids.

    Args:
        ids: its tokens.
        scored: for each token whether it counts; the first one never does, since nothing comes before it.
    """

    ids: list[int]
    scored: list[bool]


def demonstration_rows(
    tokenizer: PreTrainedTokenizerBase, demonstrations: Sequence[Demonstration], limit: int | None
) -> list[ScoredRow]:
    """Tokenize demonstrations as training does, part by part; what the model answered counts, its end included.

    Args:
        tokenizer: the model's.
        demonstrations: the records.
        limit: tokens that the model has room for; the beginning of a longer row is cut off. None: no limit.
    """
    return [_demonstration_row(tokenizer, one, limit) for one in demonstrations]


def _demonstration_row(tokenizer: PreTrainedTokenizerBase, one: Demonstration, limit: int | None) -> ScoredRow:
    turns = [*one.earlier, (one.prompt, one.completion)]
    ids: list[int] = []
    scored: list[bool] = []
    for parts in turns:
        for text, counts in zip(parts, (False, True)):
            found = tokenizer(text, add_special_tokens=False).input_ids
            ids += found
            scored += [counts] * len(found)
    return cut_row(ScoredRow([*ids, tokenizer.eos_token_id], [*scored, True]), limit)


def cut_row(row: ScoredRow, limit: int | None) -> ScoredRow:
    """Return the last ``limit`` tokens of a row, whose first one does not count."""
    kept = len(row.ids) if limit is None else min(limit, len(row.ids))
    return ScoredRow(row.ids[-kept:], [False, *row.scored[len(row.scored) - kept + 1 :]])


@torch.no_grad()
def token_logprobs(lm: Any, rows: Sequence[ScoredRow], *, batch_size: int, device: Any) -> list[np.ndarray]:
    """Return for each row the log-probs of its scored tokens, in nats.

    Args:
        lm: a causal language model in evaluation mode.
        rows: R rows.
        batch_size: rows per forward.
        device: where the model lies.
    """
    found: list[np.ndarray] = [np.zeros(0)] * len(rows)
    for part in _batches(rows, batch_size):
        ids, mask, scored = _padded([rows[index] for index in part], device)
        states, tokens = _states(lm, ids, mask, scored), ids[:, 1:][scored]  # (N, D), (N,)
        pieces = [
            selected_logprobs(head_logits(lm, states[piece]), tokens[piece]) for piece in _pieces(lm, len(states))
        ]
        _give_back(found, part, torch.cat(pieces) if pieces else tokens.float(), scored)
    return found


@torch.no_grad()
def token_kl(lm: Any, reference: Any, rows: Sequence[ScoredRow], *, batch_size: int, device: Any) -> list[np.ndarray]:
    """Return for each row the exact KL(model || reference) of the distribution before every scored token, in nats.

    Args:
        lm: the model, in evaluation mode.
        reference: another one with the same vocabulary.
        rows: R rows, which the model sampled.
        batch_size: rows per forward.
        device: where both lie.
    """
    found: list[np.ndarray] = [np.zeros(0)] * len(rows)
    for part in _batches(rows, batch_size):
        ids, mask, scored = _padded([rows[index] for index in part], device)
        ours, theirs = _states(lm, ids, mask, scored), _states(reference, ids, mask, scored)
        pieces = [
            _kl(head_logits(lm, ours[piece]), head_logits(reference, theirs[piece])) for piece in _pieces(lm, len(ours))
        ]
        _give_back(found, part, torch.cat(pieces) if pieces else ids[0, :0].float(), scored)
    return found


def _kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """Return (N,) sum_v p (log p - log q) of logits (N, V); rounding alone could make it negative."""
    logprobs, theirs = log_distribution(logits), log_distribution(reference_logits)
    return (logprobs.exp() * (logprobs - theirs)).sum(-1).clamp_min(0)


def _batches(rows: Sequence[ScoredRow], size: int) -> Iterator[list[int]]:
    """Yield indices of rows of about the same length."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _padded(rows: Sequence[ScoredRow], device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return (B, T) right-padded ids, their mask, and (B, T - 1) which of the tokens from the second on are scored."""
    width = max(2, *(len(row.ids) for row in rows))
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows], device=device)
    scored = torch.tensor([row.scored + [False] * (width - len(row.ids)) for row in rows], device=device)
    return ids, mask, scored[:, 1:]


def _states(lm: Any, ids: Tensor, mask: Tensor, scored: Tensor) -> Tensor:
    """Return (N, D) the states before the scored tokens, row by row."""
    hidden = decoder(lm)(input_ids=ids, attention_mask=mask, use_cache=False)[0]  # (B, T, D)
    return hidden[:, :-1][scored]


def _pieces(lm: Any, count: int) -> Iterator[slice]:
    config: Any = decoder(lm).config
    size = max(1, LOGITS_AT_ONCE // config.vocab_size)
    for start in range(0, count, size):
        yield slice(start, start + size)


def _give_back(found: list[np.ndarray], part: Sequence[int], values: Tensor, scored: Tensor) -> None:
    counts = scored.sum(-1).tolist()
    for index, row in zip(part, values.double().cpu().split(counts)):
        found[index] = row.numpy()
