"""General ability: which of some options does a model find likeliest after a text?

The log-likelihood of an option is divided by its bytes, so that long ones are not at a disadvantage, and the texts are
plain, without a chat template. The set that comes with rlkit is small: it shows that a model was damaged, not how good
it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlkit.chat.evaluation_data import AbilityItem
from rlkit.chat.likelihood import ScoredRow, cut_row, token_logprobs


def ability_hits(
    lm: Any,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[AbilityItem],
    *,
    limit: int | None,
    batch_size: int,
    device: Any,
) -> np.ndarray:
    """Return (I,) 1 where the right option is the likeliest per byte, else 0; ties are wrong.

    Args:
        lm: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        items: I items.
        limit: tokens that the model has room for; None: no limit.
        batch_size: options per forward.
        device: where the model lies.
    """
    rows = [cut_row(row, limit) for item in items for row in option_rows(tokenizer, item)]
    sums = [float(values.sum()) for values in token_logprobs(lm, rows, batch_size=batch_size, device=device)]
    hits, start = [], 0
    for item in items:
        options = sums[start : start + len(item.options)]
        per_byte = [total / len(option.encode()) for total, option in zip(options, item.options)]
        others = [value for index, value in enumerate(per_byte) if index != item.answer]
        hits.append(float(per_byte[item.answer] > max(others)))
        start += len(item.options)
    return np.array(hits)


def option_rows(tokenizer: PreTrainedTokenizerBase, item: AbilityItem) -> list[ScoredRow]:
    """Tokenize the prompt with each option as one text; what follows their common beginning is scored.

    A tokenizer may join the end of the prompt with the beginning of an option, so the border is looked for in the
    tokens: all options of an item are scored from the same one on.
    """
    whole = [tokenizer(item.prompt + option).input_ids for option in item.options]
    alone = tokenizer(item.prompt).input_ids
    shared = min(_common(ids, alone) for ids in whole)
    if shared == 0:
        whole, shared = [[tokenizer.eos_token_id, *ids] for ids in whole], 1
    return [ScoredRow(ids, [False] * shared + [True] * (len(ids) - shared)) for ids in whole]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike."""
    return next((index for index, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))


def chance(items: Sequence[AbilityItem]) -> float:
    """Return the share of hits that guessing gets."""
    return float(np.mean([1 / len(item.options) for item in items]))
