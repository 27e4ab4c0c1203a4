"""A run directory: what was asked for, what it was made with, and which stages are finished.

``manifest.json`` names every finished stage with a hash of its inputs (its settings, those of what it builds on, the
data files) and its artefacts. A stage counts as finished when it stands there; everything before that can be redone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rlkit.errors import RunError

INPUTS = "inputs"
"""In a stage's folder: the hash of the inputs that it was begun for."""

PACKAGES = ("rlkit", "torch", "transformers", "trl", "accelerate", "peft", "deepspeed", "numpy", "scikit-learn")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def content_hash(*parts: Any) -> str:
    """Return a short hash of JSON-serializable values; a ``Path`` stands for the file's bytes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else json.dumps(part, sort_keys=True, default=str).encode()
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()[:16]


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest_path = path / "manifest.json"

    def stage(self, name: str) -> Path:
        """Return a stage's folder."""
        return self.path / name

    def manifest(self) -> dict[str, Any]:
        """Return what is finished; empty for a new run.

        Raises:
            RunError: the file is damaged.
        """
        if not self.manifest_path.is_file():
            return {"stages": {}}
        try:
            return json.loads(self.manifest_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{self.manifest_path}: not valid JSON: {error}; use --fresh to start over") from error

    def open(self, recipe_yaml: str, seed: int, plugins: Mapping[str, str]) -> None:
        """Create the folder and write the resolved recipe and the environment."""
        (self.path / "logs").mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "recipe.yaml", recipe_yaml)
        write_atomically(self.path / "environment.json", json.dumps(_environment(seed, plugins), indent=2) + "\n")

    def finished(self, stage: str, inputs: str) -> bool:
        """Return whether the stage is finished for these inputs.

        Raises:
            RunError: it was finished, or begun up to a checkpoint, for other inputs.
        """
        entry = self.manifest()["stages"].get(stage)
        if (entry["inputs"] if entry else self._begun(stage) or inputs) != inputs:
            raise RunError(
                f"{self.path}: stage {stage!r} was made with other settings or data; "
                f"redo it with --from {stage}, start over with --fresh, or choose another --out"
            )
        return entry is not None

    def begin(self, stage: str, inputs: str) -> None:
        """Note for which inputs a stage begins; leftovers of other ones, which hold no checkpoint, are deleted."""
        folder = self.stage(stage)
        if (folder / INPUTS).is_file() and (folder / INPUTS).read_text(encoding="utf-8") != inputs:
            self.remove(stage)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / INPUTS, inputs)

    def _begun(self, stage: str) -> str | None:
        """Return the inputs of a stage that has a checkpoint to go on from."""
        begun, checkpoints = self.stage(stage) / INPUTS, self.stage(stage) / "checkpoints"
        there = begun.is_file() and any(checkpoints.glob("checkpoint-*"))
        return begun.read_text(encoding="utf-8") if there else None

    def finish(self, stage: str, inputs: str, artefacts: Mapping[str, Any], seconds: float) -> None:
        """Record a finished stage."""
        manifest = self.manifest()
        manifest["stages"][stage] = {
            "inputs": inputs,
            "artefacts": dict(artefacts),
            "seconds": round(seconds, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_atomically(self.manifest_path, json.dumps(manifest, indent=2) + "\n")

    def artefact(self, stage: str, kind: str) -> dict[str, Any] | None:
        """Return a finished stage's artefact of a kind."""
        entry = self.manifest()["stages"].get(stage)
        return entry["artefacts"].get(kind) if entry else None

    def remove(self, stage: str) -> None:
        """Forget a stage and delete its files and its lines in the logs."""
        manifest = self.manifest()
        if manifest["stages"].pop(stage, None) is not None:
            write_atomically(self.manifest_path, json.dumps(manifest, indent=2) + "\n")
        shutil.rmtree(self.stage(stage), ignore_errors=True)
        self.keep_lines(stage, before_step=0)

    def keep_lines(self, stage: str, before_step: int) -> None:
        """Drop a stage's metrics, samples and alarms from ``before_step`` on: they will be written again.

        Where it starts anew, so does what of it is in quarantine; those rows say no step.
        """
        for name in ("metrics.jsonl", "samples.jsonl", "alarms.jsonl", "quarantine.jsonl"):
            path = self.path / name
            if not path.is_file():
                continue
            kept = []
            for line in path.read_text(encoding="utf-8").split("\n"):  # a text may hold other ends of lines
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # cut short by a kill
                if row.get("stage") != stage or row.get("step", 0) < before_step:
                    kept.append(line + "\n")
            write_atomically(path, "".join(kept))

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl`` or ``samples.jsonl``."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _environment(seed: int, plugins: Mapping[str, str]) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "plugins": dict(plugins),
        "seed": seed,
    }
