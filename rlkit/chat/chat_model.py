"""Find and load the model that ``rlkit chat`` talks to: a folder, a run directory, a stage of one, or a hub id."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from rlkit.config.models import CausalLMSettings
from rlkit.errors import ModelError
from rlkit.models.head_files import headless
from rlkit.models.load import LoadedModel, load_causal_lm
from rlkit.plugins import load_plugins
from rlkit.recipe import load_recipe
from rlkit.run_directory import RunDirectory

WANTED = (
    "name the folder of a Hugging Face model, a run directory such as runs/sft, or one of its stages (runs/sft/sft)"
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class ChatModel(NamedTuple):
    """A model to talk to: a folder as it is, that of a run with the settings of its recipe."""

    loaded: LoadedModel
    name: str
    """Where it was found."""
    system: str | None
    """The system message that it was trained with, where its run says so."""


def load_chat_model(name: str) -> ChatModel:
    """Find a model and load it.

    Args:
        name: what the user wrote.

    Raises:
        ModelError: there is no model, or it is not one that writes text.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        return _from_hub(name, path)
    plain = (path / "config.json").is_file()
    folder = path if plain else _model_folder(path)
    if headless(folder) is None:
        raise ModelError(f"{folder}: is a reward model, which scores answers and writes none; {WANTED}")
    recipe = None if plain else _recipe(folder)
    if recipe is None:
        settings = CausalLMSettings(path=str(folder), dtype="auto")
        return ChatModel(load_causal_lm(settings), str(folder), None)
    target = load_plugins().get("model", recipe.model.type).load()
    return ChatModel(target(recipe.model, path=folder), str(folder), getattr(recipe.domain, "system", None))


def _from_hub(name: str, path: Path) -> ChatModel:
    """Load a hub id; what looks like a path that is not there is no hub id."""
    if (
        path.exists()
        or name.startswith((".", "~"))
        or not _HUB_ID.fullmatch(name)
        or path.parent.is_dir()
        or path.parts[0] == "runs"
    ):
        wrong = "is a file, not a folder" if path.exists() else "there is no such folder"
        raise ModelError(f"{name}: {wrong}; {WANTED}")
    return ChatModel(load_causal_lm(CausalLMSettings(path=name, dtype="auto")), name, None)


def _model_folder(path: Path) -> Path:
    """Return the folder that holds the weights of a stage or of a run's last policy.

    Raises:
        ModelError: there is none.
    """
    if (path / "model" / "config.json").is_file():  # a stage
        return path / "model"
    if (path / "adapter_config.json").is_file():
        raise ModelError(f"{path}: is an adapter without its model; merge the two and name that folder")
    if not (path / "manifest.json").is_file():
        raise ModelError(f"{path}: holds no model, got {_listing(path)}; {WANTED}")
    stages = RunDirectory(path).manifest()["stages"]
    policies = [name for name, entry in stages.items() if "policy" in entry["artefacts"]]
    if not policies or not (path / policies[-1] / "model" / "config.json").is_file():
        finished = ", ".join(stages) or "none"
        raise ModelError(f"{path}: no stage of this run has made a policy, finished: {finished}; run it first")
    return path / policies[-1] / "model"


def _listing(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return shown or "an empty folder"


def _recipe(folder: Path) -> Any:
    """Return the recipe of the run that a model lies in, None where it lies in no run."""
    run = next((run for run in folder.resolve().parents[:4] if _is_run(run)), None)
    return None if run is None else load_recipe(run / "recipe.yaml").recipe


def _is_run(path: Path) -> bool:
    try:
        return (
            "stages" in json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            and (path / "recipe.yaml").is_file()
        )
    except (OSError, ValueError):
        return False
