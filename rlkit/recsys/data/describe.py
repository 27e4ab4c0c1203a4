"""Describe recommendation data: what makes its rows easy, hard or doubtful, as plain numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rlkit.recsys.data.catalog import Interaction, RecommendationData


@dataclass(frozen=True, slots=True)
class SplitDescription:
    """One split; everything but users and targets counts rows.

    Args:
        rows: events to predict.
        users: distinct users.
        targets: distinct target items.
        cold: the target is in no train row, neither as target nor in a history.
        repeats: the target is in the row's history.
        repeats_of_last: the target is the last item of the history.
        new_users: the user has no train row.
        ambiguous: the target shares its semantic ID with another item; none: no semantic IDs yet.
        doubles: rows that repeat an earlier row of the split (same user, history and target).
        history_lengths: rows by length of history, from 0 on.
    """

    rows: int
    users: int
    targets: int
    cold: int
    repeats: int
    repeats_of_last: int
    new_users: int
    ambiguous: int | None
    doubles: int
    history_lengths: tuple[int, ...]

    @property
    def mean_history(self) -> float:
        """Return the mean number of items in a history."""
        return sum(length * rows for length, rows in enumerate(self.history_lengths)) / self.rows if self.rows else 0.0


@dataclass(frozen=True, slots=True)
class SemanticIdDescription:
    """The semantic IDs of a catalog.

    Args:
        distinct: different semantic IDs.
        shared: semantic IDs that stand for more than one item.
        ambiguous_items: items that share theirs.
        items_by_levels: items by number of levels, from 0 on.
        codes: per level the codes in use.
        perplexities: per level how many codes, used evenly, would be as spread over the items.
    """

    distinct: int
    shared: int
    ambiguous_items: int
    items_by_levels: tuple[int, ...]
    codes: tuple[int, ...]
    perplexities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """A dataset in numbers.

    Args:
        name: the dataset.
        items: N.
        shared_titles: items whose title another item has too.
        splits: by name.
        common_rows: for every two splits the rows (same user, history and target) that both have.
        top10_share: what the ten most frequent items hold of the train interactions (targets, users' first histories).
        semantic_ids: none where there are no semantic IDs yet.
    """

    name: str
    items: int
    shared_titles: int
    splits: Mapping[str, SplitDescription]
    common_rows: Mapping[tuple[str, str], int]
    top10_share: float
    semantic_ids: SemanticIdDescription | None


def describe(data: RecommendationData, semantic_ids: Sequence[tuple[str, ...]] | None) -> Description:
    """Count what a reader of results should know of the data.

    Args:
        data: the dataset.
        semantic_ids: per item its tokens, given or made; none: leave them out.
    """
    train = data.splits["train"]
    seen = {item for row in train for item in (*row.history, row.target)}
    users = {row.user for row in train}
    ambiguous = _ambiguous_items(semantic_ids) if semantic_ids is not None else None
    rows = {split: {(row.user, row.history, row.target) for row in rows} for split, rows in data.splits.items()}
    return Description(
        name=data.name,
        items=len(data.items),
        shared_titles=_in_groups(Counter(item.title for item in data.items)),
        splits={split: _split(rows, seen, users, ambiguous) for split, rows in data.splits.items()},
        common_rows={(one, other): len(rows[one] & rows[other]) for one, other in combinations(rows, 2)},
        top10_share=_top_share(train, 10),
        semantic_ids=_semantic_ids(semantic_ids) if semantic_ids is not None else None,
    )


def _split(
    rows: Sequence[Interaction], seen: set[int], users: set[str], ambiguous: set[int] | None
) -> SplitDescription:
    lengths = Counter(len(row.history) for row in rows)
    return SplitDescription(
        rows=len(rows),
        users=len({row.user for row in rows}),
        targets=len({row.target for row in rows}),
        cold=sum(row.target not in seen for row in rows),
        repeats=sum(row.target in row.history for row in rows),
        repeats_of_last=sum(row.history[-1:] == (row.target,) for row in rows),
        new_users=sum(row.user not in users for row in rows),
        ambiguous=None if ambiguous is None else sum(row.target in ambiguous for row in rows),
        doubles=len(rows) - len({(row.user, row.history, row.target) for row in rows}),
        history_lengths=_histogram(lengths),
    )


def _histogram(counts: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(counts.get(value, 0) for value in range(max(counts, default=-1) + 1))


def _in_groups(counts: Counter[Any]) -> int:
    return sum(count for count in counts.values() if count > 1)


def _ambiguous_items(semantic_ids: Sequence[tuple[str, ...]]) -> set[int]:
    counts = Counter(semantic_ids)
    return {item for item, tokens in enumerate(semantic_ids) if counts[tokens] > 1}


def _top_share(rows: Sequence[Interaction], top: int) -> float:
    """Count every event once: each row's target, and the whole history of each user's first row."""
    counts: Counter[int] = Counter()
    known: set[str] = set()
    for row in rows:
        counts[row.target] += 1
        if row.user not in known:
            counts.update(row.history)
            known.add(row.user)
    return sum(count for _, count in counts.most_common(top)) / max(counts.total(), 1)


def _semantic_ids(semantic_ids: Sequence[tuple[str, ...]]) -> SemanticIdDescription:
    counts = Counter(semantic_ids)
    by_levels = Counter(len(tokens) for tokens in semantic_ids)
    levels = [
        Counter(tokens[level] for tokens in semantic_ids if len(tokens) > level)
        for level in range(max(by_levels, default=0))
    ]
    return SemanticIdDescription(
        distinct=len(counts),
        shared=sum(count > 1 for count in counts.values()),
        ambiguous_items=_in_groups(counts),
        items_by_levels=_histogram(by_levels),
        codes=tuple(len(codes) for codes in levels),
        perplexities=tuple(_perplexity(codes) for codes in levels),
    )


def _perplexity(codes: Counter[str]) -> float:
    total = codes.total()
    return math.exp(-sum(count / total * math.log(count / total) for count in codes.values()))


def description_rows(description: Description) -> list[tuple[str, ...]]:
    """Return the description as the rows of a table, all of one width.

    Returns:
        The header (the splits), one row per figure of the splits (shares are of the split's rows), then figures of the
        whole dataset with their value in the second cell.
    """
    splits = list(description.splits.values())
    table = [("", *description.splits)]
    for label, attribute in (("rows", "rows"), ("users", "users"), ("distinct targets", "targets")):
        table.append((label, *(f"{getattr(split, attribute):,}" for split in splits)))
    for label, attribute in _SHARES:
        counts = [getattr(split, attribute) for split in splits]
        if None not in counts:
            table.append((label, *(_share(count, split.rows) for count, split in zip(counts, splits))))
    table.append(("mean history", *(f"{split.mean_history:.2f}" for split in splits)))
    for length in range(max((len(split.history_lengths) for split in splits), default=0)):
        counts = [split.history_lengths[length : length + 1] for split in splits]
        if any(sum(count) for count in counts):
            row = (_share(sum(count), split.rows) for count, split in zip(counts, splits))
            table.append((f"history of {length}", *row))
    return [*table, *((*row, *[""] * (len(splits) - 1)) for row in _catalog_rows(description))]


_SHARES = (
    ("cold targets", "cold"),
    ("repeats", "repeats"),
    ("repeats of the last item", "repeats_of_last"),
    ("users without train rows", "new_users"),
    ("targets with a shared semantic ID", "ambiguous"),
    ("doubled rows", "doubles"),
)


def _share(count: int, rows: int) -> str:
    return f"{count:,} ({count / rows:.1%})" if rows else "0"


def _catalog_rows(description: Description) -> list[tuple[str, ...]]:
    """Return the rows that describe the whole dataset: a label and one cell."""
    rows: list[tuple[str, ...]] = [
        ("items", f"{description.items:,}"),
        ("items that share their title", f"{description.shared_titles:,}"),
        ("train interactions of the ten most frequent items", f"{description.top10_share:.1%}"),
    ]
    for pair, count in description.common_rows.items():
        rows.append((f"rows common to {' and '.join(pair)}", f"{count:,}"))
    ids = description.semantic_ids
    if ids is not None:
        rows.append(("distinct semantic IDs", f"{ids.distinct:,}"))
        rows.append(("shared semantic IDs", f"{ids.shared:,}, by {ids.ambiguous_items:,} items"))
        levels = [f"{levels}: {items:,}" for levels, items in enumerate(ids.items_by_levels) if items]
        rows.append(("items by levels", ", ".join(levels)))
        for level, (codes, perplexity) in enumerate(zip(ids.codes, ids.perplexities), 1):
            rows.append((f"codes in use at level {level}", f"{codes:,} (perplexity {perplexity:.1f})"))
    return rows
