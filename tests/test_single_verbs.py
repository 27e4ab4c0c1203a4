"""Single verbs: the recipe that each stands for, where its reward comes from, and tiny runs of all of them."""

import json
from pathlib import Path

import pytest
from toys import language_model_folder

from rlkit.cli.single import VERBS, single_recipe, stage_overrides
from rlkit.errors import RecipeError
from rlkit.recipe import recipe_from_tree

ANSWERS = [{"prompt": f"{n} + 1", "answer": str(n + 1)} for n in range(30)]
PAIRS = [{"prompt": f"{n} + 1", "chosen": f"it is {n + 1}", "rejected": "no"} for n in range(30)]
PROMPTS = [{"prompt": f"{n} + 1"} for n in range(30)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(verb, **sources):
    return recipe_from_tree(single_recipe(VERBS[verb], **sources)).recipe


# ---- what a verb stands for


def test_grpo_without_anything_is_the_shop_with_the_nano_preset_and_says_so(rlkit_, runs):
    code, _, err = rlkit_("grpo", "algorithm.group_size=8", "train.learning_rate=1e-5", "seed=4")
    assert code == 0
    assert err.splitlines() == [
        "model: the nano preset, untrained (choose one with --model)",
        "data: the generated demo (choose yours with --data)",
    ]
    ((loaded, out, _),) = runs
    assert list(loaded.recipe.stages) == ["semantic_ids", "grpo", "evaluate"]
    stage = loaded.recipe.stages["grpo"]
    assert (stage.algorithm.group_size, stage.train.learning_rate) == (8, 1e-5)
    assert (loaded.recipe.seed, out) == (4, Path("runs/grpo"))


def test_ppo_without_anything_trains_a_reward_model_on_the_chat_demo_first_and_says_so(rlkit_, runs):
    code, _, err = rlkit_("ppo", "--model", "some/model")
    assert code == 0
    assert err.splitlines() == [
        "data: the generated demo (choose yours with --data)",
        "reward: a reward model, trained first on the preferences (choose one with --reward-model)",
    ]
    ((loaded, out, _),) = runs
    assert (list(loaded.recipe.stages), out) == (["reward_model", "ppo", "evaluate"], Path("runs/ppo"))
    assert loaded.recipe.model.path == "some/model"
    assert loaded.recipe.domain.prompts.type == "chat_demo"


@pytest.mark.parametrize(
    ("verb", "source", "stages"),
    [
        ("sft", "demonstrations", ["sft", "evaluate"]),
        ("train-rm", "preferences", ["reward_model"]),
        ("dpo", "preferences", ["dpo", "evaluate"]),
        ("ppo", "prompts", ["ppo", "evaluate"]),
        ("grpo", "prompts", ["grpo", "evaluate"]),
    ],
)
def test_a_file_is_the_source_that_the_verb_learns_from(tmp_path, verb, source, stages):
    rows = write(tmp_path / "rows.jsonl", ANSWERS)
    found = recipe(verb, model="some/model", data=rows)
    assert {kind: one.path for kind, one in found.domain.sources().items()} == {source: str(rows)}
    assert (list(found.stages), found.model.path) == (stages, "some/model")
    assert found.stages[stages[0]].algorithm.type == VERBS[verb].algorithm


def test_a_folder_is_a_shop_to_sft_and_grpo_unless_it_is_a_saved_dataset(tmp_path):
    for verb in ("sft", "grpo"):
        data = recipe(verb, data=tmp_path).domain.data
        assert (data.type, data.path) == ("minionerec", str(tmp_path))
    (tmp_path / "state.json").write_text("{}")
    assert recipe("sft", data=tmp_path).domain.demonstrations.path == str(tmp_path)


def test_a_folder_is_chat_data_to_the_others(tmp_path):
    assert recipe("dpo", data=tmp_path).domain.preferences.path == str(tmp_path)


# ---- where a reward comes from


def rewards(found, stage="ppo"):
    return [part.type for part in found.stages[stage].algorithm.rewards]


@pytest.mark.parametrize("verb", ["ppo", "grpo"])
def test_answers_are_matched_where_the_data_has_them(tmp_path, verb):
    found = recipe(verb, data=write(tmp_path / "rows.jsonl", ANSWERS))
    assert rewards(found, verb) == ["exact_match"]
    assert found.stages["evaluate"].chat.rewards == ()


VERIFIABLE = {
    "math": {"question": "1 + 1?", "answer": "One and one.\n#### 2"},
    "code": {
        "task_id": "a/0",
        "prompt": "def f(): ",
        "entry_point": "f",
        "canonical_solution": "return 1\n",
        "test": "assert f() == 1",
    },
}


@pytest.mark.parametrize("reward", VERIFIABLE)
def test_data_that_can_be_verified_is_verified(tmp_path, reward):
    found = recipe("grpo", data=write(tmp_path / "rows.jsonl", [VERIFIABLE[reward]]))
    assert rewards(found, "grpo") == [reward]
    assert [part.type for part in found.stages["evaluate"].chat.rewards] == [reward]


@pytest.mark.parametrize("verb", ["ppo", "grpo"])
def test_preferences_train_a_reward_model_first_and_their_prompts_are_the_prompts(tmp_path, verb):
    rows = write(tmp_path / "rows.jsonl", PAIRS)
    found = recipe(verb, data=rows)
    assert list(found.stages) == ["reward_model", verb, "evaluate"]
    assert {kind: one.path for kind, one in found.domain.sources().items()} == {"preferences": str(rows)}
    assert found.stages[verb].algorithm.rewards[0].stage == "reward_model"
    assert found.stages["evaluate"].chat.rewards[0].stage == "reward_model"


@pytest.mark.parametrize("verb", ["ppo", "grpo"])
def test_a_reward_model_that_is_named_wins_over_answers(tmp_path, verb):
    found = recipe(verb, data=write(tmp_path / "rows.jsonl", ANSWERS), reward_model=Path("rm/model"))
    assert list(found.stages) == [verb, "evaluate"]
    assert [part.path for part in found.stages[verb].algorithm.rewards] == ["rm/model"]
    assert [part.path for part in found.stages["evaluate"].chat.rewards] == ["rm/model"]


def test_grpo_with_a_reward_model_and_no_data_takes_the_chat_demo():
    assert recipe("grpo", reward_model=Path("rm/model")).domain.prompts.type == "chat_demo"


def test_prompts_alone_do_not_say_what_is_good(tmp_path):
    rows = write(tmp_path / "rows.jsonl", PROMPTS)
    with pytest.raises(
        RecipeError, match=r"^--data: neither answers nor preferences say what is good, got '.*rows"
    ) as error:
        single_recipe(VERBS["ppo"], data=rows)
    assert "--reward-model DIR" in str(error.value)


def test_rewards_on_the_command_line_replace_the_verbs(rlkit_, runs, tmp_path):
    rows = write(tmp_path / "rows.jsonl", PROMPTS)
    assert rlkit_("ppo", "--data", rows, "algorithm.rewards=[{type: exact_match, weight: 2}]")[0] == 0
    ((loaded, _, _),) = runs
    assert [part.weight for part in loaded.recipe.stages["ppo"].algorithm.rewards] == [2]


def test_a_verbs_own_reward_can_be_weighted(rlkit_, runs, tmp_path):
    rows = write(tmp_path / "rows.jsonl", ANSWERS)
    assert rlkit_("ppo", "--data", rows, "algorithm.rewards.0.weight=3")[0] == 0
    ((loaded, _, _),) = runs
    assert [(part.type, part.weight) for part in loaded.recipe.stages["ppo"].algorithm.rewards] == [("exact_match", 3)]


# ---- overrides


def test_overrides_are_relative_to_the_stage_first():
    given = [
        "algorithm.group_size=4",
        "train.extra={a: 1}",
        "train={}",
        "device=cpu",
        "seed=1",
        "stages.grpo.train.epochs=2",
        "training.x=1",
    ]
    assert stage_overrides("grpo", given) == [
        "stages.grpo.algorithm.group_size=4",
        "stages.grpo.train.extra={a: 1}",
        "stages.grpo.train={}",
        "stages.grpo.device=cpu",
        "seed=1",
        "stages.grpo.train.epochs=2",
        "training.x=1",
    ]


def test_train_rms_stage_is_called_reward_model(rlkit_, runs):
    assert rlkit_("train-rm", "algorithm.freeze_backbone=true", "train.epochs=2")[0] == 0
    ((loaded, out, _),) = runs
    stage = loaded.recipe.stages["reward_model"]
    assert (stage.algorithm.freeze_backbone, stage.train.epochs, out) == (True, 2, Path("runs/train-rm"))


# ---- real runs, tiny


def test_a_reward_model_is_trained_and_then_rewards_ppo_and_grpo(rlkit_, tmp_path):
    common = ["--smoke", "engine.threads=1"]
    assert rlkit_("train-rm", *common, "--out", "rm")[0] == 0
    model = tmp_path / "rm" / "reward_model" / "model"
    assert 0 <= json.loads((model / "reward_model.json").read_text())["accuracy"]["value"] <= 1
    for verb in ("ppo", "grpo"):
        assert rlkit_(verb, *common, "--reward-model", model, "--out", verb)[0] == 0
        samples = [json.loads(line) for line in (tmp_path / verb / "samples.jsonl").read_text().splitlines()]
        assert {part for row in samples for part in row.get("parts", ())} == {"model"}
        assert "reward/model" in json.loads((tmp_path / verb / "evaluate" / "eval.json").read_text())["metrics"]


def test_dpo_and_ppo_run_on_a_file_of_preferences(rlkit_, tmp_path):
    rows = write(tmp_path / "rows.jsonl", PAIRS)
    for verb, stages in (("dpo", ["dpo", "evaluate"]), ("ppo", ["reward_model", "ppo", "evaluate"])):
        assert rlkit_(verb, "--data", rows, "--smoke", "engine.threads=1", "--out", verb)[0] == 0
        assert list(json.loads((tmp_path / verb / "manifest.json").read_text())["stages"]) == stages


# ---- refused before training, in one line


def refused(command, *arguments):
    code, _, err = command(*arguments, "--out", "run", "engine.threads=1")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1), err
    assert "starts" not in err
    assert not Path("run").exists()
    return errors[0]


@pytest.mark.parametrize("verb", ["ppo", "grpo"])
def test_a_checkpoint_without_a_reward_head(rlkit_, tmp_path, verb):
    folder = language_model_folder(tmp_path / "lm")
    message = refused(rlkit_, verb, "--model", folder, "--reward-model", folder)
    assert f"no reward model in '{folder}': its weights hold no reward head" in message


def test_a_reward_model_with_another_tokenizer(rlkit_, tmp_path):
    assert rlkit_("train-rm", "--smoke", "engine.threads=1", "--out", "rm")[0] == 0  # over bytes
    folder = language_model_folder(tmp_path / "lm")
    message = refused(rlkit_, "ppo", "--model", folder, "--reward-model", tmp_path / "rm" / "reward_model" / "model")
    assert message.startswith("error: stages.ppo.algorithm.rewards.0: the tokenizer of '")
    assert message.endswith("name a model that started from the same one")


@pytest.mark.parametrize(
    ("verb", "rows", "message"),
    [
        ("dpo", [*PAIRS, {"prompt": "a", "chosen": "b"}], "rows.jsonl:31: rejected: missing"),
        ("train-rm", [*PAIRS, {"prompt": "a", "chosen": "b"}], "rows.jsonl:31: rejected: missing"),
        ("dpo", [*PAIRS[:7], {"prompt": "a", "chosen": "b", "rejected": "b"}], "rows.jsonl:8: chosen and rejected are"),
        ("ppo", [*ANSWERS[:4], {"prompt": " "}, *ANSWERS[4:]], "rows.jsonl:5: prompt: empty"),
        ("grpo", [*ANSWERS[:4], {"prompt": ""}, *ANSWERS[4:]], "rows.jsonl:5: prompt: empty"),
    ],
)
def test_rows_that_nothing_can_be_learned_from(rlkit_, tmp_path, verb, rows, message):
    write(tmp_path / "rows.jsonl", rows)
    assert message in refused(rlkit_, verb, "--data", "rows.jsonl")


def test_data_that_is_not_there(rlkit_):
    assert refused(rlkit_, "dpo", "--data", "none.jsonl").startswith("error: --data: does not exist, got 'none.jsonl'")


def test_data_of_another_kind(rlkit_, tmp_path):
    write(tmp_path / "rows.jsonl", PROMPTS)
    assert "no preferences" in refused(rlkit_, "train-rm", "--data", "rows.jsonl")
