"""Recipes: every problem at once and in its place, overrides, cross-checks, and the way there and back."""

import subprocess
import sys
import textwrap
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field, field_validator

from rlkit.component import Component, Settings, Slot
from rlkit.config.algorithms import GRPOSettings, SFTSettings
from rlkit.config.chat import ChatSettings
from rlkit.config.domains import RecommendationSettings
from rlkit.config.engines import LocalSettings
from rlkit.config.models import CausalLMSettings
from rlkit.config.rewards import ItemMatchSettings
from rlkit.config.stages import TrainStageSettings
from rlkit.errors import DataError, RecipeError
from rlkit.plugins import Origin, Registry, load_plugins
from rlkit.recipe import (
    check_data,
    check_online,
    data_read,
    json_schema,
    load_recipe,
    plain_tree,
    recipe_from_tree,
    recipe_model,
    resolved_yaml,
)
from rlkit.recipe_errors import Text
from rlkit.recipe_extra import BASE, declared_fields
from rlkit.recipe_schema import narrow
from rlkit.recipe_smoke import smoke_recipe
from rlkit.recipe_yaml import parse_document

RECIPE = """\
name: demo
domain:
  type: recommendation
stages:
  semantic_ids: {type: semantic_ids}
  sft:
    algorithm: {type: sft}
    train: {learning_rate: 1e-3}
  grpo:
    algorithm:
      type: grpo
      rewards:
        - type: item_match
        - {type: rank_discount, weight: 0.5}
    train: {batch_size: 8, max_steps: 100}
  evaluate: {type: evaluate}
"""


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a recipe's text, and one line per problem where it is wrong."""

    def load_text(text, *overrides):
        path = tmp_path / "r.yaml"
        path.write_text(textwrap.dedent(text))
        return load_recipe(path, overrides)

    def problems(text, *overrides):
        with pytest.raises(RecipeError) as error:
            load_text(text, *overrides)
        return [line.removeprefix(f"{tmp_path}/") for line in error.value.problems]

    load_text.problems = problems
    return load_text


def test_a_recipe_with_five_mistakes_reports_all_five_in_their_places(load):
    lines = load.problems("""\
        name: demo
        sead: 1
        domain:
          type: recommendation
        stages:
          sft:
            algorithm: {type: stf}
            train:
              learning_rate: 0
          grpo:
            start_from: sfft
            algorithm:
              type: grpo
              rewards: [{type: item_match}]
              clip_hihg: 0.3
        """)
    assert [line.partition(" (known: ")[0] for line in lines] == [
        "r.yaml:2:1: sead: no such setting; did you mean 'seed'?",
        "r.yaml:7:23: stages.sft.algorithm.type: no algorithm is called 'stf'; did you mean 'sft'?",
        "r.yaml:9:22: stages.sft.train.learning_rate: must be > 0, got 0",
        "r.yaml:11:17: stages.grpo.start_from: no stage is called 'sfft'; did you mean 'sft'?",
        "r.yaml:15:7: stages.grpo.algorithm.clip_hihg: no such setting; did you mean 'clip_high'?",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "name: demo\n",
            "",
            "r.yaml:1:1: name: required, not set; add it (The run's name, and that of its folder under",
        ),
        ("name: demo", "name: a/b", "r.yaml:1:7: name: not a name for a folder, got 'a/b'; use letters"),
        ("name: demo", "name: 1", "r.yaml:1:7: name: expected text, got 1; put it in quotes"),
        ("name: demo", "name: demo\nname: other", "r.yaml:2:1: name: set twice, first in line 1; delete one"),
        (
            "type: recommendation",
            "type: recomendation",
            "r.yaml:3:9: domain.type: no domain is called 'recomendation'; did",
        ),
        (
            "  type: recommendation",
            "  max_history: 3",
            "r.yaml:2:1: domain.type: required, not set; say which domain: chat, ",
        ),
        ("sft:", "s.ft:", "r.yaml:6:3: stages.s.ft: not a name for a stage, got 's.ft'; use letters"),
        (
            "sft:",
            "logs:",
            "r.yaml:6:3: stages.logs: the name of another folder in the run directory, got 'logs'; choose",
        ),
        ("{type: sft}", "sft", "r.yaml:7:16: stages.sft.algorithm: expected a mapping, got 'sft'; write {type: sft}"),
        (
            "{type: sft}",
            "{type: sft, max_token: 9}",
            "r.yaml:7:28: stages.sft.algorithm.max_token: no such setting; did you me",
        ),
        (
            "{type: sft}",
            "",
            "r.yaml:7:15: stages.sft.algorithm: expected a mapping, got null; its type is one of: ",
        ),
        (
            "    algorithm: {type: sft}\n",
            "",
            "r.yaml:6:3: stages.sft.algorithm: required, not set; give it a type: ",
        ),
        ("1e-3", "fast", "r.yaml:8:28: stages.sft.train.learning_rate: expected a number, got 'fast'"),
        ("1e-3", "true", "r.yaml:8:28: stages.sft.train.learning_rate: expected a number, got true"),
        ("1e-3", ".inf", "r.yaml:8:28: not a finite number, got '.inf'; write one"),
        ("learning_rate: 1e-3", "epochs: [1]", "r.yaml:8:21: stages.sft.train.epochs: expected a number, got [1]"),
        (
            "batch_size: 8",
            "batch_size: 8.5",
            "r.yaml:15:25: stages.grpo.train.batch_size: expected a whole number, got 8.5",
        ),
        (
            "batch_size: 8",
            "schedule: cosin",
            "r.yaml:15:23: stages.grpo.train.schedule: must be 'linear', 'cosine', 'cons",
        ),
        (
            "batch_size: 8",
            "report_to: tensorboard",
            "r.yaml:15:24: stages.grpo.train.report_to: expected a list, got 'tens",
        ),
        (
            "weight: 0.5",
            "wait: 0.5",
            "r.yaml:14:33: stages.grpo.algorithm.rewards.1.wait: no such setting; did you mean 'weight'?",
        ),
        (
            "- type: item_match",
            "- weight: 2",
            "r.yaml:13:11: stages.grpo.algorithm.rewards.0.type: required, not set; say w",
        ),
        (
            "- type: item_match",
            "- type: grpo",
            "r.yaml:13:17: stages.grpo.algorithm.rewards.0.type: no reward is called 'g",
        ),
        (
            "evaluate: {type: evaluate}",
            "evaluate: {}",
            "r.yaml:16:13: stages.evaluate.algorithm: required, not set; give it a t",
        ),
        (
            "{type: evaluate}",
            "{type: evaluate, batch_size: 0}",
            "r.yaml:16:42: stages.evaluate.batch_size: must be >= 1, got 0",
        ),
        (
            "{type: evaluate}",
            "{type: evaluate, k: [a]}",
            "r.yaml:16:34: stages.evaluate.k.0: expected a whole number, got 'a'",
        ),
    ],
)
def test_every_mistake_has_its_place_and_says_what_to_do(load, old, new, expected):
    assert old in RECIPE
    assert expected in "\n".join(load.problems(RECIPE.replace(old, new, 1)))


def test_a_stage_named_like_a_type_without_its_type_gets_a_hint(load):
    for line in load.problems(RECIPE.replace("{type: evaluate}", "{num_beams: 5}")):
        assert line.endswith("; did you forget 'type: evaluate'?")


def test_a_setting_at_the_wrong_depth_is_answered_with_the_right_one(load):
    assert load.problems(RECIPE.replace("train: {learning", "learning_rate: 1\n    train: {learning")) == [
        "r.yaml:8:5: stages.sft.learning_rate: no such setting here; did you mean 'stages.sft.train.learning_rate'?"
    ]
    (line,) = load.problems(RECIPE, "group_size=8")
    hint = "no such setting here; did you mean 'stages.grpo.algorithm.group_size'?"
    assert line == f"command line: 'group_size=8': group_size: {hint}"
    assert load.problems(RECIPE, "algorithm.group_size=8")[0].endswith(
        "no such setting here; did you mean 'stages.sft.algorithm' or 'stages.grpo.algorithm'?"
    )


def test_an_empty_list_of_rewards_is_an_error_but_wrong_rewards_do_not_also_count_as_empty(load):
    text = RECIPE.replace(
        "rewards:\n        - type: item_match\n        - {type: rank_discount, weight: 0.5}", "rewards: REWARDS"
    )
    assert load.problems(text.replace("REWARDS", "[]")) == [
        "r.yaml:12:16: stages.grpo.algorithm.rewards: needs at least 1 entries, got []"
    ]
    assert len(load.problems(text.replace("REWARDS", "[{type: x}]"))) == 1


def test_the_branches_of_a_plain_union_are_one_problem(load):
    text = RECIPE + "model:\n  adapter:\n    target_modules: 5\n"
    assert load.problems(text) == [
        "r.yaml:19:21: model.adapter.target_modules: expected a list, got 5 or must be 'all-linear', got 5"
    ]


def test_a_validators_own_words_reach_the_user_at_its_mapping(load):
    text = RECIPE.replace("type: grpo\n", "type: grpo\n      rollout: {type: sample}\n")
    assert load.problems(text) == [
        "r.yaml:10:5: stages.grpo.algorithm: rank_discount needs rollout.type beam (a sample has no rank); "
        "use prefix_match or change the rollout"
    ]


def test_yaml_that_cannot_be_read_is_one_problem(load):
    assert load.problems("name: x\n\tseed: 1") == ["r.yaml:2:1: a tab; indent with spaces"]


# ---- overrides


def test_overrides_are_typed_like_the_file_and_the_last_one_wins(load):
    recipe = load(
        RECIPE,
        "seed=1",
        "seed=2",
        "stages.sft.train.learning_rate=1e-5",
        "stages.evaluate.k=[1, 5]",
        "engine.processes=2",
    ).recipe
    assert recipe.seed == 2
    assert recipe.stages["sft"].train.learning_rate == 1e-5
    assert recipe.stages["evaluate"].k == (1, 5)
    assert recipe.engine.processes == 2  # the mapping was not in the file


def test_overrides_reach_into_lists_and_append_to_them(load):
    rewards = "stages.grpo.algorithm.rewards"
    loaded = load(
        RECIPE, f"{rewards}.0.weight=3", f"{rewards}.2={{type: prefix_match}}", f"{rewards}.3.type=item_match"
    )
    types = [(reward.type, reward.weight) for reward in loaded.recipe.stages["grpo"].algorithm.rewards]
    assert types == [("item_match", 3), ("rank_discount", 0.5), ("prefix_match", 1), ("item_match", 1)]


def test_a_path_alone_means_the_minionerec_format(load):
    assert load(RECIPE, "domain.data.path=somewhere").recipe.domain.data.type == "minionerec"
    assert load(RECIPE).recipe.domain.data.type == "demo"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "command line: 'seed': not an override; write key=value, such as seed=1"),
        ("=3", "command line: '=3': not a dotted key, got ''; write key=value"),
        ("a..b=3", "command line: 'a..b=3': not a dotted key, got 'a..b'"),
        ("seed=x", "command line: 'seed=x': seed: expected a whole number, got 'x'"),
        ("seed=[1", "command line: 'seed=[1': the value: not YAML"),
        ("name=a: b", "command line: 'name=a: b': the value: not one plain value; put text in quotes"),
        ("seed.x=1", "command line: 'seed.x=1': seed: expected a whole number, got {'x': 1}"),
        ("name.x=1", "command line: 'name.x=1': name is 'demo', which has no 'x' in it; override name as a whole"),
        ("stages.sft.train.lr=1", "command line: 'stages.sft.train.lr=1': stages.sft.train.lr: no such setting"),
        ("stages.sft.tran.epochs=1", "stages.sft.tran: no such setting; did you mean 'train'?"),
        ("stages.new.train.epochs=1", "'stages.new.train.epochs=1': stages.new.algorithm: required, not set"),
        (
            "stages.grpo.algorithm.rewards.5.weight=1",
            "rewards is a list of 2, got '5'; use an index from 0 to 2 (which",
        ),
        ("stages.grpo.algorithm.rewards.x.weight=1", "rewards is a list of 2, got 'x'"),
        ("domain.data.type=minionerec", "domain.data.path: required, not set; add it (The folder of"),
        (
            "engine={type: local, proceses: 2}",
            "command line: 'engine={type: local, proceses: 2}': engine.proceses: no such",
        ),
    ],
)
def test_wrong_overrides_are_named_as_they_were_written(load, override, expected):
    assert expected in "\n".join(load.problems(RECIPE, override))


def test_all_unreadable_overrides_are_reported_at_once(load):
    assert len(load.problems(RECIPE, "seed", "name=[", "x.=1")) == 3


def test_an_override_of_a_whole_mapping_takes_the_blame_from_earlier_ones_inside_it(load):
    (line,) = load.problems(RECIPE, "engine.proceses=2", "engine={proceses: 3}")
    assert line.startswith("command line: 'engine={proceses: 3}': engine.proceses: no such setting")


def test_overrides_leave_the_callers_tree_alone():
    tree = {"name": "x", "domain": {"type": "recommendation"}, "stages": {"a": {"algorithm": {"type": "sft"}}}}
    recipe_from_tree(tree, ["domain.max_history=3"])
    assert tree["domain"] == {"type": "recommendation"}


def test_problems_of_the_file_come_before_those_of_the_command_line(load):
    lines = load.problems(RECIPE.replace("1e-3", "0"), "seed=x")
    assert [line.partition(":")[0] for line in lines] == ["r.yaml", "command line"]


# ---- what fits together


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "algorithm: {type: sft}\n",
            "algorithm: {type: sft}\n    start_from: grpo\n",
            "must be an earlier stage, got 'grpo'; no stage before",
        ),
        (
            "{type: evaluate}",
            "{type: evaluate, models: [sft, gpro]}",
            "16:44: stages.evaluate.models.1: no stage is called 'gpro'; did you",
        ),
        (
            "{type: evaluate}",
            "{type: evaluate, models: [semantic_ids]}",
            "must be a stage that trains a model, got 'semantic_ids'; choose",
        ),
        (
            "type: grpo\n",
            "type: grpo\n      validate_on: {select_by: ndgc@10}\n",
            "12:32: stages.grpo.algorithm.validate_on.select_by: the domain measures no 'ndgc@10' on its valid split",
        ),
        (
            "type: item_match",
            "type: exact_match",
            "rewards.0: 'exact_match' is made for the domain chat, got 'recommendation'",
        ),
        (
            "train: {learning_rate: 1e-3}",
            "train: {batch_size: 6, micro_batch_size: 4}",
            "batch_size 6 is not a multiple of micro_batch",
        ),
        (
            "type: grpo\n",
            "type: grpo\n      rollout_batch_size: 20\n",
            "12:27: stages.grpo.algorithm.rollout_batch_size: not a multiple of train.",
        ),
        (
            "batch_size: 8",
            "extra: {adam_epsilo: 1}",
            "15:21: stages.grpo.train.extra.adam_epsilo: no such training argument; did you mean",
        ),
        (
            "batch_size: 8",
            "extra: {learning_rate: 1}",
            "stages.grpo.train.extra.learning_rate: set by train.learning_rate; leave it out",
        ),
        (
            "batch_size: 8",
            "extra: {max_steps: 1, seed: 2}",
            "stages.grpo.train.extra.seed: set by the recipe's seed; leave it out here",
        ),
        (
            "batch_size: 8",
            "extra: {assistant_only_loss: true}",
            "stages.grpo.train.extra.assistant_only_loss: no such training argument",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(load, old, new, expected):
    assert old in RECIPE
    assert expected in "\n".join(load.problems(RECIPE.replace(old, new, 1)))


CHAT = """\
name: chat
domain: {type: chat, prompts: a.jsonl}
stages:
  grpo:
    algorithm:
      type: grpo
      rewards: [{type: exact_match}]
"""


@pytest.mark.parametrize(("rollout", "place"), [("", "5:5"), ("      rollout: {type: beam}\n", "8:16")])
def test_a_search_without_a_tree_to_search_is_refused_chosen_or_by_default(load, rollout, place):
    assert load.problems(CHAT + rollout) == [
        f"r.yaml:{place}: stages.grpo.algorithm.rollout: 'beam' searches a tree of valid completions, "
        "which the domain 'chat' lacks; write {type: sample}"
    ]
    load(CHAT + "      rollout: {type: sample}\n")


def test_weight_decay_and_a_frozen_backbone_are_refused_in_every_stage_that_trains(load):
    decaying = RECIPE.replace("learning_rate: 1e-3", "weight_decay: 0.01").replace("batch_size: 8", "weight_decay: 0.1")
    load(decaying)
    load(RECIPE, "model.freeze_backbone=true")
    assert load.problems(decaying, "model.freeze_backbone=true") == [
        f"r.yaml:{place}.train.weight_decay: must be 0 with model.freeze_backbone, got {value}; "
        "it would change the rows that stay frozen; leave it out, or train the whole model"
        for place, value in (("8:27: stages.sft", "0.01"), ("15:27: stages.grpo", "0.1"))
    ]


def test_a_teacher_and_log_probs_over_the_vocabulary_are_refused(load):
    (problem,) = load.problems(RECIPE, "domain.normalization=vocabulary", "domain.augment.teacher=1")
    assert "augment.teacher needs normalization children" in problem


@pytest.mark.parametrize(
    ("k", "expected"), [("[]", "k"), ("[0, 5]", "k"), ("[20, 50]", "num_beams 10 is below every k, got [20, 50]")]
)
def test_an_evaluation_without_a_cut_off_that_can_be_measured_is_refused(load, k, expected):
    (problem,) = load.problems(RECIPE, f"stages.evaluate.k={k}", "stages.evaluate.num_beams=10")
    assert expected in problem


def test_smoke_beams_stay_wide_enough_for_the_lowest_cut_off(load):
    tiny = smoke_recipe(load(RECIPE, "stages.evaluate.k=[20, 50]"))
    assert tiny.recipe.stages["evaluate"].num_beams == 20


@pytest.mark.parametrize(
    ("template", "setting", "ignored"),
    [("instruct", "augment.walks=5", "augment"), ("compact", "tasks=[{weight: 2}]", "tasks[].weight")],
)
def test_settings_that_the_chosen_template_would_ignore_are_refused(load, template, setting, ignored):
    load(RECIPE, f"domain.{setting}")
    (problem,) = load.problems(RECIPE, f"domain.template={template}", f"domain.{setting}")
    assert f"template {template} does not use {ignored}; leave out what it ignores" in problem


def test_an_algorithm_of_another_domains_records_is_refused():
    class PreferencesSettings(Settings):
        """Learn from preferences."""

        type: Literal["preferences"] = "preferences"
        consumes: ClassVar[tuple[str, ...]] = ("Preference",)

    with pytest.raises(RecipeError) as error:
        _with(Component(PreferencesSettings, "x:y"), "algorithm", {"a": {"algorithm": {"type": "preferences"}}})
    (line,) = error.value.problems
    assert line == (
        "recipe: stages.a.algorithm: 'preferences' learns from Preference records, "
        "but the domain 'recommendation' makes Prompt, Demonstration; choose another algorithm or domain"
    )


def test_a_stage_whose_artefact_no_earlier_stage_makes_is_refused(load):
    stages = "  evaluate: {type: evaluate}\n  sft: {algorithm: {type: sft}}\n"
    text = f"name: x\ndomain: {{type: recommendation}}\nstages:\n{stages}"
    assert load.problems(text) == [
        "r.yaml:4:13: stages.evaluate: 'evaluate' needs a policy, which no earlier stage makes; add one"
    ]
    text = text.replace("stages:\n", "stages:\n  first: {type: tarin}\n")
    assert [line.partition(":  ")[0][:40] for line in load.problems(text)] == [
        "r.yaml:4:17: stages.first.type: no stage"
    ]


@pytest.mark.parametrize(
    ("train", "algorithm", "expected"),
    [
        (
            "{batch_size: 9}",
            "",
            "stages.grpo.train.batch_size: not a multiple of 2 processes, got 9; choose a multiple",
        ),
        (
            "{batch_size: 8, micro_batch_size: 8}",
            "",
            "stages.grpo.train.micro_batch_size: does not divide a rank's share of 4, got 8; choose a divisor",
        ),
        (
            "{batch_size: 8}",
            "rollout_batch_size: 12",
            "algorithm.rollout_batch_size: not a multiple of train.batch_size 8, got 12",
        ),
        (
            "{batch_size: 9}",
            "rollout_batch_size: 27",
            "algorithm.rollout_batch_size: not a multiple of 2 processes, got 27",
        ),
    ],
)
def test_batches_that_do_not_divide_are_refused_with_the_arithmetic(load, train, algorithm, expected):
    text = RECIPE.replace("{batch_size: 8, max_steps: 100}", train).replace(
        "type: grpo\n", f"type: grpo\n      {algorithm}\n"
    )
    assert expected in "\n".join(load.problems(text, "engine.processes=2"))


def test_cross_checks_are_reported_beside_other_mistakes(load):
    text = RECIPE.replace("1e-3", "0").replace("type: item_match", "type: exact_match")
    assert len(load.problems(text, "stages.evaluate.models=[x]")) == 3


def test_batches_are_not_judged_by_defaults_where_the_stage_has_another_mistake(load):
    # With batch_sise unknown, the default of 64 would not be a multiple of 3 processes.
    assert (
        len(
            load.problems(
                RECIPE.replace("batch_size: 8", "batch_sise: 9"), "engine.processes=3", "stages.sft.train.batch_size=9"
            )
        )
        == 1
    )


def test_extra_arguments_of_trls_trainer_are_known_where_it_trains(load):
    recipe = load(RECIPE, "stages.sft.train.extra={assistant_only_loss: true, adam_epsilon: 1e-9}").recipe
    assert recipe.stages["sft"].train.extra == {"assistant_only_loss": True, "adam_epsilon": 1e-9}


def test_the_fields_read_from_source_are_those_of_the_real_classes():
    """In a process of its own, since the real classes import torch."""
    script = (
        "import dataclasses, transformers, trl; "
        "print(*[f.name for f in dataclasses.fields(transformers.TrainingArguments)]); "
        "print(*[f.name for f in dataclasses.fields(trl.SFTConfig)])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert declared_fields(BASE) == set(out[-2].split())
    trl_fields = {field for source in SFTSettings.training_arguments for field in declared_fields(source)}
    assert declared_fields(BASE) | trl_fields == set(out[-1].split())


# ---- the typed recipe


def test_defaults_are_filled_through_the_slots(load):
    recipe = load(RECIPE).recipe
    assert recipe.model == CausalLMSettings()
    assert recipe.engine == LocalSettings()
    assert recipe.stages["sft"].type == "train"
    assert isinstance(recipe.stages["sft"], TrainStageSettings)
    assert recipe.stages["grpo"].algorithm.rollout.type == "beam"
    assert list(recipe.stages) == ["semantic_ids", "sft", "grpo", "evaluate"]


def test_the_resolved_recipe_loads_to_an_equal_one(load):
    loaded = load(RECIPE, "stages.sft.train.extra={run_name: '1e-6', optim_args: 'no'}", "model.adapter={rank: 4}")
    again = load(resolved_yaml(loaded.recipe))
    assert again.recipe == loaded.recipe
    assert again.tree == loaded.tree
    assert again.recipe != load(RECIPE).recipe


def test_the_loaded_recipe_keeps_its_text(load):
    assert load(RECIPE).text == RECIPE


def test_a_default_with_slots_of_its_own_goes_through_the_union_too():
    class PairSettings(Settings):
        """An algorithm whose default for a slot has slots itself."""

        type: Literal["pair"] = "pair"
        other: Annotated[Settings, Slot("domain")] = RecommendationSettings()

    recipe = _with(Component(PairSettings, "x:y"), "algorithm", {"a": {"algorithm": {"type": "pair"}}})
    written = plain_tree(recipe)["stages"]["a"]["algorithm"]["other"]
    assert written == plain_tree(recipe)["domain"]
    assert written["data"]["type"] == "demo"


def test_the_type_stands_first_in_every_mapping_that_is_written(load):
    algorithm = load(RECIPE).tree["stages"]["grpo"]["algorithm"]
    assert [next(iter(mapping)) for mapping in (algorithm, algorithm["rollout"], algorithm["rewards"][0])] == [
        "type"
    ] * 3


def test_settings_built_in_python_are_accepted_where_a_mapping_would_be():
    stage = TrainStageSettings(algorithm=GRPOSettings(rewards=(ItemMatchSettings(weight=2.0),), group_size=4))
    recipe = recipe_from_tree({"name": "x", "domain": {"type": "recommendation"}, "stages": {"a": stage}}).recipe
    assert recipe.stages["a"].algorithm.rewards[0].weight == 2.0
    assert recipe.stages["a"].algorithm.group_size == 4


def test_the_recipe_type_is_built_once_so_that_equal_recipes_are_equal():
    registry = load_plugins()
    assert recipe_model(registry) is recipe_model(registry)


def test_classes_without_slots_are_not_rebuilt():
    assert narrow(SFTSettings, load_plugins()) is SFTSettings
    assert narrow(TrainStageSettings, load_plugins()) is not TrainStageSettings


def test_slots_deep_inside_components_are_narrowed_and_their_errors_have_places():
    class InnerSettings(Settings):
        """A setting with a slot, two levels down."""

        reward: Annotated[Settings, Slot("reward", "item_match")] | None = None
        """The reward."""

    class OuterSettings(Settings):
        """An algorithm that nests a slot in plain settings, in a mapping and in a list."""

        type: Literal["outer"] = "outer"
        inner: InnerSettings = InnerSettings()
        many: dict[str, list[Annotated[Settings, Slot("reward")]]] = Field(default_factory=dict)
        some: Annotated[tuple[Annotated[Settings, Slot("reward")], ...], Field(max_length=1)] | None = None
        mixed: Annotated[Settings, Slot("reward")] | str = "none"

    component = Component(OuterSettings, "x:y")
    tree = {"type": "outer", "inner": {"reward": {"weight": 2}}, "many": {"a": [{"type": "prefix_match"}]}}
    recipe = _with(component, "algorithm", {"a": {"algorithm": tree}})
    assert recipe.stages["a"].algorithm.inner.reward == ItemMatchSettings(weight=2)
    assert recipe.stages["a"].algorithm.many["a"][0].type == "prefix_match"
    tree["some"], tree["mixed"] = [{"type": "item_match"}], {"type": "item_match", "weight": 3}
    algorithm = _with(component, "algorithm", {"a": {"algorithm": tree}}).stages["a"].algorithm
    assert (algorithm.some, algorithm.mixed) == ((ItemMatchSettings(),), ItemMatchSettings(weight=3))
    tree = {"type": "outer", "inner": {"reward": {"wait": 2}}, "many": {"a": [{"type": "prefix_mach"}]}}
    tree["some"], tree["mixed"] = [{"type": "item_match", "weight": "x"}], {"type": "item_match", "weight": "x"}
    with pytest.raises(RecipeError) as error:
        _with(component, "algorithm", {"a": {"algorithm": tree}})
    assert [line.partition(";")[0] for line in error.value.problems] == [
        "recipe: stages.a.algorithm.inner.reward.wait: no such setting",
        "recipe: stages.a.algorithm.many.a.0.type: no reward is called 'prefix_mach'",
        "recipe: stages.a.algorithm.some.0.weight: expected a number, got 'x'",
        "recipe: stages.a.algorithm.mixed.weight: expected a number, got 'x'",
        "recipe: stages.a.algorithm.mixed: expected text, got {'type': 'item_match', 'weight': 'x'}",
    ]


def test_a_field_named_like_its_component_is_not_taken_for_a_tag(load):
    # A train stage has the field ``train``, and its tag is the name of its type, ``train`` too.
    (line,) = load.problems(RECIPE.replace("learning_rate: 1e-3", "train: 1"))
    assert line.startswith("r.yaml:8:13: stages.sft.train.train: no such setting")


def test_a_validators_message_without_a_value_gets_it():
    class EvenSettings(Settings):
        """An algorithm with a number that must be even."""

        type: Literal["even"] = "even"
        number: int = 2

        @field_validator("number")
        @classmethod
        def _even(cls, number):
            if number % 2:
                raise ValueError("must be even; add one")
            return number

    with pytest.raises(RecipeError) as error:
        _with(Component(EvenSettings, "x:y"), "algorithm", {"a": {"algorithm": {"type": "even", "number": 3}}})
    assert error.value.problems == ("recipe: stages.a.algorithm.number: must be even, got 3; add one",)


# ---- smoke, data, schema


def test_a_smoke_recipe_is_tiny_valid_and_keeps_its_stages(load):
    loaded = load(
        RECIPE,
        "stages.grpo.algorithm.rollout_batch_size=64",
        "stages.grpo.algorithm.updates_epochs=3",
        "stages.grpo.train.micro_batch_size=2",
        "engine.processes=2",
    )
    tiny = smoke_recipe(loaded).recipe
    assert tiny.name == "demo-smoke"
    assert list(tiny.stages) == list(loaded.recipe.stages)
    grpo = tiny.stages["grpo"]
    assert (grpo.train.max_steps, grpo.train.batch_size, grpo.train.micro_batch_size) == (4, 4, 1)
    assert (grpo.algorithm.group_size, grpo.algorithm.rollout_batch_size, grpo.algorithm.updates_epochs) == (4, 8, 2)
    assert (grpo.algorithm.validate_on.prompts, grpo.algorithm.validate_on.num_beams) == (16, 10)
    assert (tiny.model.hidden_size, tiny.model.layers) == (32, 1)
    assert (tiny.stages["evaluate"].max_rows, tiny.stages["evaluate"].num_beams) == (64, 10)
    assert tiny.stages["evaluate"].baselines
    assert tiny.domain.data.users < loaded.recipe.domain.data.users
    assert smoke_recipe(smoke_recipe(loaded)).recipe == tiny


@pytest.mark.parametrize(
    ("processes", "batch_size", "micro_batch_size"),
    [(1, 4, 2), (2, 4, 1), (3, 3, 1), (8, 8, 1)],  # about 4 prompts, as many for every process; halves where it was cut
)
def test_smoke_batches_divide_for_any_number_of_processes(load, processes, batch_size, micro_batch_size):
    sizes = (f"stages.{stage}.train.batch_size=48" for stage in ("sft", "grpo"))
    more = ("stages.sft.train.micro_batch_size=2", "stages.grpo.algorithm.rollout_batch_size=144")
    tiny = smoke_recipe(load(RECIPE, f"engine.processes={processes}", *sizes, *more)).recipe
    sft, grpo = tiny.stages["sft"], tiny.stages["grpo"]
    assert (tiny.engine.processes, batch_size % processes) == (processes, 0)
    assert (sft.train.batch_size, grpo.train.batch_size) == (batch_size, batch_size)
    assert sft.train.micro_batch_size == micro_batch_size
    assert grpo.algorithm.rollout_batch_size == 2 * batch_size  # several updates, as 144 / 48


def test_smoke_leaves_a_given_model_and_smaller_values_alone(load):
    tiny = smoke_recipe(load(RECIPE, "model.path=somewhere", "stages.grpo.train.max_steps=2")).recipe
    assert (tiny.model.hidden_size, tiny.stages["grpo"].train.max_steps) == (None, 2)


def test_check_data_collects_the_problems_of_every_part():
    class BrokenSettings(Settings):
        """A reward whose file is broken."""

        type: Literal["broken"] = "broken"
        file: str = ""

        def check(self):
            said = ("reward broken: nobody answers at a:1", "stages.a.algorithm.rewards.0.file: no")
            raise DataError(f"{self.file}:3: broken", *said[: 2 if self.file == "a" else 1])

        check_online = check

    rewards = [{"type": "broken", "file": "a"}, {"type": "item_match"}, {"type": "broken", "file": "b"}]
    stages = {"a": {"algorithm": {"type": "grpo", "rewards": rewards}}}
    recipe = _with(Component(BrokenSettings, "x:y"), "reward", stages)
    where, rest = "stages.a.algorithm.rewards", "reward broken: nobody answers at a:1"
    problems = ("a:3: broken", f"{where}.0: {rest}", f"{where}.0.file: no", "b:3: broken")  # the same is said once
    for check in (check_data, check_online):
        with pytest.raises(DataError) as error:
            check(recipe)
        assert error.value.problems == problems
    with pytest.raises(DataError) as error:
        check_data({"stages": {"a": recipe.stages["a"]}})
    assert error.value.problems == problems
    assert data_read(recipe) == ["broken", "broken"]


def test_the_json_schema_accepts_a_recipe_and_names_what_it_refuses():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema(load_plugins()))
    validator.check_schema(validator.schema)
    plain = {
        "name": "x",
        "domain": {"type": "recommendation", "data": {"path": "p"}},
        "stages": {"a": {"algorithm": {"type": "sft"}}},
    }
    assert validator.is_valid(plain)
    assert validator.is_valid(recipe_from_tree({**plain, "engine": {"processes": 2}}).tree)
    assert not validator.is_valid({**plain, "sead": 1})
    assert not validator.is_valid({**plain, "engine": {"type": "locl"}})
    assert not validator.is_valid({**plain, "stages": {"a": {"algorithm": {}}}})
    assert not validator.is_valid({**plain, "callbacks": [{"type": "x"}]})


def test_the_json_schema_describes_every_setting():
    schema = json_schema(load_plugins())
    fields = [(name, key, field) for name, part in schema["$defs"].items() for key, field in part["properties"].items()]
    assert [(name, key) for name, key, field in fields if key != "type" and "description" not in field] == []
    assert [name for name, part in schema["$defs"].items() if "description" not in part] == []


def test_chat_settings_join_the_same_recipe():
    tree = {
        "name": "x",
        "domain": {"type": "chat", "prompts": "a.jsonl"},
        "stages": {"a": {"algorithm": {"type": "sft"}}},
    }
    domain = recipe_from_tree(tree).recipe.domain
    assert isinstance(domain, ChatSettings)
    assert (domain.prompts.type, domain.prompts.path, domain.demonstrations) == ("chat_files", "a.jsonl", None)


def _with(component, kind, stages):
    """Load a recipe under the built-in components and one more."""
    installed = load_plugins()
    kinds = (
        "stage",
        "algorithm",
        "domain",
        "model",
        "reward",
        "data_format",
        "quantizer",
        "rollout",
        "engine",
        "callback",
    )
    entries = {(k, name): (c, Origin("rlkit", "0")) for k in kinds for name, c in installed.components(k).items()}
    registry = Registry({**entries, (kind, component.name): (component, Origin("toy", "1"))})
    tree = {"name": "x", "domain": {"type": "recommendation"}, "stages": stages}
    return recipe_from_tree(tree, registry=registry).recipe


def test_problems_of_data_and_servers_carry_their_place_in_the_recipe(tmp_path):
    class UnfitSettings(Settings):
        """A reward whose file is not there, and whose server does not answer."""

        type: Literal["unfit"] = "unfit"
        said: tuple[str, ...] = ()

        def check(self):
            raise DataError(*self.said)

        check_online = check

    said = ["nobody answers", "stages.a.algorithm.rewards.0.said: wrong", "rows.jsonl:7: broken"]
    recipe = _with(
        Component(UnfitSettings, "x:y"),
        "reward",
        {"a": {"algorithm": {"type": "grpo", "rewards": [{"type": "unfit", "said": said}]}}},
    )
    text = "stages:\n  a:\n    algorithm:\n      rewards:\n        - type: unfit\n          said: [x]\n"
    written = Text("mine.yaml", parse_document(text), {})
    key = "stages.a.algorithm.rewards.0"
    problems = (f"mine.yaml:5:11: {key}: nobody answers", f"mine.yaml:6:17: {key}.said: wrong", "rows.jsonl:7: broken")
    for check in (check_data, check_online):
        with pytest.raises(DataError) as error:
            check(recipe, written)
        assert error.value.problems == problems
