"""The Python form of a three-stage RLHF run: one method per stage of the recipe that ``RLHFConfig`` compiles into."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkit.errors import RunError
from rlkit.rlhf_config import EVALUATE, PPO, REWARD_MODEL, SFT, SOURCE, RLHFConfig, read_config
from rlkit.run import run
from rlkit.run_directory import RunDirectory

METHODS = {
    SFT: "run_sft",
    REWARD_MODEL: "run_reward_training",
    PPO: "run_ppo_training",
    EVALUATE: "evaluate_model",
}
"""The method that runs each stage, in their order."""


def create_rlhf_pipeline(config: RLHFConfig | Mapping[str, Any] | str | Path) -> RLHFPipeline:
    """Build a pipeline; nothing runs yet.

    Args:
        config: fields of ``RLHFConfig``, or a JSON or YAML file of them.

    Raises:
        RecipeError: every wrong or unknown field, by file and line where there is a file.
    """
    source = str(config) if isinstance(config, str | Path) else SOURCE
    return RLHFPipeline(config if isinstance(config, RLHFConfig) else read_config(config), source)


class RLHFPipeline:
    """A run whose stages are called one by one, or all at once.

    A stage that is finished is skipped, an interrupted one goes on from its last checkpoint. Where settings or data
    have changed since, a method refuses to go on: ``fresh=True`` redoes its stage, and those after it are forgotten.

    Args:
        config: the settings.
        source: what messages call them.
    """

    def __init__(self, config: RLHFConfig, source: str = SOURCE) -> None:
        self.config = config
        self.recipe = config.to_recipe(source)
        self.directory = RunDirectory(Path(config.save_dir).expanduser())

    def run_sft(self, fresh: bool = False) -> Path:
        """Fine-tune the model on conversations; returns the model's folder."""
        return self._stage(SFT, fresh) / "model"

    def run_reward_training(self, fresh: bool = False) -> Path:
        """Train the reward model on preferences; returns its folder.

        Raises:
            RunError: SFT has not run.
        """
        return self._stage(REWARD_MODEL, fresh) / "model"

    def run_ppo_training(self, fresh: bool = False) -> Path:
        """Train the SFT model against the reward model; returns the policy's folder.

        Raises:
            RunError: SFT or reward training has not run.
        """
        return self._stage(PPO, fresh) / "model"

    def evaluate_model(self, fresh: bool = False) -> dict[str, Any]:
        """Evaluate the SFT model and the policy on held-out prompts; returns what ``evaluate/eval.json`` holds.

        Raises:
            RunError: a stage has not run.
        """
        return json.loads((self._stage(EVALUATE, fresh) / "eval.json").read_text(encoding="utf-8"))

    def run_full_pipeline(self, fresh: bool = False) -> dict[str, Any]:
        """Run whatever is not finished of SFT, reward model, PPO and evaluation; returns the evaluation."""
        self._run(EVALUATE, SFT if fresh else None)
        return self.evaluate_model()

    def _stage(self, stage: str, fresh: bool) -> Path:
        finished = self.directory.manifest()["stages"]
        earlier = list(METHODS)[: list(METHODS).index(stage)]
        missing = [METHODS[name] for name in earlier if name not in finished]
        if missing:
            listed = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
            raise RunError(
                f"{METHODS[stage]}: in {self.config.save_dir} {listed} must come before; "
                "call what is missing, or run_full_pipeline"
            )
        self._run(stage, stage if fresh else None)
        return self.directory.stage(stage)

    def _run(self, until: str, redo_from: str | None) -> None:
        run(
            self.recipe,
            self.directory.path,
            from_stage=redo_from,
            until_stage=until,
            beside={"config.json": self.config.model_dump_json(indent=2) + "\n"},
            log_level=getattr(logging, self.config.log_level),
        )
