"""The files of an evaluation: ``eval.json`` and ``ranked.jsonl``.

Nothing in them depends on the clock or the place, so that a second run writes the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from rlkit.ops.bootstrap import PAIRED_TEST, paired_differences
from rlkit.ops.ranking import MISSING
from rlkit.recsys.evaluation import HEADLINE_K, Evaluation, EvaluationRows
from rlkit.recsys.metrics import NO_SID, item_ranks, sid_ranks


def eval_report(
    rows: EvaluationRows, models: Sequence[Evaluation], others: Sequence[Evaluation] = ()
) -> dict[str, Any]:
    """Return what ``eval.json`` holds.

    Args:
        rows: what all were evaluated on.
        models: in the order of the stages; the last one is the result, the first one what the others are paired with.
        others: baselines, and the ceiling.
    """
    result = models[-1]
    return {
        **_numbers(result),
        "n": len(rows.interactions),
        "users": len(np.unique(rows.users)),
        "invalid": result.invalid,
        "buckets": result.buckets,
        "health": result.health,
        "paired_test": PAIRED_TEST,
        "rows": [_report_row(rows, row, models[0]) for row in (*models, *others)],
    }


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write ``eval.json``: sorted keys, six digits, whole or not at all."""
    text = json.dumps(_rounded(report), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    _write_atomically(path, [text, "\n"])


def write_ranked(
    path: Path,
    rows: EvaluationRows,
    names: tuple[Sequence[str], Sequence[str]],
    ranked: np.ndarray,
    scores: np.ndarray | None = None,
) -> None:
    """Write ``ranked.jsonl``, one line per row, whole or not at all.

    ``rank`` counts from 1 and is null where the target's SID is not listed; ``item_ranks`` are the first and the last
    of the ranks that the target item is equally likely at.

    Args:
        path: the file.
        rows: what was ranked for.
        names: N item keys, and S semantic IDs as joined tokens.
        ranked: (R, K) SID indices, best first; ``NO_SID`` pads.
        scores: (R, K) of the lists.
    """
    _write_atomically(path, _ranked_lines(rows, names, ranked, scores))


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    return {"metrics": dict(evaluation.metrics), "ci95": dict(evaluation.ci95)}


def _report_row(rows: EvaluationRows, row: Evaluation, first: Evaluation) -> dict[str, Any]:
    described = {"name": row.name, "kind": row.kind, "settings": dict(row.settings), **_numbers(row)}
    if row is first:
        return described
    k = HEADLINE_K if HEADLINE_K in rows.ks else max(rows.ks)
    metrics = [f"{level}{metric}@{k}" for level in ("", "item/") for metric in ("hit_rate", "ndcg")]
    before, after = (np.stack([one.values[metric] for metric in metrics], axis=1) for one in (first, row))
    tests = zip(metrics, paired_differences(before, after, rows.users, rows.seed))
    paired = {
        metric: {"difference": test.difference, "ci95": (test.low, test.high), "p": test.p} for metric, test in tests
    }
    return {**described, "paired_with": first.name, "paired": paired}


def _ranked_lines(
    rows: EvaluationRows, names: tuple[Sequence[str], Sequence[str]], ranked: np.ndarray, scores: np.ndarray | None
) -> Iterator[str]:
    keys, sids = names
    at_sid = sid_ranks(ranked, rows.target_sids)
    at_item = item_ranks(ranked, rows.targets, rows.sid_of_item)
    keys_of_sid: list[list[str]] = [[] for _ in sids]
    for key, sid in zip(keys, rows.sid_of_item):
        keys_of_sid[sid].append(key)
    for index, row in enumerate(rows.interactions):
        listed = ranked[index][ranked[index] != NO_SID]
        missing = at_sid.first[index] == MISSING
        first, ties = int(at_item.first[index]), int(at_item.ties[index])
        line = {
            "source": f"{PurePath(row.source.path).name}:{row.source.line}",
            "user": row.user,
            "history": [keys[item] for item in row.history],
            "target": keys[row.target],
            "target_semantic_id": sids[rows.target_sids[index]],
            "rank": None if missing else int(at_sid.first[index]) + 1,
            "item_ranks": None if missing else [first + 1, first + ties],
            "semantic_ids": [sids[sid] for sid in listed],
            "items": [keys_of_sid[sid] for sid in listed],
        }
        if scores is not None:
            line["scores"] = _rounded(scores[index, : len(listed)].tolist())
        yield json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _rounded(value: Any) -> Any:
    """Return the value with plain numbers of six digits, which do not depend on the order of additions."""
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    if isinstance(value, float):
        return round(float(value), 6) + 0.0  # no -0.0
    return value.item() if isinstance(value, np.generic) else value


def _write_atomically(path: Path, parts: Iterable[str]) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(parts)
    os.replace(partial, path)
