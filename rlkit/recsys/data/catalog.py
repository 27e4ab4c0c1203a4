"""What every recommendation reader returns: items, interactions by split, and what is known beyond them.

Items are numbered 0..N-1 in this order everywhere inside rlkit; ``Item.key`` is the name that the files use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlkit.records import Source


@dataclass(frozen=True, slots=True)
class Item:
    """One item of the catalog; texts are empty where the data has none."""

    key: str
    title: str
    description: str = ""
    brand: str = ""
    category: str = ""


@dataclass(frozen=True, slots=True)
class Interaction:
    """One event to predict: the user's earlier items, oldest first, and the item that came next."""

    user: str
    history: tuple[int, ...]
    target: int
    source: Source


@dataclass(frozen=True)
class RecommendationData:
    """A catalog with its users' events.

    Args:
        name: what tables call it.
        items: N items.
        splits: ``train``, ``valid`` and ``test``, each in time order.
        semantic_ids: per item its given tokens (1 to 8), e.g. ``("<a_236>", "<b_231>", "<c_226>")``; none: to be made.
        files: what was read, for the manifest's content hashes.
        true_scores: for generated data the true next-item distribution, interactions -> (R, N) probabilities.
    """

    name: str
    items: tuple[Item, ...]
    splits: Mapping[str, tuple[Interaction, ...]]
    semantic_ids: tuple[tuple[str, ...], ...] | None = None
    files: tuple[str, ...] = ()
    true_scores: Callable[[Sequence[Interaction]], np.ndarray] | None = field(default=None, compare=False)


def user_sequences(interactions: Sequence[Interaction]) -> list[tuple[str, tuple[int, ...]]]:
    """Rebuild each user's sequence of items from rows of (history, target).

    A row whose history is the user's sequence so far continues it, as does one whose history is as long as the rows'
    longest and ends that sequence (it was cut). Any other row starts a sequence of its own: no event is invented.

    Returns:
        ``(user, items)`` in the order of first appearance; every row is the last transition of exactly one prefix.
    """
    longest = max((len(row.history) for row in interactions), default=0)
    open_sequences: dict[str, list[int]] = {}
    done: list[tuple[str, list[int]]] = []
    for row in interactions:
        current = open_sequences.get(row.user, [])
        if not current or tuple(current[-longest:]) != row.history:
            current = list(row.history)
            open_sequences[row.user] = current
            done.append((row.user, current))
        current.append(row.target)
    return [(user, tuple(items)) for user, items in done]
