"""Counting baselines: what can be had without a neural network, in seconds.

Five baselines of one form, scores = history weights @ matrix + prior x popularity, are fitted on train rows; each
chooses its knobs on valid by NDCG@10, one knob after the other over the values in ``GRIDS``. They see items as numbers
0..N-1 only, so they run on items and, through ``item_map``, on semantic IDs.

- popularity: events per item; recent popularity: an event weighs exp(-age / recency), age in shares of the train rows.
- last-item transitions: what followed the last item, row-normalized.
- skip transitions: what followed within ten events, weighing lag_decay^(lag - 1) and partly symmetric.
- item-kNN: cosine of users in common with shrinkage (Sarwar et al. 2001; Bell and Koren 2007).

An item that the user already had stays a candidate, unless dropping such items pays on valid (``repeats``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from rlkit.ops.ranking import ndcg
from rlkit.recsys.data.catalog import Interaction
from rlkit.recsys.metrics import score_ranks

LAGS = 10  # a past item further back says nothing about the next one
_HISTORY = 50  # as many past items as are remembered as had
_SELECTION_ROWS = 5_000  # enough valid rows to choose by: the standard error of NDCG@10 is then about .004
_CHUNK_ROWS = 512


@dataclass(frozen=True, slots=True)
class Knobs:
    """What a baseline chooses on valid; those that its grid does not name stay at these values."""

    recency: float = np.inf
    lag_decay: float = 0.0
    symmetric: float = 0.0
    history_decay: float = 0.0
    shrink: float = 0.0
    prior: float = 1.0
    repeats: bool = True


GRIDS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "popularity": {"repeats": (True, False)},
    "recent popularity": {"recency": (0.1, 0.02, 0.05, 0.2, 0.5), "repeats": (True, False)},
    "last-item transitions": {"shrink": (0.0, 5.0), "prior": (0.1, 0.02, 0.5), "repeats": (True, False)},
    "skip transitions": {
        "lag_decay": (0.7, 0.5, 0.9),
        "symmetric": (0.5, 0.0, 1.0),
        "history_decay": (0.4, 0.2, 0.6),
        "shrink": (5.0, 0.0, 15.0, 50.0),
        "prior": (0.5, 0.1, 1.0),
        "repeats": (True, False),
    },
    "item-kNN": {
        "shrink": (100.0, 3.0, 10.0, 30.0, 300.0),
        "history_decay": (0.6, 0.4, 0.8, 1.0),
        "prior": (0.1, 0.0, 0.03, 0.3),
        "repeats": (True, False),
    },
}
"""The values tried; the search starts from the first of each."""


@dataclass(frozen=True)
class Events:
    """Rows as numbers.

    Args:
        history: (R, H) the user's last items, newest first, -1 where there are fewer; H is at most ``_HISTORY``.
        target: (R,) the item that came next.
        user: (R,) the user's number.
        size: N, the number of items.
    """

    history: np.ndarray
    target: np.ndarray
    user: np.ndarray
    size: int

    @cached_property
    def had(self) -> sparse.csr_array:
        """(U, N), 1 where the user had the item."""
        row, lag = np.nonzero(self.history >= 0)
        user = np.concatenate([self.user, self.user[row]])
        item = np.concatenate([self.target, self.history[row, lag]])
        return self._user_item_matrix(user, item)

    @cached_property
    def users_in_common(self) -> sparse.csr_array:
        """(N, N) users who had both items; on the diagonal, users who had the item again.

        Every item shares all its users with itself; only those who came back for it say that it is taken again.
        """
        again = (self.history == self.target[:, None]).any(axis=1)
        returned = self._user_item_matrix(self.user[again], self.target[again]).sum(axis=0)
        common = self.had.T @ self.had
        return sparse.csr_array(common + sparse.diags_array(returned - common.diagonal()))

    def _user_item_matrix(self, user: np.ndarray, item: np.ndarray) -> sparse.csr_array:
        user, item = np.divmod(np.unique(user * self.size + item), self.size)
        return sparse.csr_array((np.ones(len(user)), (user, item)), shape=(int(self.user.max()) + 1, self.size))


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline.

    Args:
        name: what tables call it.
        settings: what was chosen on valid.
        knobs: the same, with what was not up for choice.
        matrix: (N, N) weight of the next item (column) given a past one (row); none: popularity alone.
        popularity: (N,) sums to 1.
        item_map: (items,) their numbers as the baseline sees them; none: as they are.
        totals: (N,) of transitions, the weighted count behind each row of the matrix.
    """

    name: str
    settings: Mapping[str, Any]
    knobs: Knobs
    matrix: sparse.csr_array | None
    popularity: np.ndarray
    item_map: np.ndarray | None
    totals: np.ndarray | None = None

    def scores(self, interactions: Sequence[Interaction]) -> np.ndarray:
        """Return (R, N) float32 scores of what comes after each history; call it with some hundred rows at a time."""
        return self.score_events(encode(interactions, len(self.popularity), self.item_map))

    def score_events(self, events: Events) -> np.ndarray:
        """Return (R, N) float32 scores; finite, below 0 for what ``repeats=False`` drops."""
        scores = np.empty((len(events.target), events.size), dtype=np.float32)
        scores[:] = self.knobs.prior * self.popularity
        if self.matrix is not None:
            scores += (_history_weights(events, self.knobs.history_decay) @ self.matrix).toarray()
        if not self.knobs.repeats:
            row, lag = np.nonzero(events.history >= 0)
            scores[row, events.history[row, lag]] = -1.0
        return scores


def fit_baselines(
    train: Sequence[Interaction], valid: Sequence[Interaction], num_items: int, item_map: np.ndarray | None = None
) -> list[Baseline]:
    """Fit every baseline on train and choose its knobs on valid.

    Args:
        train: in time order.
        valid: what the knobs are chosen on; not empty.
        num_items: of the catalog.
        item_map: (num_items,) what each item counts as, for instance the index of its semantic ID.

    Returns:
        In the order of ``GRIDS``.
    """
    assert train, "baselines need train rows"
    assert valid, "baselines need valid rows to choose their knobs on"
    size = num_items if item_map is None else int(item_map.max()) + 1
    events = encode(train, size, item_map)
    chosen_on = encode(valid[:: -(-len(valid) // _SELECTION_ROWS)], size, item_map)
    baselines: list[Baseline] = []
    recency = np.inf  # chosen by "recent popularity", kept by those after it
    for name in GRIDS:
        knobs = _choose(name, Knobs(recency=recency), events, chosen_on)
        recency = knobs.recency
        baselines.append(_fit(name, knobs, events, item_map))
    return baselines


def encode(interactions: Sequence[Interaction], size: int, item_map: np.ndarray | None = None) -> Events:
    """Turn rows into numbers, each item as ``item_map`` counts it."""
    longest = max((len(interaction.history) for interaction in interactions), default=0)
    history = np.full((len(interactions), min(longest, _HISTORY)), -1)
    for row, interaction in enumerate(interactions):
        recent = interaction.history[: -_HISTORY - 1 : -1]  # newest first
        history[row, : len(recent)] = recent
    target = np.array([interaction.target for interaction in interactions], dtype=np.int64)
    if item_map is not None:
        history = np.where(history >= 0, item_map[history], -1)
        target = item_map[target]
    user = np.unique([interaction.user for interaction in interactions], return_inverse=True)[1]
    return Events(history, target, user, size)


def _choose(name: str, start: Knobs, train: Events, valid: Events) -> Knobs:
    """Search one knob after the other; a value replaces the one before it only where NDCG@10 is really higher."""
    best = replace(start, **{knob: values[0] for knob, values in GRIDS[name].items()})
    best_ndcg = valid_ndcg(_fit(name, best, train), valid)
    for knob, values in GRIDS[name].items():
        for value in values[1:]:
            tried = replace(best, **{knob: value})
            if (tried_ndcg := valid_ndcg(_fit(name, tried, train), valid)) > best_ndcg:
                best, best_ndcg = tried, tried_ndcg
    return best


def valid_ndcg(baseline: Baseline, valid: Events) -> float:
    """Return the mean NDCG@10 of a baseline on some rows."""
    total = 0.0
    for start in range(0, len(valid.target), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        part = Events(valid.history[rows], valid.target[rows], valid.user[rows], valid.size)
        total += ndcg(score_ranks(baseline.score_events(part), part.target), 10).sum()
    return total / len(valid.target)


def _fit(name: str, knobs: Knobs, train: Events, item_map: np.ndarray | None = None) -> Baseline:
    settings = {knob: getattr(knobs, knob) for knob in GRIDS[name]}
    totals = _counts(train, knobs).sum(axis=1) if _MATRICES[name] is _transitions else None
    return Baseline(
        name, settings, knobs, _MATRICES[name](train, knobs), _popularity(train, knobs.recency), item_map, totals
    )


def _popularity(train: Events, recency: float) -> np.ndarray:
    """Return each item's share (N,) of all events; a user's first row also brings the events of its history."""
    rows = len(train.target)
    weight = np.exp(-np.arange(rows)[::-1] / rows / recency)  # (R,): 1 for the newest row
    counts = np.bincount(train.target, weight, minlength=train.size)
    first_rows = np.unique(train.user, return_index=True)[1]
    row, lag = np.nonzero(train.history[first_rows] >= 0)
    row = first_rows[row]
    counts += np.bincount(train.history[row, lag], weight[row], minlength=train.size)
    return (counts / counts.sum()).astype(np.float32)


def _history_weights(events: Events, decay: float) -> sparse.csr_array:
    """Return (R, N): decay^0 for the last item, decay^1 for the one before, ... up to ``LAGS`` items."""
    row, lag = np.nonzero(events.history[:, :LAGS] >= 0)
    weight = np.power(decay, lag)  # 0^0 = 1: without a decay the last item alone
    shape = (len(events.target), events.size)
    return sparse.csr_array((weight.astype(np.float32), (row, events.history[row, lag])), shape=shape)


def _transitions(train: Events, knobs: Knobs) -> sparse.csr_array:
    """Return (N, N) shares of what followed, each row summing to count / (count + shrink).

    A row's history holds the target's predecessors at every lag, so each pair of events is met exactly once.
    """
    counts = _counts(train, knobs)
    totals = counts.sum(axis=1) + knobs.shrink
    return sparse.csr_array(sparse.diags_array(1.0 / np.where(totals > 0, totals, 1.0)) @ counts).astype(np.float32)


def _counts(train: Events, knobs: Knobs) -> sparse.csr_array:
    """Return (N, N) how often the column followed the row, weighing ``lag_decay`` for each event between them."""
    followed = _history_weights(train, knobs.lag_decay).T @ _one_hot(train.target, train.size)  # (N, N)
    return sparse.csr_array(followed + knobs.symmetric * followed.T)


def _cosine(train: Events, knobs: Knobs) -> sparse.csr_array:
    """Return (N, N) users in common / (sqrt(users of one x users of the other) + shrink)."""
    common = train.users_in_common.tocoo()
    users = train.had.sum(axis=0)  # (N,)
    norm = np.sqrt(users[common.row] * users[common.col]) + knobs.shrink
    return sparse.csr_array((common.data / norm, (common.row, common.col)), shape=common.shape).astype(np.float32)


def _one_hot(target: np.ndarray, size: int) -> sparse.csr_array:
    return sparse.csr_array(
        (np.ones(len(target), dtype=np.float32), (np.arange(len(target)), target)), shape=(len(target), size)
    )


_MATRICES: Mapping[str, Callable[[Events, Knobs], sparse.csr_array | None]] = {
    "popularity": lambda train, knobs: None,
    "recent popularity": lambda train, knobs: None,
    "last-item transitions": _transitions,
    "skip transitions": _transitions,
    "item-kNN": _cosine,
}
