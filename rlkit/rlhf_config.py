"""The flat form of a three-stage RLHF run: SFT, reward model, PPO, compiled into a recipe.

One setting for each number that RLHF prototypes turn; whatever else a recipe can say needs a recipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from rlkit.component import Settings
from rlkit.config.models import CausalLMSettings
from rlkit.errors import RecipeError
from rlkit.recipe import LoadedRecipe, recipe_from_tree
from rlkit.recipe_errors import Text, booleans, translate
from rlkit.recipe_yaml import Document, YamlProblem, parse_document, read_text

SOURCE = "RLHFConfig"
PRESETS: tuple[str, ...] = get_args(CausalLMSettings.model_fields["preset"].annotation)
SFT, REWARD_MODEL, PPO, EVALUATE = "sft", "reward_model", "ppo", "evaluate"


class RLHFConfig(Settings):
    """Settings of a run through SFT, a reward model and PPO; every field has a default.

    The defaults are for a preset on the generated demo. PPO adapts its KL penalty towards 0.1 nats per token.
    """

    model_name: str | dict[str, Any] = Field("nano", min_length=1)
    """A preset (nano, micro, mini), a folder or hub id of a causal language model, or a recipe's ``model`` mapping,
    such as ``{type: ...}`` of a plugin."""
    tokenizer_path: str | None = Field(None, min_length=1)
    """A folder or hub id of another tokenizer than the model's own."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where all stages compute; auto: CUDA where it is there, else MPS, else the CPU."""

    sft_data_path: str | None = Field(None, min_length=1)
    """Conversations to imitate; none: those of the generated demo."""
    sft_epochs: float = Field(2.0, gt=0)
    """Passes over the conversations."""
    sft_batch_size: int = Field(32, ge=1)
    """Conversations per update."""
    sft_lr: float = Field(3e-3, gt=0)
    """Peak learning rate; the default suits a preset, a pretrained model wants about 2e-5."""

    reward_data_path: str | None = Field(None, min_length=1)
    """Preferences (prompt, chosen, rejected); none: those of the generated demo."""
    reward_epochs: float = Field(2.0, gt=0)
    """Passes over the preferences."""
    reward_lr: float = Field(1e-3, gt=0)
    """Peak learning rate; a pretrained model wants about 1e-5."""
    reward_batch_size: int = Field(32, ge=1)
    """Pairs per update."""
    freeze_reward_backbone: bool = False
    """Train the reward model's head alone; its backbone stays the SFT model's."""

    ppo_data_path: str | None = Field(None, min_length=1)
    """Prompts; none: those of the generated demo."""
    ppo_iterations: int = Field(40, ge=1)
    """Rollouts in all."""
    ppo_lr_policy: float = Field(3e-4, gt=0)
    """Peak learning rate of the policy; a pretrained model wants about 1e-6."""
    ppo_lr_value: float = Field(1e-3, gt=0)
    """Peak learning rate of the value model, which is a model of its own and starts from the reward model."""
    ppo_batch_size: int = Field(64, ge=1)
    """Prompts per rollout, one completion each (a recipe's ``rollout_batch_size``)."""
    ppo_mini_batch_size: int = Field(32, ge=1)
    """Prompts per update (a recipe's ``train.batch_size``)."""
    ppo_epochs: int = Field(2, ge=1)
    """Passes over each rollout."""

    max_length: int = Field(256, ge=16)
    """Tokens of prompt and completion together in SFT and in the reward model; sampled completions have half of it."""
    save_dir: str = Field("runs/rlhf", min_length=1)
    """The run directory."""
    save_interval: int = Field(10, ge=1)
    """PPO: a checkpoint is written, and kept, after every so many rollouts."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """What the files in ``logs/`` hold."""

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, level: Any) -> Any:
        return level.upper() if isinstance(level, str) else level

    @model_validator(mode="after")
    def _whole_mini_batches(self) -> RLHFConfig:
        if self.ppo_batch_size % self.ppo_mini_batch_size:
            raise ValueError(
                f"ppo_batch_size {self.ppo_batch_size} is not a multiple of ppo_mini_batch_size "
                f"{self.ppo_mini_batch_size}; choose a multiple"
            )
        return self

    @property
    def updates_per_rollout(self) -> int:
        """Return PPO's optimizer steps per rollout."""
        return self.ppo_epochs * self.ppo_batch_size // self.ppo_mini_batch_size

    def to_recipe(self, source: str = SOURCE) -> LoadedRecipe:
        """Compile into a recipe; what runs is the recipe.

        Args:
            source: what messages call the configuration.

        Raises:
            RecipeError: every problem of what a mapping as ``model_name`` holds.
            PluginError: a plugin does not load.
        """
        return recipe_from_tree(self._tree(), source=source)

    def _tree(self) -> dict[str, Any]:
        return {
            "name": "rlhf",
            "model": self._model(),
            "domain": self._domain(),
            "engine": {"type": "local", "device": self.device},
            "stages": {
                SFT: self._sft(),
                REWARD_MODEL: self._reward_model(),
                PPO: self._ppo(),
                EVALUATE: {
                    "type": "evaluate",
                    "chat": {"rewards": [{"type": "model", "stage": REWARD_MODEL}]},
                },
            },
        }

    def _model(self) -> dict[str, Any]:
        if isinstance(self.model_name, dict):
            model = dict(self.model_name)
        else:
            model = {"preset" if self.model_name in PRESETS else "path": self.model_name}
        return model | ({"tokenizer": self.tokenizer_path} if self.tokenizer_path else {})

    def _domain(self) -> dict[str, Any]:
        sources = {
            "demonstrations": self.sft_data_path,
            "preferences": self.reward_data_path,
            "prompts": self.ppo_data_path,
        }
        named = {kind: {"path": path} if path else {"type": "chat_demo"} for kind, path in sources.items()}
        return {"type": "chat", "max_completion_tokens": self.max_length // 2, **named}

    def _sft(self) -> dict[str, Any]:
        return {
            "algorithm": {"type": "sft", "max_tokens": self.max_length},
            "train": {"epochs": self.sft_epochs, "batch_size": self.sft_batch_size, "learning_rate": self.sft_lr},
        }

    def _reward_model(self) -> dict[str, Any]:
        return {
            "start_from": SFT,
            "algorithm": {
                "type": "reward_model",
                "max_tokens": self.max_length,
                "freeze_backbone": self.freeze_reward_backbone,
            },
            "train": {
                "epochs": self.reward_epochs,
                "batch_size": self.reward_batch_size,
                "learning_rate": self.reward_lr,
            },
        }

    def _ppo(self) -> dict[str, Any]:
        steps = self.updates_per_rollout
        return {
            "start_from": SFT,
            "algorithm": {
                "type": "ppo",
                "rollout": {"type": "sample", "max_completion_tokens": self.max_length // 2},
                "rollout_batch_size": self.ppo_batch_size,
                "updates_epochs": self.ppo_epochs,
                "rewards": [{"type": "model", "stage": REWARD_MODEL}],
                "kl_controller": {"target": 0.1, "horizon": 1000},
                "value": {"backbone": "separate", "start_from": REWARD_MODEL, "learning_rate": self.ppo_lr_value},
                "validate_on": {"select_by": "last"},  # else only looks at the valid split write checkpoints
            },
            "train": {
                "learning_rate": self.ppo_lr_policy,
                "batch_size": self.ppo_mini_batch_size,
                "max_steps": self.ppo_iterations * steps,
                "save_every_steps": self.save_interval * steps,
                "keep_checkpoints": self.ppo_iterations // self.save_interval + 1,
            },
        }


def read_config(source: Mapping[str, Any] | str | Path) -> RLHFConfig:
    """Read a configuration from a mapping, or from a JSON or YAML file.

    Raises:
        RecipeError: every wrong or unknown field, by file and line where there is a file.
    """
    if isinstance(source, str | Path):
        name, document = str(source), _document(Path(source).expanduser())
    else:
        name, document = SOURCE, Document(dict(source))
    problems = booleans(RLHFConfig, document.tree)
    config = None
    try:
        config = RLHFConfig.model_validate(document.tree)
    except ValidationError as error:
        problems += translate(RLHFConfig, document.tree, error)
    if config is None or problems or document.problems:
        raise Text(name, document, {}).error(problems)
    return config


def _document(path: Path) -> Document:
    """Parse a file; JSON by its own rules, and as the YAML that it nearly is for the places of its values."""
    if not path.exists():
        raise RecipeError(f"{path}: there is no such file; name a JSON or YAML file of RLHFConfig's fields")
    text = read_text(path)
    is_json = path.suffix.lower() == ".json"
    try:
        tree = json.loads(text) if is_json else {}
        if not isinstance(tree, dict):
            raise RecipeError(f"{path}: a mapping of RLHFConfig's fields is expected, got a {type(tree).__name__}")
        document = parse_document(text.replace("\t", " ") if is_json else text)  # JSON texts hold no bare tab
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg.lower()}") from error
    except YamlProblem as problem:
        raise RecipeError(f"{path}:{problem.mark}: {problem.message}") from problem
    if is_json:
        document.tree = tree
    return document
