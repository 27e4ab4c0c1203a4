"""Single verbs, such as ``sft`` and ``train-rm``: one training stage and its evaluation, without a recipe file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rlkit.cli.recipes import DryRun, Fresh, Out, Smoke, launch


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Args:
        name: what is typed.
        help: the first line of its help.
        algorithm: the algorithm, which is also the name of its stage.
        data: what ``--data`` holds, a source of the chat domain.
        recommends: a folder in MiniOneRec's format is data too, and without any it takes the generated shop.
        rewarded: it learns from a reward, which ``--reward-model`` may name.
        evaluates: what it makes can answer prompts, so an evaluation follows.
        generated: the source of the chat domain where no data is named; empty: the generated demo.
    """

    name: str
    help: str
    algorithm: str
    data: str
    recommends: bool = False
    rewarded: bool = False
    evaluates: bool = True
    generated: dict[str, Any] = field(default_factory=dict)


VERBS = {
    verb.name: verb
    for verb in (
        Verb("sft", "Fine-tune a model on demonstrations, then evaluate it.", "sft", "demonstrations", recommends=True),
        Verb(
            "train-rm",
            "Train a reward model on preferences.",
            "reward_model",
            "preferences",
            evaluates=False,
        ),
        Verb("dpo", "Train a model on preferences (DPO), then evaluate it.", "dpo", "preferences"),
        Verb("ppo", "Train a model by a reward (PPO), then evaluate it.", "ppo", "prompts", rewarded=True),
        Verb(
            "grpo",
            "Train a model by rewards (GRPO), then evaluate it.",
            "grpo",
            "prompts",
            recommends=True,
            rewarded=True,
        ),
    )
}
PROCESS = Verb(
    "train-rm-process",
    "Train a process reward model on answers whose steps are labeled.",
    "process_reward_model",
    "steps",
    evaluates=False,
    generated={
        "type": "arithmetic",
        "wrong": 0.4,
        "rows": 8_000,
        "levels": [{"digits": 1, "terms": 4, "operations": ["+", "-"]}],
    },
)
"""What ``train-rm --kind process`` stands for."""
REWARD_STAGE = "reward_model"
"""The stage that a rewarded verb puts before its own where nothing but preferences says what is good."""
_OF_THE_STAGE = ("algorithm", "train", "start_from", "device")
_VERIFIED = {"gsm8k": "math", "humaneval": "code"}
"""What verifies answers to data of a format."""
_TOLD = {
    "exact_match": "exact match with the data's answers",
    "math": "the value of the data's answers",
    "code": "the data's tests, run in a sandbox",
}
_HF_DATASET = ("dataset_info.json", "dataset_dict.json", "state.json")
_LONG_HELP = """{help}

--data holds {data}{more}. KEY=VALUE may begin with "algorithm." or "train." (of this stage), or be a
dotted key of the whole recipe, which --dry-run shows."""

Model = Annotated[str | None, typer.Option(metavar="DIR", help="A Hugging Face model.", show_default="the nano preset")]
Data = Annotated[
    Path | None,
    typer.Option(metavar="FILE|DIR", help="What it learns from.", show_default="a generated demo"),
]
RewardModel = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Reward answers by this model.", show_default="by the data's answers", file_okay=False
    ),
]
Kind = Annotated[
    Literal["preference", "process"],
    typer.Option(help="Learn which answer is better, or which steps of an answer are right."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings of the stage (algorithm.group_size=8, train.learning_rate=1e-5) or of the recipe (seed=1).",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in VERBS.values():
        folder = ", or a folder in MiniOneRec's format" if verb.recommends else ""
        folder = "; with --kind process, answers in labeled steps" if verb.name == "train-rm" else folder
        text = _LONG_HELP.format(help=verb.help, data=verb.data, more=folder)
        command = _rewarded_command(verb) if verb.rewarded else _command(verb)
        command = _reward_model_command(verb) if verb.name == "train-rm" else command
        command.__name__ = verb.name
        app.command(verb.name, help=text)(command)


def _command(verb: Verb) -> Callable[..., None]:
    def command(
        overrides: Overrides = None,
        model: Model = None,
        data: Data = None,
        out: Out = None,
        dry_run: DryRun = False,
        smoke: Smoke = False,
        fresh: Fresh = False,
    ) -> None:
        _run(verb, overrides or [], (model, data, None), out, dry_run=dry_run, smoke=smoke, fresh=fresh)

    return command


def _reward_model_command(verb: Verb) -> Callable[..., None]:
    def command(
        overrides: Overrides = None,
        model: Model = None,
        data: Data = None,
        kind: Kind = "preference",
        out: Out = None,
        dry_run: DryRun = False,
        smoke: Smoke = False,
        fresh: Fresh = False,
    ) -> None:
        chosen = PROCESS if kind == "process" else verb
        _run(chosen, overrides or [], (model, data, None), out, dry_run=dry_run, smoke=smoke, fresh=fresh)

    return command


def _rewarded_command(verb: Verb) -> Callable[..., None]:
    def command(
        overrides: Overrides = None,
        model: Model = None,
        data: Data = None,
        reward_model: RewardModel = None,
        out: Out = None,
        dry_run: DryRun = False,
        smoke: Smoke = False,
        fresh: Fresh = False,
    ) -> None:
        _run(verb, overrides or [], (model, data, reward_model), out, dry_run=dry_run, smoke=smoke, fresh=fresh)

    return command


# ---- the recipe


def single_recipe(
    verb: Verb,
    model: str | None = None,
    data: Path | None = None,
    reward_model: Path | None = None,
    own_rewards: bool = False,
) -> dict[str, Any]:
    """Return the recipe that a single verb stands for.

    Args:
        verb: the verb.
        model: a folder or hub id; none: the preset.
        data: a file or a folder; none: a generated demo.
        reward_model: what scores completions; none: the answers of the data, or a model trained on its preferences.
        own_rewards: overrides say the rewards.

    Raises:
        RecipeError: the data is not there, or nothing says what is a good answer.
    """
    from rlkit.errors import RecipeError

    if data is not None and not data.exists():
        raise RecipeError(f"--data: does not exist, got {str(data)!r}; name a file or a folder of {verb.data}")
    if verb.recommends and reward_model is None and (data is None or _is_shop(data)):
        recipe = _recommendation(verb, data)
    else:
        recipe = _chat(verb, data, reward_model, own_rewards)
    return {"name": verb.name, **recipe, **({"model": {"path": model}} if model else {})}


def _is_shop(data: Path) -> bool:
    return data.is_dir() and not any((data / name).is_file() for name in _HF_DATASET)


def _recommendation(verb: Verb, data: Path | None) -> dict[str, Any]:
    rewards = {"rewards": [{"type": "item_match"}, {"type": "rank_discount"}]} if verb.rewarded else {}
    return {
        "domain": {
            "type": "recommendation",
            "data": {"type": "minionerec", "path": str(data)} if data else {"type": "demo"},
        },
        "stages": {
            "semantic_ids": {"type": "semantic_ids"},
            verb.algorithm: {"algorithm": {"type": verb.algorithm, **rewards}},
            "evaluate": {"type": "evaluate"},
        },
    }


def _chat(verb: Verb, data: Path | None, reward_model: Path | None, own_rewards: bool) -> dict[str, Any]:
    source, stages = verb.data, {}
    algorithm: dict[str, Any] = {"type": verb.algorithm}
    evaluate: dict[str, Any] = {"type": "evaluate"}
    if verb.rewarded:
        algorithm["rollout"] = {"type": "sample"}
    if verb.rewarded and not own_rewards:
        reward = _reward(data, reward_model)
        algorithm["rewards"] = [reward]
        if reward["type"] != "exact_match":  # which an evaluation measures anyway
            evaluate["chat"] = {"rewards": [reward]}
        if "stage" in reward:
            source, stages[REWARD_STAGE] = "preferences", {"algorithm": {"type": "reward_model"}}
    stages[verb.algorithm] = {"algorithm": algorithm}
    return {
        "domain": {
            "type": "chat",
            **({source: str(data)} if data else {source: verb.generated} if verb.generated else {}),
        },
        "stages": stages | ({"evaluate": evaluate} if verb.evaluates else {}),
    }


def _reward(data: Path | None, reward_model: Path | None) -> dict[str, Any]:
    """Return what rewards completions: a model, the answers of the data, or a model that its preferences train."""
    from rlkit.chat.data.formats import FORMATS
    from rlkit.errors import RecipeError

    if reward_model is not None:
        return {"type": "model", "path": str(reward_model)}
    if data is None:
        return {"type": "model", "stage": REWARD_STAGE}
    name, first = _look(data)
    if name in _VERIFIED:
        return {"type": _VERIFIED[name]}
    if name == "prompts" and any(row.get("answer") for row in first):
        return {"type": "exact_match"}
    if "preferences" in FORMATS[name].gives:
        return {"type": "model", "stage": REWARD_STAGE}
    raise RecipeError(
        f"--data: neither answers nor preferences say what is good, got {str(data)!r} (format {name}); "
        "name a reward model with --reward-model DIR, or rewards with algorithm.rewards=[{type: ...}]"
    )


def _look(data: Path) -> tuple[str, list[Any]]:
    """Return the format of a file, or of the first of a folder's train files, and its first rows."""
    from rlkit.chat.data.files import Unreadable, find_files, first_values, read_values
    from rlkit.chat.data.formats import LOOK, detect
    from rlkit.errors import RecipeError

    try:
        first = first_values(read_values(find_files(data)["train"][0], LOOK), LOOK)
    except Unreadable as error:
        raise RecipeError(f"--data: {data}: {error}") from error
    found = detect(first)
    if found is None:
        raise RecipeError(f"--data: no known format of chat data, got {str(data)!r}; see `rlkit data preview --help`")
    return found.format, [row for row in first if isinstance(row, dict)]


# ---- running it


def stage_overrides(stage: str, overrides: Sequence[str]) -> list[str]:
    """Put the stage's path before the overrides that are relative to it."""
    return [
        f"stages.{stage}.{entry}" if entry.partition("=")[0].split(".")[0] in _OF_THE_STAGE else entry
        for entry in overrides
    ]


def _run(
    verb: Verb,
    overrides: Sequence[str],
    sources: tuple[str | None, Path | None, Path | None],
    out: Path | None,
    **options: bool,
) -> None:
    from rlkit.recipe import recipe_from_tree

    whole = stage_overrides(verb.algorithm, overrides)
    said = f"stages.{verb.algorithm}.algorithm"
    own = any(entry.partition("=")[0].strip() in (said, f"{said}.rewards") for entry in whole)
    recipe = single_recipe(verb, *sources, own_rewards=own)
    loaded = recipe_from_tree(recipe, whole, source=f"rlkit {verb.name}")
    for line in _told(verb, loaded.tree, sources[1]):
        typer.echo(line, err=True)
    launch(loaded, out, from_stage=None, until_stage=None, **options)


def _told(verb: Verb, tree: dict[str, Any], data: Path | None) -> Iterator[str]:
    """Yield what was chosen for want of an option."""
    if not tree["model"].get("path") and "preset" in tree["model"]:
        yield f"model: the {tree['model']['preset']} preset, untrained (choose one with --model)"
    if data is None and "demo" in str(tree["domain"].get("data", tree["domain"].get(verb.data))):
        yield "data: the generated demo (choose yours with --data)"
    if data is None and verb.generated:
        yield "data: generated arithmetic (choose yours with --data)"
    for reward in tree["stages"][verb.algorithm]["algorithm"].get("rewards") or ():
        if reward["type"] in _TOLD:
            yield f"reward: {_TOLD[reward['type']]} (choose a model with --reward-model)"
        elif reward.get("stage") == REWARD_STAGE:
            yield "reward: a reward model, trained first on the preferences (choose one with --reward-model)"
