"""Log-probs of a group's completions under the distribution that they were sampled from, the prompt computed once.

``completion_states`` says how a prompt and its completions share a row. When that pays: the work of a layer is linear
in the positions and quadratic in the length of a row, so with a = the decoder's weights (multiply-adds per position)
and b = 2 x width x layers (per pair of positions)

    grouped = B (a T + b T^2),  T = P + G (C - 1)        dense = B G (a T' + b T'^2),  T' = P + C - 1

Short completions to long prompts gain up to G times; long completions lose, as a grouped row wastes (G C)^2 pairs.

A model that is more than attention with a mask would be silently wrong. So ``packing_problem`` is asked first, and the
states are compared with the dense ones on first use and whenever a row is longer than any before.

All of this runs inside of the wrapped model's forward (DDP, DeepSpeed): a submodule that is called from outside of it
drifts. Dropout must be off: it makes ratios noisy, and the comparison fail.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlkit.errors import ModelError, TrainingError
from rlkit.models.attention import base_model, decoder, head_logits, packing_problem
from rlkit.models.constraint import Constraint
from rlkit.ops.logprobs import entropy, log_distribution, pick
from rlkit.policy.completion_states import Sites, dense_states, grouped_states, sites, spread
from rlkit.policy.group_batch import GroupBatch

logger = logging.getLogger(__name__)

Mode = Literal["auto", "grouped", "dense"]
Normalization = Literal["children", "vocabulary"]

TOLERANCE = 1e-4
"""Relative difference between grouped and dense states in float32. Measured on random weights, 2 to 28 layers: 4e-7 to
5e-6 for right rows, 2e-2 and more for wrong positions, 5e-1 and more for wrong masks."""
HALF_TOLERANCE = 1e-1
"""In bfloat16, where right rows differ by 4e-3 to 5e-2: a wrong mask is still caught."""


class PolicyOutput(NamedTuple):
    """What a policy says about given completions; 0 without gradient where the mask is 0."""

    logprobs: Tensor
    """(B, G, C) float32."""
    entropy: Tensor | None
    """(B, G, C) float32, in nats, of the same distributions; None unless asked for."""
    hidden: Tensor | None = None
    """(B, G, C, D) the state that predicts each token; None unless asked for."""
    distributions: Tensor | None = None
    """(N, W) log-probs of all that each counted token could have been, in order; None unless asked for."""
    values: Tensor | None = None
    """(B, G, C) of the state before each token; None without a value head."""


@dataclass
class _Checked:
    """What is known of one model."""

    longest: int = 0
    reasons: set[str] = field(default_factory=set)


_CHECKED: WeakKeyDictionary[nn.Module, _Checked] = WeakKeyDictionary()


def policy_forward(
    model: nn.Module,
    batch: GroupBatch,
    *,
    constraint: Constraint | None = None,
    normalization: Normalization = "vocabulary",
    temperature: float = 1.0,
    with_entropy: bool = False,
    entropy_gradient: bool = True,
    with_hidden: bool = False,
    with_distributions: bool = False,
    mode: Mode = "auto",
) -> PolicyOutput:
    """Compute the log-prob of each completion token under the distribution that it was sampled from.

    Args:
        model: a causal LM, perhaps inside a PEFT wrapper.
        batch: prompts and completions.
        constraint: the tree that the completions follow; needed for ``children``.
        normalization: over the constraint's allowed children, or over the vocabulary (over ``batch.kept`` where
            sampling kept only some tokens).
        temperature: of the rollout.
        with_entropy: also return entropies.
        entropy_gradient: they carry gradients, which costs two more tensors of the size of the distributions.
        with_hidden: also return the states, for a value head.
        with_distributions: also return whole distributions, for an exact KL divergence.
        mode: ``auto`` groups where it is right and pays.

    Raises:
        DeadPrefixError: a completion leaves the constraint.
        ModelError: ``grouped`` was asked for, but the model's rows cannot be packed.
        TrainingError: the forward differs from the model's own.
    """
    found = sites(model, batch, grouped=_is_grouped(model, batch, mode))
    if normalization == "children":
        assert constraint is not None, "normalization over children needs a constraint"
        distributions, choices = _over_children(model, batch, found, constraint, temperature)
    elif batch.kept is not None:
        found = _unshared(found)
        distributions, choices = _over_kept(model, batch, found, temperature)
    else:
        distributions = log_distribution(head_logits(model, found.states), None, temperature)  # (R, V)
        choices = batch.completions.flatten()[found.places]  # (N,)
    spread_out = distributions if entropy_gradient else distributions.detach()
    return PolicyOutput(
        logprobs=_place(pick(distributions, choices, found.rows), found, batch),
        entropy=_place(entropy(spread_out)[found.rows], found, batch) if with_entropy else None,
        hidden=spread(found, batch) if with_hidden else None,
        distributions=distributions[found.rows] if with_distributions else None,
    )


def completion_hidden(model: nn.Module, batch: GroupBatch, mode: Mode = "auto") -> Tensor:
    """Return (B, G, C, D) the states that predict each completion token, of a model that needs no output head.

    Args:
        model: anything with a decoder, such as a sequence classifier.
        batch: prompts and completions.
        mode: as for ``policy_forward``.
    """
    return spread(sites(model, batch, grouped=_is_grouped(model, batch, mode, has_head=False)), batch)


def expected_gain(model: nn.Module, batch: GroupBatch) -> float:
    """Return how many times less work the grouped forward is, by the module's formula (the head left out)."""
    inner: Any = decoder(model)
    (_, group_size, tokens), prompt_tokens = batch.mask.shape, batch.prompts.shape[1]
    layers = [module for module in inner.modules() if not isinstance(module, nn.Embedding)]
    weights = [weight for layer in layers for weight in layer.parameters(recurse=False)]
    linear = sum(getattr(weight, "ds_numel", weight.numel()) for weight in weights)  # ZeRO-3 leaves empty tensors
    square = 2 * inner.config.hidden_size * inner.config.num_hidden_layers
    grouped, dense = prompt_tokens + group_size * (tokens - 1), prompt_tokens + tokens - 1
    return group_size * (linear * dense + square * dense**2) / (linear * grouped + square * grouped**2)


def _over_children(
    model: nn.Module, batch: GroupBatch, found: Sites, constraint: Constraint, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return log-probs (R, W) over the allowed children of each state's node, and which child was chosen (N,)."""
    token_ids = constraint.token_ids()  # (S,)
    nodes = torch.empty_like(found.states[:, 0], dtype=torch.long)
    nodes[found.rows] = _nodes(batch, constraint).flatten()[found.places]  # tokens that share a state share its node
    children = constraint.children(nodes)  # (R, W)
    logits = head_logits(model, found.states, token_ids).gather(1, columns_of(token_ids)[children.tokens])
    siblings = children.tokens.masked_fill(~children.mask, -1).index_select(0, found.rows)  # (N, W)
    chosen = siblings == batch.completions.flatten()[found.places, None]
    return log_distribution(logits, children.mask, temperature), chosen.int().argmax(-1)


def columns_of(token_ids: Tensor) -> Tensor:
    """Return where each vocabulary id stands among (S,) sorted ids: a table, as searching them is ten times slower."""
    columns = token_ids.new_zeros(int(token_ids[-1]) + 1)
    columns[token_ids] = torch.arange(len(token_ids), device=token_ids.device)
    return columns


def _nodes(batch: GroupBatch, constraint: Constraint) -> Tensor:
    """Return (B, G, C) the node before each token; the root throughout an absent completion."""
    nodes = torch.zeros_like(batch.completions)
    present = batch.mask.any(-1)  # (B, G)
    nodes[present] = constraint.walk(batch.completions[present])[:, :-1]
    return nodes


def _over_kept(model: nn.Module, batch: GroupBatch, found: Sites, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log-probs (N, W) over the tokens that sampling kept, and which of them was chosen (N,)."""
    assert batch.kept is not None
    kept = batch.kept.flatten(0, 2)[found.places]  # (N, W)
    chosen = kept == batch.completions.flatten()[found.places, None]
    assert bool(chosen.any(-1).all()), "kept: a completion token is not among the tokens that sampling kept"
    logits = head_logits(model, found.states).gather(1, kept.clamp_min(0))
    return log_distribution(logits, kept >= 0, temperature), chosen.int().argmax(-1)


def _unshared(found: Sites) -> Sites:
    """Return one state per token: completions sampled from one state kept the same tokens up to rounding only."""
    return Sites(found.states[found.rows], torch.arange(len(found.rows), device=found.rows.device), found.places)


def _place(values: Tensor, found: Sites, batch: GroupBatch) -> Tensor:
    """Return (B, G, C) the values (N,) at their tokens, 0 elsewhere."""
    return values.new_zeros(batch.mask.numel()).scatter(0, found.places, values).view(batch.mask.shape)


def _is_grouped(model: nn.Module, batch: GroupBatch, mode: Mode, has_head: bool = True) -> bool:
    """Decide how to run, say once why it is dense, and check what was not checked before."""
    seen = _CHECKED.get(base_model(model))
    if seen is None:
        if has_head:
            _check_head(model, batch)
        seen = _CHECKED[base_model(model)] = _Checked()
    if mode == "dense":
        return False
    reason = packing_problem(model)
    if mode == "grouped" and reason:
        raise ModelError(f"forward: rows cannot be packed ({reason}), got 'grouped'; use dense or auto")
    if mode == "auto" and not reason and expected_gain(model, batch) <= 1:
        reason = "completions are too long for it to pay"
    if reason and reason not in seen.reasons:
        seen.reasons.add(reason)
        logger.info("forward: prompts are computed once per completion: %s", reason)
    if not reason:
        _check_rows(model, batch, seen)
    return not reason


@torch.no_grad()
def _check_rows(model: nn.Module, batch: GroupBatch, seen: _Checked) -> None:
    """Compare grouped with dense states, for some completions of one or two groups, if rows are longer than ever.

    Raises:
        TrainingError: they differ.
    """
    length = _longest(model, batch.prompts.shape[1] + batch.completions[0, :, 1:].numel())
    if length <= seen.longest:
        return
    tokens = batch.prompt_mask.sum(1)
    groups = torch.stack([tokens.argmin(), tokens.argmax()]).unique()[:, None]  # (2, 1) most and least padding
    present = batch.mask[groups[:, 0]].any(-1).int()  # (2, G)
    ends = torch.stack([present.argmax(1), present.shape[1] - 1 - present.flip(1).argmax(1)], 1)  # (2, 2) first, last
    whole = _part(batch, groups, torch.arange(present.shape[1], device=groups.device))
    few = _part(batch, groups, ends)
    states = grouped_states(model, whole)[
        torch.arange(len(groups), device=groups.device)[:, None], ends
    ]  # (2, 2, C, D)
    error, allowed = _error(states[few.mask], dense_states(model, few)[few.mask])
    if not error <= allowed:  # NaN too
        raise TrainingError(
            f"forward: the grouped forward differs from the dense one by {error:.1e} of its states on rows of {length} "
            f"positions, got {type(base_model(model)).__name__!r} (allowed: {allowed:.0e}); set forward: dense, or "
            "switch dropout off if the model has any"
        )
    seen.longest = length


@torch.no_grad()
def _check_head(model: nn.Module, batch: GroupBatch) -> None:
    """Compare decoder and head with the model's own forward, on the end of one prompt.

    Raises:
        ModelError: the model does something to its logits that ``head_logits`` does not know.
    """
    inputs = {"input_ids": batch.prompts[:1, -8:], "attention_mask": batch.prompt_mask[:1, -8:].long()}
    own = model(**inputs, use_cache=False).logits[:, -1]
    ours = head_logits(model, decoder(model)(**inputs, use_cache=False).last_hidden_state[:, -1])
    error, allowed = _error(ours, own)
    if not error <= allowed:
        raise ModelError(
            f"model: its logits are not those of its output head, got {type(base_model(model)).__name__!r} (off by "
            f"{error:.1e}); switch dropout off if the model has any, else train another model"
        )


def _part(batch: GroupBatch, groups: Tensor, completions: Tensor) -> GroupBatch:
    """Return some completions of some groups (b, 1), without trimming: rows keep their length."""
    prompts, prompt_mask = batch.prompts[groups[:, 0]], batch.prompt_mask[groups[:, 0]]
    return GroupBatch(prompts, prompt_mask, batch.completions[groups, completions], batch.mask[groups, completions])


def _error(values: Tensor, right: Tensor) -> tuple[float, float]:
    """Return the largest relative difference of vectors (..., D), and the largest allowed one."""
    half = torch.is_autocast_enabled(values.device.type) or values.dtype in (torch.bfloat16, torch.float16)
    values, right = values.float(), right.float()
    errors = (values - right).norm(dim=-1) / right.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    error = float(errors.max()) if errors.numel() else 0.0  # max() of a tensor keeps a NaN
    return error, HALF_TOLERANCE if half else TOLERANCE


def _longest(model: nn.Module, length: int) -> int:
    """Return the longest row of all ranks where every forward is a collective (ZeRO-3): all check, or none does."""
    sharded = any(hasattr(weight, "ds_id") for weight in model.parameters())
    if not (sharded and dist.is_initialized()):
        return length
    longest = torch.tensor(length, device=cast(Any, base_model(model)).device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return int(longest)
