"""Logits along growing trees of completions: the forward passes below ``beam_tree``.

``PackedRows`` computes a prompt once, keeps one cache row per prompt, and appends every level of beams to it as extra
positions; a 4-D additive mask shows each beam its prompt, its ancestors and itself, so nothing is copied when beams
are reordered. ``PlainRows`` gives each beam a row of its own and computes it anew: slow, and right for every model.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from rlkit.models.attention import additive_mask, base_model, decoder, head_logits, packing_problem

logger = logging.getLogger(__name__)


class Rows(Protocol):
    """B prompts, each with a tree of completions behind it; gives what its readout gives."""

    def start(self) -> Tensor:
        """Return the logits (B, 1, S) after the prompts."""
        ...

    def grow(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Append a level of tokens (B, K), each behind the position ``parents`` (B, K) of the last: (B, K, S)."""
        ...


class Readout:
    """Chooses which logits are computed at each depth: (B, K, S) in float32.

    Args:
        model: a causal language model.
        token_ids: per depth the sorted vocabulary ids that count.
        temperature: divides the logits.
        whole: give log-probs over the whole vocabulary instead of logits.
    """

    chunk_elements = 2**25
    """Logits of the whole vocabulary that exist at once: 128 MB in float32."""

    def __init__(self, model: nn.Module, token_ids: Sequence[Tensor], *, temperature: float, whole: bool) -> None:
        self.model, self.temperature, self.whole = model, temperature, whole
        self.vocabulary_size = int(cast(Any, base_model(model)).config.get_text_config().vocab_size)
        self.depths = [_Columns(ids) for ids in token_ids]

    def of_logits(self, logits: Tensor, depth: int) -> Tensor:
        """Choose from logits (B, K, V)."""
        scaled = self._scaled(logits)
        return (scaled.log_softmax(-1) if self.whole else scaled).index_select(-1, self.depths[depth].rows)

    def of_states(self, states: Tensor, depth: int) -> Tensor:
        """Compute from states (B, K, D)."""
        if not self.whole:
            return self._scaled(head_logits(self.model, states, self.depths[depth].rows))
        size = max(1, self.chunk_elements // (self.vocabulary_size * len(states)))
        parts = [self.of_logits(head_logits(self.model, part), depth) for part in states.split(size, dim=1)]
        return torch.cat(parts, 1)

    def _scaled(self, logits: Tensor) -> Tensor:
        return logits.float() if self.temperature == 1 else logits.float() / self.temperature


class _Columns:
    """Where each token's logit stands among those that are computed.

    Args:
        token_ids: (S,) sorted.
    """

    def __init__(self, token_ids: Tensor) -> None:
        low, high = int(token_ids[0]), int(token_ids[-1])
        dense = high - low < 2 * len(token_ids)  # then a subtraction finds the place
        self.rows = torch.arange(low, high + 1, device=token_ids.device) if dense else token_ids
        self.table = None if dense else token_ids.new_zeros(high + 1)  # else a look-up; a search is ten times slower
        if self.table is not None:
            self.table[token_ids] = torch.arange(len(token_ids), device=token_ids.device)

    def of(self, tokens: Tensor) -> Tensor:
        """Return the columns, some valid one for padding from other depths; ``tokens`` may be overwritten."""
        if self.table is None:
            return tokens.sub_(self.rows[0]).clamp_(0, len(self.rows) - 1)
        return self.table[tokens.clamp_max_(len(self.table) - 1)]


class PackedRows:
    """One row per prompt, ``prompt | level 1 | level 2 ...``, with a cache.

    Args:
        model: a causal language model in evaluation mode.
        prompts: (B, P) left-padded.
        prompt_mask: (B, P) True on tokens.
        readout: what is returned.
    """

    def __init__(self, model: nn.Module, prompts: Tensor, prompt_mask: Tensor, readout: Readout) -> None:
        self.decoder, self.readout = decoder(model), readout
        self.prompts, self.prompt_mask = prompts, prompt_mask
        self.next_position = prompt_mask.sum(1, keepdim=True)  # (B, 1)
        self.dtype = next(self.decoder.parameters()).dtype
        self.mask = additive_mask(prompt_mask[:, None], self.dtype)  # (B, 1, K, positions so far)
        self.cache: Any = None
        self.depth = 0

    def start(self) -> Tensor:
        """Return the logits after the prompts."""
        if self.prompt_mask.all():  # then the causal mask is implied, and faster
            return self.readout.of_states(self._states(self.prompts, None, None)[:, -1:], 0)
        size = self.prompts.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool, device=self.prompts.device).tril()
        visible = (causal & self.prompt_mask[:, None]) | causal.triu()  # padding sees itself
        positions = (self.prompt_mask.cumsum(1) - 1).clamp_min(0)
        states = self._states(self.prompts, additive_mask(visible, self.dtype), positions)
        return self.readout.of_states(states[:, -1:], 0)

    def grow(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Append a level and return the logits after it."""
        rows, beams = tokens.shape
        history = self.mask.gather(2, parents[:, None, :, None].expand(-1, -1, -1, self.mask.shape[-1]))
        itself = torch.eye(beams, dtype=torch.bool, device=tokens.device)[None]
        self.mask = torch.cat([history, additive_mask(itself, self.dtype).expand(rows, -1, -1, -1)], -1)
        states = self._states(tokens, self.mask, self.next_position.expand(rows, beams))
        self.next_position, self.depth = self.next_position + 1, self.depth + 1
        return self.readout.of_states(states, self.depth)

    def _states(self, tokens: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        output = self.decoder(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        return output.last_hidden_state  # (B, positions, D)


class PlainRows:
    """One row per beam, computed anew at every level; takes what ``PackedRows`` takes."""

    chunk_rows = 256
    """Rows of one forward pass."""

    def __init__(self, model: nn.Module, prompts: Tensor, prompt_mask: Tensor, readout: Readout) -> None:
        self.model, self.readout = base_model(model), readout
        self.tokens, self.mask = prompts[:, None], prompt_mask  # (B, K, T), (B, T)
        self.depth = 0
        self.accepts = inspect.signature(self.model.forward).parameters

    def start(self) -> Tensor:
        """Return the logits after the prompts."""
        rows, beams, size = self.tokens.shape
        tokens = self.tokens.reshape(-1, size)
        mask = self.mask[:, None].expand(-1, beams, -1).reshape(-1, size)
        parts = [self._last_logits(*part) for part in zip(tokens.split(self.chunk_rows), mask.split(self.chunk_rows))]
        return self.readout.of_logits(torch.cat(parts).view(rows, beams, -1), self.depth)

    def grow(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Append a level and return the logits after it."""
        history = self.tokens.gather(1, parents[..., None].expand(-1, -1, self.tokens.shape[-1]))
        self.tokens = torch.cat([history, tokens[..., None]], -1)
        self.mask, self.depth = nn.functional.pad(self.mask, (0, 1), value=True), self.depth + 1
        return self.start()

    def _last_logits(self, tokens: Tensor, mask: Tensor) -> Tensor:
        arguments = {
            "input_ids": tokens,
            "attention_mask": mask.long(),
            "position_ids": (mask.cumsum(1) - 1).clamp_min(0),
            "logits_to_keep": 1,
            "use_cache": False,
        }
        return self.model(**{key: value for key, value in arguments.items() if key in self.accepts}).logits[:, -1]


_agreed: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""The longest prompt at which a model's packed rows agreed with its plain ones; -1: they did not."""
_reported: WeakSet[nn.Module] = WeakSet()


def open_rows(model: nn.Module, prompts: Tensor, prompt_mask: Tensor, readout: Readout) -> Rows:
    """Return packed rows where they are right for the model, else plain ones (logged once)."""
    problem = packing_problem(model) or _disagreement(model, prompts, prompt_mask)
    if problem is None:
        return PackedRows(model, prompts, prompt_mask, readout)
    inner = base_model(model)
    if inner not in _reported:
        _reported.add(inner)
        logger.info("beam tree: %s; each beam gets a row of its own, which is slower", problem)
    return PlainRows(model, prompts, prompt_mask, readout)


def _disagreement(model: nn.Module, prompts: Tensor, prompt_mask: Tensor) -> str | None:
    """Return a problem where packed rows differ from plain ones.

    They are compared when a model is first seen, and for every prompt longer than any before: a model that scales its
    logits after the head, or makes up its own positions, would be silently wrong.
    """
    inner, length = base_model(model), prompts.shape[1]
    if 0 <= _agreed.get(inner, 0) < length:
        _agreed[inner] = length if _packed_agrees(model, prompts, prompt_mask) else -1
    return "its logits in packed rows differ from those in single rows" if _agreed[inner] < 0 else None


def _packed_agrees(model: nn.Module, prompts: Tensor, prompt_mask: Tensor) -> bool:
    """Return whether two levels of two beams behind the longest prompt get the same logits either way."""
    longest = prompt_mask.sum(1).argmax()[None]
    tokens = prompts[longest][:, [-1, -1]] // torch.tensor([1, 2], device=prompts.device)  # some ids
    readout = Readout(model, [prompts.unique()] * 3, temperature=1.0, whole=False)
    both = []
    for kind in (PackedRows, PlainRows):
        rows = kind(model, prompts[longest], prompt_mask[longest], readout)
        levels = [rows.start(), rows.grow(tokens, torch.zeros_like(tokens))]
        levels.append(rows.grow(tokens, torch.tensor([[1, 0]], device=tokens.device)))
        both.append(torch.cat(levels, 1))
    packed, plain = both
    exact = next(model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled(prompts.device.type)
    tolerance = 1e-3 if exact else 5e-2
    return not (packed - plain).abs().max() > tolerance * plain.abs().max()  # nan is the caller's to report
