"""Rank the catalog for prompts with a trained model: constrained beams, wide, batched by length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from rlkit.policy.beam_tree import beam_search
from rlkit.policy.sampler import encode_prompts, prompt_limit
from rlkit.records import Prompt
from rlkit.recsys.metrics import NO_SID


class Ranking(NamedTuple):
    """Ranked lists of R prompts."""

    sids: np.ndarray
    """(R, K) distinct-SID indices, best first; ``NO_SID`` where fewer than K exist."""
    scores: np.ndarray
    """(R, K) summed log-probs."""
    invalid: int
    """Generated sequences that are no item; 0 by construction, and asserted."""


@torch.no_grad()
def rank(
    lm: Any,
    tokenizer: Any,
    domain: Any,
    prompts: Sequence[Prompt],
    *,
    num_beams: int,
    batch_size: int,
    device: Any,
    exclude_history: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Ranking:
    """Rank the catalog for each prompt.

    Args:
        lm: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        domain: a bound ``RecommendationDomain``.
        prompts: R records.
        num_beams: K.
        batch_size: prompts that are decoded together.
        device: where the model lies.
        exclude_history: leave out what the user already has.
        progress: told how many prompts are done.
    """
    trie = domain.constraint.to(device)
    limit = prompt_limit(lm, trie.max_tokens)
    order = np.argsort([len(prompt.text) for prompt in prompts], kind="stable")
    sids = np.full((len(prompts), num_beams), NO_SID, dtype=np.int64)
    scores = np.full((len(prompts), num_beams), -np.inf)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        part = [prompts[row] for row in rows]
        ids, mask = encode_prompts(tokenizer, part, device, limit)
        alive = domain.alive(part, exclude_history)
        beams = beam_search(
            lm,
            ids,
            mask,
            trie,
            num_beams=num_beams,
            normalization=domain.normalization,
            alive=None if alive is None else alive.to(device),
            pad_token_id=tokenizer.pad_token_id,
        )
        found = trie.leaf_sequence(beams.leaves).cpu().numpy()  # -1 (NO_SID) where a beam is absent
        assert ((found >= 0) == np.isfinite(beams.scores.cpu().numpy())).all(), "a beam is no item"
        sids[rows, : found.shape[1]], scores[rows, : found.shape[1]] = found, beams.scores.float().cpu().numpy()
        if progress:
            progress(min(start + batch_size, len(order)))
    return Ranking(sids, scores, invalid=0)
