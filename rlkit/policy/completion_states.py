"""The hidden states that predict completion tokens, with the prompt computed once or once per completion.

Grouped: one row holds a prompt and all of its completions, ``prompt | c1 | c2 | ... | cG``. A 4-D mask shows each
completion token the prompt and its own completion, ``position_ids`` restart after the prompt, and the last prompt
position predicts the first token of all completions at once. Last tokens predict nothing and are left out.

Dense: every completion has its own row, as in any other trainer.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from rlkit.models.attention import additive_mask, decoder
from rlkit.policy.group_batch import GroupBatch


class Sites(NamedTuple):
    """The N completion tokens that count, and the R <= N states that predict them."""

    states: Tensor
    """(R, D) one state per predicting position; in the grouped forward first tokens of a group share one."""
    rows: Tensor
    """(N,) which state predicts each token."""
    places: Tensor
    """(N,) where each token stands in the flattened (B, G, C)."""


def grouped_states(model: nn.Module, batch: GroupBatch) -> Tensor:
    """Return (B, G, C, D) the states that predict each completion token, prompts computed once; 0 where none counts."""
    return spread(sites(model, batch, grouped=True), batch)


def dense_states(model: nn.Module, batch: GroupBatch) -> Tensor:
    """Return what ``grouped_states`` returns, each prompt computed once per completion."""
    return spread(sites(model, batch, grouped=False), batch)


def sites(model: nn.Module, batch: GroupBatch, *, grouped: bool) -> Sites:
    """Run the decoder and return the states of those positions that predict a token that counts."""
    hidden, predictors = (_grouped_hidden if grouped else _dense_hidden)(model, batch)
    places = batch.mask.flatten().nonzero().squeeze(1)  # (N,)
    positions, rows = predictors.flatten()[places].unique(return_inverse=True)  # (R,), (N,)
    return Sites(hidden.flatten(0, 1).index_select(0, positions), rows, places)


def spread(found: Sites, batch: GroupBatch) -> Tensor:
    """Return (B, G, C, D) the states at the place of the token that they predict, 0 elsewhere."""
    values = found.states[found.rows]  # (N, D)
    empty = values.new_zeros(batch.mask.numel(), values.shape[-1])
    return empty.index_copy(0, found.places, values).view(*batch.mask.shape, -1)


def visible_keys(prompt_mask: Tensor, group_size: int, tokens: int) -> Tensor:
    """Return (B, T, T) True where a position of a grouped row sees another one.

    Completions are padded on the right, so what counts never looks at their padding. Padding of the prompt sees itself
    only: a position without any key gives NaN.

    Args:
        prompt_mask: (B, P) True for tokens.
        group_size: G.
        tokens: positions per completion.
    """
    prompt_tokens = prompt_mask.shape[1]
    place = torch.arange(prompt_tokens + group_size * tokens, device=prompt_mask.device)  # (T,)
    owner = torch.where(place < prompt_tokens, -1, (place - prompt_tokens) // max(tokens, 1))  # (T,) -1: the prompt
    seen = (owner == -1) | (owner == owner[:, None])  # (T, T)
    seen = seen & (place <= place[:, None])
    is_key = nn.functional.pad(prompt_mask, (0, len(place) - prompt_tokens), value=True)  # (B, T)
    return seen & is_key[:, None] | torch.eye(len(place), dtype=torch.bool, device=place.device)


def _grouped_hidden(model: nn.Module, batch: GroupBatch) -> tuple[Tensor, Tensor]:
    """Return hidden states (B, T, D), T = P + G (C - 1), and the flat position that predicts each token (B, G, C)."""
    (num_prompts, group_size, tokens), prompt_tokens = batch.mask.shape, batch.prompts.shape[1]
    inner, inputs = decoder(model), batch.completions[:, :, :-1]
    visible = visible_keys(batch.prompt_mask, group_size, tokens - 1)
    positions = _positions(batch, group_size, tokens - 1)
    hidden = inner(
        input_ids=torch.cat([batch.prompts, inputs.flatten(1)], 1),  # (B, T)
        attention_mask=additive_mask(visible, cast(Any, inner).dtype),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    group, token = torch.arange(group_size)[:, None], torch.arange(tokens)
    predictors = prompt_tokens - 1 + token + torch.where(token > 0, group * (tokens - 1), 0)  # (G, C)
    starts = torch.arange(num_prompts)[:, None, None] * hidden.shape[1]
    return hidden, (starts + predictors).to(hidden.device)


def _dense_hidden(model: nn.Module, batch: GroupBatch) -> tuple[Tensor, Tensor]:
    """Return hidden states (B G, P + C - 1, D) and the flat position that predicts each token (B, G, C)."""
    num_prompts, group_size, tokens = batch.mask.shape
    inner = decoder(model)
    prompts = batch.prompts[:, None].expand(-1, group_size, -1)
    prompt_mask = batch.prompt_mask[:, None].expand(-1, group_size, -1)
    attention = torch.cat([prompt_mask, batch.mask[:, :, :-1]], 2).flatten(0, 1)  # (B G, P + C - 1)
    inputs: dict[str, Any] = {"attention_mask": attention.long(), "use_cache": False}
    if "position_ids" in inspect.signature(inner.forward).parameters:
        inputs["position_ids"] = (attention.cumsum(1) - 1).clamp_min(0)
    ids = torch.cat([prompts, batch.completions[:, :, :-1]], 2).flatten(0, 1)
    hidden = inner(input_ids=ids, **inputs).last_hidden_state
    first = torch.arange(num_prompts * group_size) * ids.shape[1] + batch.prompts.shape[1] - 1
    predictors = (first[:, None] + torch.arange(tokens)).view(num_prompts, group_size, tokens)
    return hidden, predictors.to(hidden.device)


def _positions(batch: GroupBatch, group_size: int, tokens: int) -> Tensor:
    """Return (B, T) position ids: padding does not count, and every completion goes on where the prompt ends."""
    counted = batch.prompt_mask.cumsum(1)  # (B, P)
    after = counted[:, -1:] + torch.arange(tokens, device=counted.device)  # (B, C - 1)
    return torch.cat([(counted - 1).clamp_min(0), after.repeat(1, group_size)], 1)
