"""What a reward model's folder holds, read without torch: is there a head, and what did training note?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HEAD_NAMES = re.compile(r"(^|\.)(score|classifier)\.")
"""How transformers names the head of a sequence classifier: ``score`` on decoders, ``classifier`` on most encoders."""

OUTCOME, PROCESS = "outcome", "process"
"""What a reward model gives: one number per completion, or how probably each of its steps is right."""
NOTES_FILE = "reward_model.json"
"""What training notes beside the weights: figures on held-out pairs, the spread of scores, where rows were cut."""
_LABELS = {OUTCOME: (1, "not one"), PROCESS: (2, "not two (wrong, right)")}
_OTHER = {
    OUTCOME: "it is a process reward model, which scores steps (what the reward 'process' reads)",
    PROCESS: "it is an outcome reward model, which scores whole completions (what the reward 'model' reads)",
}


def headless(folder: str | Path, kind: str = OUTCOME) -> str | None:
    """Return why a folder is no reward model of a kind, as a clause for a message; None where it is one.

    An outcome reward model is a sequence classifier with one label, a process reward model a token classifier with two.
    The head must be among the weights: a checkpoint without it loads all the same in transformers, which fills the head
    with noise.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        return "there is no such folder"
    if not (path / "config.json").is_file():
        return "it has no config.json"
    config, names = _json(path / "config.json"), weight_names(path)
    if not isinstance(config, dict) or names is None:
        return "its config.json or its weights are damaged"
    if not names:
        return "it has no .safetensors weights"
    if not any(HEAD_NAMES.search(name) for name in names):
        return "its weights hold no reward head"
    if _kind(config, path) != kind:
        return _OTHER[kind]
    wanted, otherwise = _LABELS[kind]
    if (labels := _labels(config)) != wanted:
        return f"its head gives {labels} numbers, {otherwise}"
    return None


def _kind(config: dict[str, Any], folder: Path) -> str:
    """Return the kind of a reward model by what training noted, else by the class that transformers saved."""
    names = config.get("architectures") or [""]
    return str(notes(folder).get("kind") or (PROCESS if str(names[0]).endswith("ForTokenClassification") else OUTCOME))


def head_problem(folder: str | Path, name: str, kind: str = OUTCOME) -> str | None:
    """Return a whole message about a folder that is no reward model of a kind, None where it is one.

    Args:
        folder: the model's folder.
        name: the setting that names it.
        kind: what is wanted.
    """
    reason = headless(folder, kind)
    if kind == OUTCOME:
        what, advice = "reward model", "name the model folder that a reward_model stage (`rlkit train-rm`) wrote"
    else:
        what = "process reward model"
        advice = "name the model folder that `rlkit train-rm --kind process` wrote"
    return f"{name}: no {what} in {str(folder)!r}: {reason}; {advice}" if reason else None


def weight_names(folder: Path) -> set[str] | None:
    """Return the names of all tensors in a folder's safetensors files; None where a file is damaged."""
    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        header = _header(path)
        if header is None:
            return None
        names |= header.keys() - {"__metadata__"}
    return names


def _labels(config: dict[str, Any]) -> int:
    """Return how many labels a config means; transformers leaves out its default, two."""
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) else int(config.get("num_labels", 2))


def _header(path: Path) -> dict[str, Any] | None:
    """Read a safetensors header: eight bytes of length, little-endian, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            return None
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return None
    return header if isinstance(header, dict) else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def notes(folder: str | Path) -> dict[str, Any]:
    """Return what training noted beside a reward model; empty where another tool made it."""
    path = Path(folder).expanduser() / NOTES_FILE
    found = _json(path) if path.is_file() else None
    return found if isinstance(found, dict) else {}


def normalization(folder: str | Path) -> tuple[float, float] | None:
    """Return mean and standard deviation of a reward model's scores on its train pairs; None where there are none."""
    train = notes(folder).get("train")
    if not isinstance(train, dict) or not train.get("std"):
        return None
    return float(train["mean"]), float(train["std"])
