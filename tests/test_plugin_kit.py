"""The plugin kit: what it writes works, and what breaks a rule is found."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import ClassVar

import pytest
from toys import ROOT
from typer.testing import CliRunner

from rlkit.cli import installed
from rlkit.cli.main import app
from rlkit.component import KINDS, Settings
from rlkit.errors import PluginError
from rlkit.hookspecs import Registration, RunEvents
from rlkit.plugin_kit.check import check_plugin, failures
from rlkit.plugin_kit.packages import find_package, findable
from rlkit.plugin_kit.scaffold import write_package
from rlkit.plugin_kit.settings_checks import check_declarations, check_settings, check_unknown_key
from rlkit.plugins import load_plugins

FAST = ("reward", "loss_term", "callback")
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a template's package, with parts of its module replaced."""

    def make(kind: str, *changes: tuple[str, str], name: str = "probe") -> Path:
        folder = write_package(name, kind, tmp_path / name)
        module = folder / f"rlkit_{name}.py"
        for old, new in changes:
            text = module.read_text(encoding="utf-8")
            assert old in text
            module.write_text(text.replace(old, new), encoding="utf-8")
        return folder

    return make


def outcomes(folder: Path | str) -> dict[str, str]:
    return {check.what: check.outcome for check in check_plugin(folder)}


# ---- what is written


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_what_is_written_of_a_kind_keeps_all_rules(kind: str, write: Write) -> None:
    checks = check_plugin(write(kind))
    assert failures(checks) == []
    assert [check.what for check in checks if check.outcome == "skip"] == []
    tried = {check.what for check in checks}
    assert {"runs on a CPU", "unknown key"} <= tried
    assert ("order of a group" in tried) == (kind in ("reward", "algorithm"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_tests_that_are_written_pass_without_an_installation(kind: str, write: Write) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=write(kind), env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d passed", done.stdout)
    assert "failed" not in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_filled_in_and_registers_its_kind(kind: str, write: Write) -> None:
    folder = write(kind, name="two_words")
    texts = [path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()]
    assert len(texts) == 4
    assert not any("$" in text for text in texts)
    with findable(find_package(folder)):
        assert load_plugins().origin(kind, "two_words") == ("rlkit-two-words", "0.1.0")
        assert isinstance(load_plugins().get(kind, "two_words").load(), object)


def test_templates_belong_to_the_distribution() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["rlkit"]
    files = [path for path in (ROOT / "rlkit" / "plugin_kit" / "templates").iterdir() if path.is_file()]
    names = [str(path.relative_to(ROOT / "rlkit")) for path in files]
    assert len(names) == 2 * len(KINDS) + 3
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_nothing_is_overwritten(write: Write) -> None:
    folder = write("reward")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(PluginError, match="exists and is not empty; choose another folder"):
        write_package("probe", "callback", folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("Short", "reward", "lower-case letters"),
        ("1st", "reward", "lower-case letters"),
        ("a--b", "reward", "lower-case letters"),
        ("a/b", "reward", "lower-case letters"),
        ("x" * 51, "reward", "at most 50"),
        ("rlkit-short", "reward", "by itself"),
        ("class", "reward", "a word of Python"),
        ("list", "reward", "a word of Python"),
        ("digits", "quantizer", "or of the template"),
        ("item-match", "reward", "the reward of this name is provided by rlkit"),
        ("short", "rewad", "did you mean 'reward'"),
    ],
)
def test_names_that_cannot_work_are_refused(name: str, kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=message):
        write_package(name, kind, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_a_kind_may_be_written_with_a_hyphen(tmp_path: Path) -> None:
    assert (write_package("far", "loss-term", tmp_path / "far") / "rlkit_far.py").is_file()


# ---- what is found


def test_the_kto_plugin_keeps_all_rules() -> None:
    checks = check_plugin(ROOT / "plugins" / "rlkit-kto")
    assert failures(checks) == []
    skipped = {check.what: check.reason for check in checks if check.outcome == "skip"}
    assert skipped == {"order of a group": "it learns from records, not from groups of completions"}


@pytest.mark.parametrize(
    ("change", "what", "message"),
    [
        (("from typing import Literal", "from typing import Literal\nimport torch"), "imports nothing heavy", "torch"),
        (("register_rewards", "register_rewad"), "loads through the hooks", "did you mean 'register_rewards'"),
        (("return [Component", "return []; [Component"), "loads through the hooks", "registers no component"),
        (('"probe"', '"item_match"'), "no clash of names", "'item_match' is provided by rlkit"),
        (("import annotations", "import annotation"), "loads through the hooks", "SyntaxError"),
    ],
)
def test_a_package_that_does_not_load_as_it_should_is_told_why(
    change: tuple[str, str], what: str, message: str, write: Write
) -> None:
    checks = check_plugin(write("reward", change))
    failed = {check.what: check.reason for check in checks if check.outcome == "fail"}
    assert message in failed[what]
    assert "runs on a CPU" not in {check.what for check in checks}


def test_a_reward_that_looks_at_the_place_in_the_group_is_found_out(write: Write) -> None:
    place = (
        "return TextReward(score, domain)",
        "return lambda rollouts: rollouts.scores.argsort(-1).float() * 0 + ORDER",
    )
    order = (
        "from pydantic import Field",
        "from pydantic import Field\n\nORDER = __import__('array').array('f', range(64))",
    )
    folder = write("reward", place, order)
    module = folder / "rlkit_probe.py"
    module.write_text(
        module.read_text().replace("* 0 + ORDER", "* 0 + rollouts.scores.new_tensor(ORDER[: rollouts.scores.shape[1]])")
    )
    checks = {check.what: check for check in check_plugin(folder)}
    assert checks["runs on a CPU"].outcome == "pass"
    assert "depend on the order of a group's completions" in checks["order of a group"].reason
    declared = module.read_text().replace(
        "    max_characters: int", "    order_matters: ClassVar[bool] = True\n    max_characters: int"
    )
    module.write_text(declared.replace("from typing import Literal", "from typing import ClassVar, Literal"))
    assert outcomes(folder)["order of a group"] == "skip"


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "outcome"), [("chat", "pass"), ("recommendation", "pass"), ("weather", "skip")])
def test_a_reward_is_tried_on_the_domain_that_it_is_made_for(domain: str, outcome: str, write: Write) -> None:
    declared = f'    domains: ClassVar[tuple[str, ...]] = ("{domain}",)\n    max_characters: int'
    typing = ("from typing import Literal", "from typing import ClassVar, Literal")
    found = outcomes(write("reward", typing, ("    max_characters: int", declared)))
    assert (found["runs on a CPU"], found["order of a group"]) == (outcome, outcome)
    assert found["declarations"] == ("fail" if domain == "weather" else "pass")


def test_a_policy_loss_that_looks_at_the_place_in_the_group_is_found_out(write: Write) -> None:
    objective = 'objective = output.logprobs * batch.numbers["advantages"][..., None]'
    uneven = f"{objective} * (1 + output.logprobs.new_tensor(range(batch.mask.shape[1]))[:, None])"
    checks = {check.what: check for check in check_plugin(write("algorithm", (objective, uneven)))}
    assert checks["order of a group"].outcome == "fail"
    assert "the loss depends on the order" in checks["order of a group"].reason
    assert [what for what, check in checks.items() if check.outcome != "pass"] == ["order of a group"]


def test_code_that_raises_is_shown_with_its_place(write: Write) -> None:
    checks = {check.what: check for check in check_plugin(write("reward", ("max(0.0,", "max(1 / 0,")))}
    assert re.search(r"ZeroDivisionError: .* \(rlkit_probe\.py:\d+\)", checks["runs on a CPU"].reason)


def test_a_loss_term_must_be_a_scalar_that_does_not_depend_on_the_order(write: Write) -> None:
    per_pair = ("beyond.square().mean()", "beyond.square()")
    first = ("beyond.square().mean()", "chosen[0]")
    for place, (change, message) in enumerate(((per_pair, "finite scalar"), (first, "depends on the order"))):
        checks = {check.what: check for check in check_plugin(write("loss_term", change, name=f"probe{place}"))}
        assert message in checks["order of pairs"].reason


@pytest.mark.slow
def test_a_required_setting_without_an_example_is_not_tried_and_one_with_an_example_is(write: Write) -> None:
    required = ("int = Field(20, ge=1)", "int = Field(ge=1)")
    checks = {check.what: check for check in check_plugin(write("reward", required))}
    assert checks["runs on a CPU"].outcome == "skip"
    assert "max_characters must be given" in checks["runs on a CPU"].reason
    example = ("int = Field(20, ge=1)", "int = Field(ge=1, examples=[30])")
    assert set(outcomes(write("reward", example, name="with_example")).values()) == {"pass"}


def test_settings_without_explanations_are_named_one_by_one() -> None:
    class Inner(Settings):
        """Explained."""

        depth: int = 1

    class Bare(Settings):
        type: str = "bare"
        inner: Inner = Inner()
        """Explained."""

    with pytest.raises(PluginError) as error:
        check_settings(Bare)
    assert error.value.problems == (
        "Bare: no docstring; say what it is in a line",
        "Inner.depth: no docstring; put one below the field",
    )


def test_settings_that_take_unknown_keys_are_found_out(write: Write) -> None:
    loose = write(
        "callback", ('    """End a stage early."""', '    """Loose."""\n\n    model_config = {"extra": "ignore"}')
    )
    with findable(find_package(loose)):
        settings = load_plugins().get("callback", "probe").settings
        with pytest.raises(PluginError, match="must stay frozen and forbid unknown keys"):
            check_settings(settings)
    failed = {check.what for check in check_plugin(loose) if check.outcome == "fail"}
    assert {"settings", "unknown key"} <= failed


def test_an_unknown_key_of_a_built_in_part_gives_one_line_with_its_place() -> None:
    for kind, name in (("rollout", "beam"), ("reward", "item_match"), ("data_format", "demo"), ("quantizer", "given")):
        check_unknown_key(kind, load_plugins().get(kind, name).settings)


@pytest.mark.parametrize(
    ("kind", "declared", "message"),
    [
        ("algorithm", {"consumes": ("Prompt",)}, "produces: declares nothing; choose of policy, process_reward_model"),
        ("algorithm", {"consumes": ("Promt",), "produces": ("policy",)}, "consumes: nobody knows Promt; choose of "),
        ("algorithm", {"produces": ("model",), "consumes": ("Prompt",)}, "produces: nobody knows model"),
        ("domain", {"produces": ("policy",)}, "produces: nobody knows policy"),
        (
            "domain",
            {"produces": ("Prompt",), "best_by": "f1", "__annotations__": {"best_by": ClassVar[str]}},
            "best_by: must be one of reward, got 'f1'",
        ),
        ("reward", {"domains": ("chatter",)}, "domains: none is called 'chatter'"),
    ],
)
def test_declarations_that_name_nothing_are_refused(kind: str, declared: dict, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        check_declarations(kind, type("Declared", (Settings,), declared))


def test_what_algorithms_declare_of_rlkits_own_is_known() -> None:
    for kind in ("algorithm", "domain", "reward"):
        for component in load_plugins().components(kind).values():
            check_declarations(kind, component.settings)


# ---- packages


def test_a_package_is_found_by_folder_distribution_and_module(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("reward")
    package = find_package(folder)
    assert (package.name, package.version, dict(package.points)) == ("rlkit-probe", "0.1.0", {"probe": "rlkit_probe"})
    with findable(package):
        for name in ("rlkit-probe", "rlkit_probe"):
            found = find_package(name)
            assert (found.name, found.paths) == ("rlkit-probe", ())
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    assert find_package("rlkit_probe").points == {"rlkit_probe": "rlkit_probe"}


def test_a_package_in_src_is_found(write: Write) -> None:
    folder = write("callback")
    (folder / "src").mkdir()
    (folder / "rlkit_probe.py").rename(folder / "src" / "rlkit_probe.py")
    with findable(find_package(folder)):
        assert "probe" in load_plugins().components("callback")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[project]\nname = 'x'\n", "no entry point of the group 'rlkit'"),
        ("[project\n", "not valid TOML"),
        (None, "no pyproject.toml"),
    ],
)
def test_a_folder_without_a_plugin_is_told_what_is_missing(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(PluginError, match=message):
        find_package(tmp_path)


def test_after_a_check_everything_is_as_before(write: Write) -> None:
    before = ([*sys.path], os.environ.get("RLKIT_PLUGINS"), set(load_plugins().components("callback")))
    with findable(find_package(write("callback"))):
        load_plugins()
        assert "rlkit_probe" in sys.modules
    assert ([*sys.path], os.environ.get("RLKIT_PLUGINS"), set(load_plugins().components("callback"))) == before
    assert "rlkit_probe" not in sys.modules


# ---- the command line


def test_the_verbs_write_and_try_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(app, ["plugins", "new", "watch", "--kind", "callback"])
    assert made.exit_code == 0
    assert "rlkit-watch/rlkit_watch.py" in made.output.splitlines()
    tried = CliRunner().invoke(app, ["plugins", "check", "rlkit-watch", "--json"])
    assert tried.exit_code == 0
    assert {row["outcome"] for row in json.loads(tried.stdout)} == {"pass"}


def test_a_failed_check_is_in_the_table_and_in_the_exit_code(write: Write) -> None:
    folder = write("callback", ('    """The stage ends where the metric is above this."""\n', ""))
    tried = CliRunner().invoke(app, ["plugins", "check", str(folder)])
    assert tried.exit_code == 2
    line = next(line for line in tried.output.splitlines() if "fail" in line)
    assert "ProbeSettings.limit: no docstring; put one below the field" in line


def test_the_help_names_every_kind() -> None:
    assert installed.KINDS.split(", ") == list(KINDS)


def test_plugins_alone_lists_what_is_installed() -> None:
    rows = json.loads(CliRunner().invoke(app, ["plugins", "--json"]).stdout)
    assert {"algorithm": "dpo"} in [{row["kind"]: row["name"]} for row in rows]


# ---- the page


def test_the_page_about_plugins_shows_every_hook_with_code() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    for name in vars(Registration):
        if name.startswith("register_"):
            section = page.partition(f"\n### {name}\n")[2].partition("\n#")[0]
            assert "```python" in section, name
    events = page.partition("\n## Events of a run\n")[2].partition("\n## ")[0]
    for name, hook in vars(RunEvents).items():
        if not name.startswith("_"):
            arguments = ", ".join([*hook.__code__.co_varnames[1 : hook.__code__.co_argcount]])
            assert f"| `{name}({arguments})` |" in events


def test_the_page_about_plugins_names_every_kind_and_every_check() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    assert [kind for kind in KINDS if not re.search(rf"\b{kind}\b", page)] == []
    source = (ROOT / "rlkit" / "plugin_kit" / "check.py").read_text(encoding="utf-8")
    tried = set(re.findall(r'(?:yield |package\.name, )"([a-zA-Z ]+)"', source))
    assert len(tried) == 11
    assert [what for what in tried if f"| {what} |" not in page] == []


def test_python_on_the_page_can_be_parsed() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) > 12
    for block in blocks:
        compile(block, "docs/plugins.md", "exec", dont_inherit=True)
