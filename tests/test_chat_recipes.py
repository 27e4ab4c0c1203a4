"""The recipes with verifiable rewards, the tasks that they generate, and the pages that explain them."""

import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import typer
from toys import ROOT
from typer.testing import CliRunner

from rlkit.chat.data.python_tasks import generate_python_tasks, mistakes, tasks
from rlkit.chat.data.python_tasks import tests_of as asserts_of
from rlkit.cli.main import app
from rlkit.config.python_tasks import PythonTasksSettings
from rlkit.errors import DataError
from rlkit.plugins import load_plugins
from rlkit.recipe import load_recipe, recipe_from_tree
from rlkit.recipe_smoke import smoke_recipe
from rlkit.recipe_yaml import parse_document
from rlkit.run import run

PAGES = ("rewards.md", "chat.md")


# ---- recipes


@pytest.mark.parametrize("name", [pytest.param("chat_code_grpo", marks=pytest.mark.slow), "sales_rules_grpo"])
def test_a_recipe_runs_tiny_from_end_to_end(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = smoke_recipe(load_recipe(ROOT / "recipes" / f"{name}.yaml", ["engine.threads=1"]))
    run(loaded, tmp_path / "run")
    said = capfd.readouterr().err
    assert said.startswith("pre-flight\n")
    assert "  failed " not in said
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "evaluate" / "eval.json").is_file()


@pytest.mark.parametrize("name", [pytest.param("chat_code_grpo", marks=pytest.mark.slow), "sales_rules_grpo"])
def test_golden_cases_of_a_recipe_hold(name: str) -> None:
    done = CliRunner().invoke(app, ["validate", str(ROOT / "recipes" / f"{name}.yaml"), "--cases"])
    assert done.exit_code == 0
    assert "cases: 5 scored as they should" in done.stdout


def header_commands() -> list[str]:
    """Return every command of the recipes' headers."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    found = [line for text in texts for line in re.findall(r"^#   (rlkit .*)", text, re.MULTILINE)]
    return [re.split(r"  +", line)[0] for line in found]


@pytest.mark.parametrize("command", header_commands())
def test_commands_of_recipe_headers_are_such(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command)
    parsed(arguments)
    loaded = load_recipe(arguments[2], [word for word in arguments[3:] if not word.startswith("-")])
    assert loaded.source == arguments[2]


def test_every_recipe_has_a_command_in_its_header() -> None:
    named = {shlex.split(command)[2] for command in header_commands()}
    assert named == {f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}


def test_the_math_recipe_is_measured_by_what_it_learns_from() -> None:
    stages = load_recipe(ROOT / "recipes" / "chat_math_grpo.yaml").recipe.stages
    assert [reward.type for reward in stages["evaluate"].chat.rewards] == ["math"]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_math_recipe_learns_arithmetic(tmp_path: Path) -> None:
    run(load_recipe(ROOT / "recipes" / "chat_math_grpo.yaml", ["engine.threads=1"]), tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "evaluate" / "eval.json").read_text())["rows"]
    passed = {row["name"]: row["metrics"].get("sampled/pass@1/math") for row in rows}
    assert 0.3 <= passed["sft"] <= 0.6
    assert passed["grpo"] >= 0.9


def test_the_sales_recipe_weighs_what_it_says() -> None:
    recipe = load_recipe(ROOT / "recipes" / "sales_rules_grpo.yaml").recipe
    checklist, relevance = recipe.stages["grpo"].algorithm.rewards  # type: ignore[attr-defined]
    weights = {name: part.weight for name, part in checklist.parts.items()}
    assert weights == {"format": 0.2, "elements": 0.3, "length": 0.1, "safety": 0.2}
    assert (relevance.type, relevance.weight) == ("model", 0.2)


# ---- generated Python tasks


def defined(names: tuple[str, str], program: str) -> dict:
    scope: dict = {}
    exec(f"def f({', '.join(names)}): return {program}", scope)
    return scope


def passes(scope: dict, asserts: tuple[str, ...]) -> bool:
    try:
        for line in asserts:
            exec(line, scope)
    except AssertionError:
        return False
    return True


def test_every_program_passes_its_tests_and_no_mistake_does() -> None:
    for split in ("train", "valid", "test"):
        for task in tasks(split, letters=2):
            asserts = asserts_of(task, PythonTasksSettings().tests)
            assert passes(defined(task.names, task.program), asserts), task.asked
            caught = [passes(defined(task.names, wrong.program), asserts) for wrong in mistakes(task)]
            assert caught, task.asked
            assert not any(caught), task.asked


def test_a_task_reads_as_it_computes() -> None:
    scope = {task.asked: task.program for split in ("train", "valid", "test") for task in tasks(split, letters=2)}
    assert scope["twice a plus b squared"] == "2 * a + b ** 2"
    assert scope["larger of half a, b and one"] == "max(a // 2, (b + 1))"
    # a product takes its second operand whole: 7 * (5 // 2) is 14, 7 * 5 // 2 is 17
    assert scope["a times half b"] == "a * (b // 2)"
    assert len(scope) == 7 * 5 * 5 * 2  # joins, steps of either operand, orders of two names


def test_held_out_kinds_never_stand_in_train() -> None:
    kinds = {split: {task.key for task in tasks(split, letters=2)} for split in ("train", "valid", "test")}
    assert not kinds["train"] & (kinds["valid"] | kinds["test"])
    assert not kinds["valid"] & kinds["test"]
    assert sum(map(len, kinds.values())) == 175
    assert min(len(kinds["valid"]), len(kinds["test"])) >= 10


def test_the_share_of_wrong_demonstrations_is_what_was_asked_for() -> None:
    rows = generate_python_tasks(PythonTasksSettings(rows=2_000, wrong=0.4), "demonstrations").splits["train"]
    right = {(task.asked, task.names): task.program for task in tasks("train", letters=4)}
    wrong = Counter()
    for row in rows:
        asked, said = (message.content for message in row.messages)
        words, names = re.fullmatch(r"# (.*)\ndef f\((.*)\): return ", asked).groups()  # type: ignore[union-attr]
        wrong[right[words, tuple(names.split(", "))] != said] += 1
    assert wrong[True] / 2_000 == pytest.approx(0.4, abs=0.04)  # 3.6 standard deviations


def test_python_tasks_are_no_preferences() -> None:
    with pytest.raises(DataError, match="python_tasks: holds no preferences"):
        generate_python_tasks(PythonTasksSettings(), "preferences")


# ---- pages


def blocks(page: str, kind: str) -> list[str]:
    """Return the fenced blocks of a page of some kind; a block without one is of the terminal."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [
        body for found, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if found == kind
    ]


def commands() -> list[str]:
    """Return every command of the pages, from blocks of the terminal and from inline code."""
    found = []
    for page in PAGES:
        lines = [line.removeprefix("$ ") for block in blocks(page, "") for line in block.splitlines()]
        text = re.sub(r"^```.*?^```", "", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.S | re.M)
        lines += re.findall(r"`(rlkit [^`]+)`", text)
        found += [line[line.index("rlkit ") :] for line in lines if re.match(r"(rlkit|printf .*\| rlkit) ", line)]
    return sorted(set(found))


def parsed(arguments: list[str]) -> None:
    """Parse a command as the terminal would, down to its verb; nothing runs."""
    command, context = typer.main.get_command(app), None
    while True:
        context = command.make_context(arguments[0], arguments[1:], parent=context)
        if not hasattr(command, "resolve_command"):
            return
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        arguments = [name, *rest]


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_pages_are_such(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command)
    if len(arguments) > 2:
        parsed(arguments)
    else:  # a verb is mentioned
        assert CliRunner().invoke(app, [*arguments[1:], "--help"]).exit_code == 0
    recipe = next((word for word in arguments if word.startswith("recipes/")), None)
    overrides = [word for word in arguments if "=" in word and not re.search(r"\b(LM|FILE)\b", word)]
    if recipe:
        load_recipe(recipe, overrides)


def test_the_pages_have_commands() -> None:
    assert {shlex.split(command)[1] for command in commands()} >= {
        "run",
        "validate",
        "rewards",
        "chat",
        "data",
        "compare",
    }


def test_a_wrong_command_would_be_seen() -> None:
    with pytest.raises(Exception, match="No such option"):
        parsed(["rlkit", "rewards", "try", "r.yaml", "--samples"])


REWARDS = [block for block in blocks("rewards.md", "yaml") if block.startswith("rewards:")]


@pytest.mark.parametrize("block", REWARDS)
def test_rewards_of_the_page_are_accepted(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reward.py").write_text(blocks("rewards.md", "python")[0])
    rewards = parse_document(block).tree["rewards"]
    recommends = rewards[0]["type"] == "item_match"
    train = {"algorithm": {"type": "sft"}}
    scorer = {"algorithm": {"type": "reward_model"}}
    learns = {
        "algorithm": {"type": "grpo", "rewards": rewards, "rollout": {"type": "beam" if recommends else "sample"}}
    }
    stages = {"sft": train, **({} if recommends else {"reward_model": scorer}), "grpo": learns}
    domain = {"type": "recommendation" if recommends else "chat"}
    recipe = recipe_from_tree({"name": "page", "domain": domain, "stages": stages}).recipe
    found = recipe.stages["grpo"].algorithm.rewards  # type: ignore[attr-defined]
    assert [reward.type for reward in found] == [reward["type"] for reward in rewards]


def test_every_reward_stands_on_the_page() -> None:
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    assert [name for name in load_plugins().components("reward") if not re.search(rf"type: {name}\b", page)] == []


def test_data_of_the_page_is_accepted() -> None:
    found = [parse_document(block).tree for block in blocks("chat.md", "yaml")]
    stages = {"sft": {"algorithm": {"type": "sft"}}}
    domains = [tree["domain"] for tree in found if "domain" in tree]
    assert len(domains) == 2
    for domain in domains:
        recipe_from_tree({"name": "page", "domain": domain, "stages": stages})
    (evaluate,) = [tree["evaluate"] for tree in found if "evaluate" in tree]
    grpo = {"algorithm": {"type": "grpo", "rewards": [{"type": "code"}], "rollout": {"type": "sample"}}}
    recipe_from_tree({"name": "page", "domain": domains[1], "stages": stages | {"grpo": grpo, "evaluate": evaluate}})
