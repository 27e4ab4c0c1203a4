"""Constrained decoding without copying the cache: beam search and sampling over a tree of allowed completions.

A beam is a node of the constraint; its continuations are a slice of the tree, so the best are chosen among them and
never over the vocabulary. ``beam_rows`` computes the logits. Every completion that comes out ends at a leaf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rlkit.errors import DeadPrefixError, TrainingError
from rlkit.models.constraint import Children, Constraint
from rlkit.policy.beam_rows import Readout, open_rows

Choose = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From summed log-probs (B, K, W), the beams' keys (B, K) and nodes (B, K, W): keys and places in K * W, (B, K')."""


class Beams(NamedTuple):
    """K completions of each of B prompts."""

    tokens: Tensor
    """(B, K, C) right-padded to the constraint's longest completion."""
    mask: Tensor
    """(B, K, C) True on tokens of the completion."""
    scores: Tensor
    """(B, K) summed log-probs; -inf where there are fewer than K completions."""
    leaves: Tensor
    """(B, K) the node where the completion ends; -1 where there is none."""


class _Frontier(NamedTuple):
    """The beams at one depth; a finished one stays at its leaf and keeps its score."""

    nodes: Tensor  # (B, K)
    scores: Tensor  # (B, K) summed log-probs
    keys: Tensor  # (B, K) what beams compete by


class _Level(NamedTuple):
    """What one depth appended."""

    tokens: Tensor  # (B, K)
    parents: Tensor  # (B, K) the beam of the depth before
    grown: Tensor  # (B, K) False where a finished beam stayed


class _Search(NamedTuple):
    """What stays the same from depth to depth."""

    constraint: Constraint
    readout: Readout
    alive: Tensor | None
    pad_token_id: int
    choose: Choose


def beam_search(
    model: nn.Module,
    prompts: Tensor,
    prompt_mask: Tensor,
    constraint: Constraint,
    *,
    num_beams: int,
    pad_token_id: int,
    normalization: Literal["children", "vocabulary"] = "children",
    temperature: float = 1.0,
    alive: Tensor | None = None,
) -> Beams:
    """Return the K best completions, best first; completions of different lengths compete by their sums.

    Args:
        model: a causal language model in evaluation mode, perhaps inside a PEFT wrapper; under ZeRO-3 with its weights
            gathered.
        prompts: (B, P) left-padded.
        prompt_mask: (B, P) True on tokens.
        constraint: what may come out.
        num_beams: K.
        pad_token_id: fills ``Beams.tokens``.
        normalization: log-probs over the allowed (and alive) continuations, or over the whole vocabulary.
        temperature: divides the logits before they are normalized.
        alive: (B, nodes) False at nodes that are closed to a prompt; None: all are open.

    Raises:
        DeadPrefixError: nothing is left for a prompt.
        TrainingError: the model's log-probs are nan.
    """

    def best(totals: Tensor, keys: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        return totals.flatten(1).topk(min(num_beams, totals[0].numel()))

    constraint = constraint.to(prompts.device)
    readout = Readout(model, _token_ids(constraint), temperature=temperature, whole=normalization == "vocabulary")
    search = _Search(constraint, readout, alive, pad_token_id, best)
    return _decode(search, prompts, prompt_mask, slots=1, width=num_beams)


def sample_distinct(
    model: nn.Module,
    prompts: Tensor,
    prompt_mask: Tensor,
    constraint: Constraint,
    *,
    num_samples: int,
    generators: Sequence[torch.Generator],
    pad_token_id: int,
    temperature: float = 1.0,
    alive: Tensor | None = None,
) -> Beams:
    """Return K completions sampled without replacement, in the order in which they were drawn.

    Stochastic beam search (Kool et al. 2019, arXiv 1903.06059, section 4): the K largest Gumbel-perturbed log-probs of
    all completions, found by perturbing every node with the maximum of its leaves' noise.

    ``generators`` holds one per prompt; each gives one number, from which the noise of every node follows. So the
    noise depends neither on the other prompts of the batch nor on the order of the beams. The other arguments are as
    in ``beam_search``; log-probs are normalized over the allowed continuations.
    """
    seeds = _seeds(generators, prompts.device)  # (B,)

    def perturbed(totals: Tensor, keys: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        noisy = totals.double() + _gumbel(seeds[:, None, None], nodes)
        keys = _with_maximum(noisy, keys[..., None]).flatten(1)
        return keys.topk(min(num_samples, keys.shape[1]))

    constraint = constraint.to(prompts.device)
    readout = Readout(model, _token_ids(constraint), temperature=temperature, whole=False)
    search = _Search(constraint, readout, alive, pad_token_id, perturbed)
    return _decode(search, prompts, prompt_mask, slots=1, width=num_samples)


def sample(
    model: nn.Module,
    prompts: Tensor,
    prompt_mask: Tensor,
    constraint: Constraint,
    *,
    num_samples: int,
    generators: Sequence[torch.Generator],
    pad_token_id: int,
    temperature: float = 1.0,
    alive: Tensor | None = None,
) -> Beams:
    """Return K independent samples, which may be equal; arguments as in ``sample_distinct``."""
    slots = torch.arange(num_samples, device=prompts.device)
    seeds = _scrambled(_seeds(generators, prompts.device)[:, None], slots)  # (B, K)

    def independent(totals: Tensor, keys: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        chosen = (totals.double() + _gumbel(seeds[..., None], nodes)).argmax(-1)  # (B, K)
        return keys, slots * totals.shape[-1] + chosen

    constraint = constraint.to(prompts.device)
    readout = Readout(model, _token_ids(constraint), temperature=temperature, whole=False)
    search = _Search(constraint, readout, alive, pad_token_id, independent)
    return _decode(search, prompts, prompt_mask, slots=num_samples, width=num_samples)


@torch.no_grad()
def _decode(search: _Search, prompts: Tensor, prompt_mask: Tensor, *, slots: int, width: int) -> Beams:
    """Walk the tree level by level, from ``slots`` beams at the root."""
    model, constraint, mask = search.readout.model, search.constraint, prompt_mask.bool()
    assert not model.training, "the model decodes in evaluation mode"
    assert mask[:, -1].all(), "prompts are left-padded and not empty"
    rows = open_rows(model, prompts, mask, search.readout)
    logits = rows.start()
    zeros = torch.zeros(len(prompts), slots, device=prompts.device)
    frontier = _Frontier(zeros.long(), zeros, zeros)
    levels: list[_Level] = []
    for depth in range(constraint.max_tokens):
        frontier, level = _step(search, frontier, logits, depth)
        levels.append(level)
        if depth + 1 == constraint.max_tokens or constraint.is_leaf(frontier.nodes).all():
            break
        logits = rows.grow(level.tokens, level.parents if depth else torch.zeros_like(level.parents))
    _check(frontier, constraint)
    return _beams(search, frontier, levels, width)


def _step(search: _Search, frontier: _Frontier, logits: Tensor, depth: int) -> tuple[_Frontier, _Level]:
    children = search.constraint.children(frontier.nodes, depth)
    logprobs, columns = _log_probs(search, frontier, logits, children, depth)
    totals = logprobs.add_(frontier.scores[..., None])  # (B, K, W)
    keys, place = search.choose(totals, frontier.keys, children.nodes)  # (B, K')
    width = totals.shape[-1]
    parents = place // width
    column = place % width if columns is None else columns.flatten(1).gather(1, place)
    nodes = children.nodes.flatten(1).gather(1, place).long()
    grown = nodes != frontier.nodes.gather(1, parents)
    scores = totals.flatten(1).gather(1, place)
    return _Frontier(nodes, scores, keys), _Level(search.readout.depths[depth].rows[column], parents, grown)


def _log_probs(
    search: _Search, frontier: _Frontier, logits: Tensor, children: Children, depth: int
) -> tuple[Tensor, Tensor | None]:
    """Return log-probs (B, K, W), -inf where there is no child, and each child's column of the logits.

    The columns are None where each beam may go on with every token of the depth, as at the root: nothing is looked up.
    """
    places, stay = search.readout.depths[depth], None
    picked, columns = logits.expand(-1, frontier.nodes.shape[1], -1), None
    complete = children.mask.shape[-1] == len(places.rows) and search.alive is None and children.mask.all()
    if not complete:
        stay = _add_stays(search, frontier, children)
        columns = places.of(children.tokens)
        picked = picked.gather(2, columns).masked_fill_(~children.mask, -torch.inf)
    logprobs = picked if search.readout.whole else picked.log_softmax(-1)
    if stay is not None:
        logprobs[..., 0].masked_fill_(stay, 0.0)
    return logprobs, columns


def _add_stays(search: _Search, frontier: _Frontier, children: Children) -> Tensor | None:
    """Write into ``children`` which are alive, and that a beam without any stays where it is, as finished beams do.

    Returns:
        (B, K) True for those beams; None where there are none.
    """
    _, nodes, mask = children
    if search.alive is None:
        stay = search.constraint.is_leaf(frontier.nodes)
    else:
        mask &= search.alive.gather(1, nodes.flatten(1).long()).view_as(mask)
        stay = ~mask.any(-1)
    if not stay.any():
        return None
    dead = stay & ~search.constraint.is_leaf(frontier.nodes) & ~frontier.scores.isneginf()
    if dead.any():
        raise DeadPrefixError(
            f"beam tree: a beam has no continuation left, got prompt and beam {dead.nonzero()[0].tolist()!r};"
            " ban less, or close the nodes above leaves that are all closed"
        )
    nodes[..., 0] = torch.where(stay, frontier.nodes, nodes[..., 0])
    mask[..., 0] |= stay
    return stay


def _check(frontier: _Frontier, constraint: Constraint) -> None:
    """Refuse nan, which ranks first and so has come through, and prompts without a completion."""
    if frontier.scores.isnan().any():
        raise TrainingError(
            "beam tree: the model's log-probs are not finite, got nan; check its weights, or lower the learning rate"
        )
    absent = frontier.scores.isneginf()
    if absent.all(1).any():
        which = absent.all(1).nonzero().flatten().tolist()
        raise DeadPrefixError(f"beam tree: no completion is left, got prompts {which!r}; ban less or allow more")
    assert (constraint.is_leaf(frontier.nodes) | absent).all(), "every completion ends at a leaf"


def _beams(search: _Search, frontier: _Frontier, levels: Sequence[_Level], width: int) -> Beams:
    """Read the completions from the last level back to the first."""
    absent = frontier.scores.isneginf()  # (B, K')
    index = torch.arange(absent.shape[1], device=absent.device).expand_as(absent)
    tokens, grown = [], []
    for level in reversed(levels):
        tokens.append(level.tokens.gather(1, index))
        grown.append(level.grown.gather(1, index))
        index = level.parents.gather(1, index)
    mask = torch.stack(grown[::-1], -1) & ~absent[..., None]  # (B, K', C')
    filled = torch.stack(tokens[::-1], -1).masked_fill(~mask, search.pad_token_id)
    more, longer = width - absent.shape[1], search.constraint.max_tokens - len(levels)
    return Beams(
        nn.functional.pad(filled, (0, longer, 0, more), value=search.pad_token_id),
        nn.functional.pad(mask, (0, longer, 0, more)),
        nn.functional.pad(frontier.scores, (0, more), value=-torch.inf),
        nn.functional.pad(frontier.nodes.masked_fill(absent, -1), (0, more), value=-1),
    )


def _with_maximum(noisy: Tensor, maximum: Tensor) -> Tensor:
    """Condition Gumbel variables (..., W) on their maximum (..., 1) (Kool et al. 2019, appendix B.3)."""
    largest = noisy.amax(-1, keepdim=True)
    gap = noisy - largest  # <= 0
    log_rest = torch.where(gap > -math.log(2), (-gap.expm1()).log(), (-gap.exp()).log1p())  # log(1 - exp(gap))
    shift = maximum - noisy + log_rest
    return (maximum - shift.relu() - shift.abs().neg().exp().log1p()).masked_fill(noisy.isneginf(), -torch.inf)


def _token_ids(constraint: Constraint) -> list[Tensor]:
    return [constraint.token_ids(depth) for depth in range(constraint.max_tokens)]


def _seeds(generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    drawn = [torch.randint(2**62, (1,), generator=generator, device=generator.device) for generator in generators]
    return torch.cat([number.to(device) for number in drawn])


def _gumbel(seeds: Tensor, nodes: Tensor) -> Tensor:
    """Return standard Gumbel noise in float64, a function of seed and node alone."""
    bits = (_scrambled(seeds, nodes) >> 12) & (2**52 - 1)
    return -(-((bits.double() + 0.5) * 2.0**-52).log()).log()


def _scrambled(seeds: Tensor, numbers: Tensor) -> Tensor:
    """Hash pairs to 64 bits: the ``numbers``-th output of SplitMix64 (Steele et al. 2014) from each seed."""
    state = seeds + (numbers + 1) * -0x61C8864680B583EB  # int64 wraps around, as the algorithm wants
    state = (state ^ ((state >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    state = (state ^ ((state >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return state ^ ((state >> 31) & (2**33 - 1))
