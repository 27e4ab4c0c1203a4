"""Rows to splits, by prompt: the same prompt never stands in train and in valid.

Prompts are ranked by a hash of their text, so that a prompt has the same rank in every source and on every machine,
however the rows are ordered.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlkit.chat.data.report import FileReport
from rlkit.chat.data.rows import Row, prompt_key

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceData:
    """The rows of one source.

    Args:
        splits: train, valid and test rows, in file order.
        reports: the files that were read; none for generated rows.
        cut: whether valid was cut from train, and is not a file of its own.
    """

    splits: Mapping[str, tuple[Row, ...]]
    reports: tuple[FileReport, ...] = ()
    cut: bool = field(default=False)


def cut_by_prompt(rows: Sequence[Row], share: float) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Part rows into train and about a share of valid ones, whole prompts at a time, each in its order.

    Raises:
        ValueError: there is one prompt only.
    """
    counts = Counter(map(prompt_key, rows))
    if len(counts) < 2:
        raise ValueError("one prompt cannot be both train and valid; add rows, or name another file as valid")
    wanted, taken = math.ceil(share * len(rows)), 0
    valid: set[str] = set()
    for key in sorted(counts, key=_rank):
        if taken >= wanted or len(valid) == len(counts) - 1:
            break
        valid.add(key)
        taken += counts[key]
    return _parted(rows, valid)


def _rank(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _parted(rows: Sequence[Row], valid: set[str]) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    inside = [prompt_key(row) in valid for row in rows]
    return (
        tuple(row for row, held in zip(rows, inside) if not held),
        tuple(row for row, held in zip(rows, inside) if held),
    )


def keep_apart(sources: Mapping[str, SourceData]) -> dict[str, SourceData]:
    """Take the prompts that one source holds back out of the train rows of the others, where these were cut by us.

    Files that were named as train and valid are left as they are; what they share is said in the log.
    """
    held = {prompt_key(row) for one in sources.values() for split in ("valid", "test") for row in one.splits[split]}
    return {kind: _without(held, one) if one.cut else _warned(kind, one) for kind, one in sources.items()}


def _without(held: set[str], source: SourceData) -> SourceData:
    train, moved = _parted(source.splits["train"], held)
    if not moved or not train:
        return source
    valid = (*source.splits["valid"], *moved)
    test = valid if source.splits["test"] == source.splits["valid"] else source.splits["test"]
    return SourceData({"train": train, "valid": valid, "test": test}, source.reports, True)


def _warned(kind: str, source: SourceData) -> SourceData:
    train = set(map(prompt_key, source.splits["train"]))
    splits = ("valid",) if source.splits["test"] == source.splits["valid"] else ("valid", "test")
    for split in splits:
        shared = len(train.intersection(map(prompt_key, source.splits[split])))
        if shared:
            logger.warning("domain.%s: %d prompts of %s are also in train", kind, shared, split)
    return source
