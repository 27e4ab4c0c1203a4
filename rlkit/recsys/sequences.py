"""Compact training data: whole user sequences, augmented anew in every epoch.

Sequence i of epoch e depends on (seed, e, i) alone, so that resuming and any number of processes see the same data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from rlkit.config.domains import AugmentSettings
from rlkit.recsys.teacher import Teacher

IGNORE = -100
DROP_PROBABILITY = 0.2
"""How likely an item goes, in a sequence that item dropout chose."""
LAGS = (1, 2, 3)
"""How far apart two items of a train sequence may be to count as a transition."""
FORGET = 0.5
"""What each step further back weighs, in counting and in walking."""
_NONE = np.empty((0, 2), dtype=np.int64)


class ItemTokens:
    """The tokens of every item, and the trie node before each of them.

    Args:
        tokens: per item its completion's token ids.
        nodes: per item the node before each token.
        begin: token ids that open every sequence.
    """

    def __init__(self, tokens: Sequence[Sequence[int]], nodes: Sequence[Sequence[int]], begin: Sequence[int]) -> None:
        self.tokens = [np.asarray(row, dtype=np.int64) for row in tokens]
        self.nodes = [np.asarray(row, dtype=np.int64) for row in nodes]
        self.begin = np.asarray(begin, dtype=np.int64)

    def soft_targets(self, items: np.ndarray, teacher: Teacher, sid_of_item: np.ndarray) -> np.ndarray:
        """Return (T, W) the teacher's targets at each token of a sequence, 0 at those that open it."""
        tokens, nodes = [self.tokens[item] for item in items], [self.nodes[item] for item in items]
        soft = teacher.soft_targets(sid_of_item[items], tokens, nodes)
        return np.concatenate([np.zeros((len(self.begin), soft.shape[1]), dtype=np.float32), soft])

    def encode(self, items: Sequence[int] | np.ndarray, predict_from: int = 0) -> dict[str, np.ndarray]:
        """Return ``input_ids``, ``labels`` and ``nodes`` (T,); items before ``predict_from`` carry no loss."""
        ids = np.concatenate([self.begin, *(self.tokens[item] for item in items)])
        silent = len(self.begin) + sum(len(self.tokens[item]) for item in items[:predict_from])
        labels = ids.copy()
        labels[:silent] = IGNORE
        nodes = np.concatenate([np.zeros_like(self.begin), *(self.nodes[item] for item in items)])
        return {"input_ids": ids, "labels": labels, "nodes": nodes}


def windows(sequences: Sequence[Sequence[int]], size: int) -> list[np.ndarray]:
    """Cut sequences into windows of at most ``size`` items that overlap by half, the last one flush with the end."""
    result = []
    for sequence in sequences:
        last = max(len(sequence) - size, 0)
        starts = [*range(0, last, max(size // 2, 1)), last]
        result += [np.asarray(sequence[start : start + size]) for start in starts]
    return result


class Transitions:
    """Item-to-item transitions of the train sequences, for random walks with a memory.

    A walk begins with a user's first items. A step goes on from one of the walk's items, the last one most likely, to
    what followed that item in train, at once or after a few others. So walks say of real histories what counting skip
    transitions says of them: the model learns it by samples.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], num_items: int) -> None:
        rows = [np.asarray(sequence) for sequence in sequences]
        lags = [
            np.concatenate([_NONE, *(np.stack([row[:-lag], row[lag:]], 1) for row in rows if len(row) > lag)])
            for lag in LAGS
        ]
        pairs = np.concatenate(lags)
        weights = np.concatenate([np.full(len(part), FORGET ** (lag - 1)) for lag, part in zip(LAGS, lags)])
        order = np.argsort(pairs[:, 0], kind="stable")
        self.next, self.reach = pairs[order, 1], np.concatenate([[0.0], np.cumsum(weights[order])])
        self.offsets = np.searchsorted(pairs[order, 0], np.arange(num_items + 1))

    def walk(self, start: np.ndarray, steps: int, random: np.random.Generator) -> np.ndarray:
        """Go on from some items for ``steps`` items, or until an item that nothing followed."""
        items = start.tolist()
        for _ in range(steps):
            back = min(int(random.geometric(1 - FORGET)), len(items))
            following = self._follow(items[-back], random)
            if following is None:
                break
            items.append(following)
        return np.asarray(items)

    def _follow(self, item: int, random: np.random.Generator) -> int | None:
        first, last = self.offsets[item], self.offsets[item + 1]
        if first == last:
            return None
        place = random.uniform(self.reach[first], self.reach[last])
        return int(self.next[min(np.searchsorted(self.reach, place, side="right") - 1, last - 1)])


def collate(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Pad on the right: ``input_ids``, ``attention_mask``, ``labels``, ``nodes``, all (B, T)."""
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": IGNORE, "nodes": 0}  # any id serves as padding under the attention mask
    batch = {
        key: torch.from_numpy(
            np.stack([np.pad(row[key], (0, width - len(row[key])), constant_values=value) for row in rows])
        )
        for key, value in fill.items()
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
    if any("soft" in row for row in rows):
        batch["soft"] = _collate_soft(rows, width)
    return batch


def _collate_soft(rows: Sequence[dict[str, np.ndarray]], width: int) -> torch.Tensor:
    """Return (B, T, W), 0 where a sequence has no teacher."""
    candidates = max(row["soft"].shape[1] for row in rows if "soft" in row)
    soft = np.zeros((len(rows), width, candidates), dtype=np.float32)
    for index, row in enumerate(rows):
        if "soft" in row:
            soft[index, : len(row["soft"])] = row["soft"]
    return torch.from_numpy(soft)


class TrainSequences(Dataset):
    """User sequences and random walks, with every position to be predicted."""

    collate = staticmethod(collate)

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        items: ItemTokens,
        augment: AugmentSettings,
        *,
        window: int,
        seed: int,
        teacher: Teacher | None = None,
        sid_of_item: np.ndarray | None = None,
    ) -> None:
        self.items, self.augment, self.seed = items, augment, seed
        self.teacher, self.sid_of_item = teacher, sid_of_item
        self.windows = windows(sequences, window)
        self.transitions = Transitions(sequences, len(items.tokens)) if augment.walks else None
        lengths = [len(window) for window in self.windows]
        walk = round(np.mean(lengths) / 2) + augment.walk_steps
        self.lengths = np.asarray(lengths + [walk] * augment.walks)

    def __len__(self) -> int:
        return len(self.windows) + self.augment.walks

    def __getitem__(self, place: tuple[int, int]) -> dict[str, np.ndarray]:
        """Return sequence ``index`` as ``(epoch, index)`` draws it."""
        epoch, index = place
        random = np.random.default_rng((self.seed, epoch, index))
        if index >= len(self.windows):
            assert self.transitions is not None
            sequence = self.windows[random.integers(len(self.windows))]
            start = sequence[: random.integers(1, max(len(sequence), 2))]  # one item is all of it
            return self._encode(self.transitions.walk(start, self.augment.walk_steps, random))
        sequence = self.windows[index]
        if random.random() < self.augment.item_dropout:
            kept = sequence[random.random(len(sequence)) >= DROP_PROBABILITY]
            sequence = kept if len(kept) > 1 else sequence
        if random.random() < self.augment.reverse:
            return self.items.encode(sequence[::-1])  # the teacher counts forwards
        return self._encode(sequence)

    def _encode(self, sequence: np.ndarray) -> dict[str, np.ndarray]:
        row = self.items.encode(sequence)
        if self.teacher is not None and self.sid_of_item is not None:
            row["soft"] = self.items.soft_targets(sequence, self.teacher, self.sid_of_item)
        return row


class TargetSequences(Dataset):
    """Rows of (history, target) with the loss on the target alone: what valid loss is measured on."""

    def __init__(self, rows: Sequence[tuple[Sequence[int], int]], items: ItemTokens) -> None:
        self.rows, self.items = rows, items
        self.lengths = np.asarray([len(history) for history, _ in rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        history, target = self.rows[index]
        return self.items.encode([*history, target], predict_from=len(history))
