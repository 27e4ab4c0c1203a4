"""The command line as a user meets it: what verbs do, and what they say when they are used wrongly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rlkit.run
from rlkit.cli.main import app, main
from rlkit.cli.starter import STARTERS
from rlkit.plugins import load_plugins
from rlkit.recipe import load_recipe

DATA = Path(os.environ.get("RLKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
RECIPE = """\
name: demo
domain: {type: recommendation}
stages:
  semantic_ids: {type: semantic_ids}
  sft: {algorithm: {type: sft}}
  grpo:
    algorithm:
      type: grpo
      rollout_batch_size: 128
      updates_epochs: 2
      rewards: [{type: item_match}]
    train: {micro_batch_size: 16}
  evaluate: {type: evaluate}
"""


@pytest.fixture
def rlkit_(rlkit_, tmp_path):
    """Return a function that runs a command in a folder with a recipe."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    return rlkit_


# ---- run


def test_run_hands_the_recipe_and_the_folder_on(rlkit_, runs):
    assert rlkit_("run", "r.yaml", "seed=3", "--from", "sft", "--until", "grpo", "--fresh")[0] == 0
    ((loaded, out, options),) = runs
    assert (loaded.recipe.seed, out) == (3, Path("runs/demo"))
    assert options == {"from_stage": "sft", "until_stage": "grpo", "fresh": True, "checks": True}


def test_options_may_stand_between_overrides(rlkit_, runs):
    assert rlkit_("run", "r.yaml", "seed=3", "--out", "there", "name=other")[0] == 0
    ((loaded, out, _),) = runs
    assert (loaded.recipe.name, loaded.recipe.seed, out) == ("other", 3, Path("there"))


def test_smoke_runs_the_tiny_recipe_in_a_folder_of_its_own(rlkit_, runs):
    assert rlkit_("run", "r.yaml", "--smoke")[0] == 0
    ((loaded, out, _),) = runs
    assert (loaded.recipe.stages["grpo"].train.max_steps, out) == (4, Path("runs/demo-smoke"))


def test_a_dry_run_prints_a_recipe_that_loads_again_with_its_stages_and_arithmetic(rlkit_, runs, tmp_path):
    code, out, _ = rlkit_("run", "r.yaml", "--dry-run", "engine.processes=2")
    assert (code, runs) == (0, [])
    (tmp_path / "resolved.yaml").write_text(out)
    assert (
        load_recipe(tmp_path / "resolved.yaml").recipe
        == load_recipe(tmp_path / "r.yaml", ["engine.processes=2"]).recipe
    )
    assert "Demonstration -> policy" in out
    assert "starts from sft" in out
    assert "ranks with sft, grpo" in out
    # 128 prompts x 16 completions; 2 epochs x 128 / 64 = 4 updates; 64 / 2 ranks = 32 = 2 x 16
    assert "grpo: 128 prompts per rollout x 16 = 2,048 completions; 4 updates of 64 prompts per rollout" in out
    assert "on each of 2 ranks 32 prompts = 2 accumulated x 16 per forward" in out


def test_a_recipe_with_mistakes_lists_them_all_and_exits_with_2(rlkit_, runs):
    code, out, err = rlkit_("run", "r.yaml", "seed=x", "stages.sft.train.lr=1")
    assert (code, out, runs) == (2, "", [])
    assert [line.startswith("error: command line: '") for line in err.splitlines()] == [True, True]


# ---- validate, schema, init, plugins


def test_validate_says_what_was_checked(rlkit_):
    code, out, _ = rlkit_("validate", "r.yaml")
    assert code == 0
    assert "r.yaml: the recipe is valid" in out
    assert "names no files to read" in out


def test_validate_reads_the_data_unless_told_not_to(rlkit_, tmp_path):
    code, _, err = rlkit_("validate", "r.yaml", "domain.data.path=nowhere")
    assert code == 2
    assert err.startswith("error: command line: 'domain.data.path=nowhere': domain.data: nowhere: not a folder")
    assert rlkit_("validate", "r.yaml", "domain.data.path=nowhere", "--no-data")[0] == 0


def test_validate_reads_real_data(rlkit_):
    if not (DATA / "amazon_industrial").is_dir():
        pytest.skip("the Industrial data is not here (RLKIT_DATA)")
    code, out, _ = rlkit_("validate", "r.yaml", f"domain.data.path={DATA / 'amazon_industrial'}")
    assert (code, out.splitlines()[-1]) == (0, "data: read without a problem: minionerec")


def test_schema_is_json(rlkit_):
    code, out, _ = rlkit_("schema")
    assert (code, json.loads(out)["$schema"]) == (0, "https://json-schema.org/draft/2020-12/schema")


@pytest.mark.parametrize("domain", STARTERS)
def test_init_writes_a_recipe_that_validates(rlkit_, domain, tmp_path):
    code, out, _ = rlkit_("init", "new.yaml", "--domain", domain)
    assert (code, out) == (0, "new.yaml: written; next: rlkit run new.yaml --smoke\n")
    assert load_recipe(tmp_path / "new.yaml").recipe.domain.type == domain


def test_the_choices_that_a_starter_mentions_validate_too(rlkit_, tmp_path):
    rlkit_("init", "new.yaml")
    text = (tmp_path / "new.yaml").read_text()
    for comment in ("# path: DIR_OR_HUB_ID", "# engine:", "#   type: deepspeed", "#   zero: 2", "#   processes: 2"):
        assert comment in text
        text = text.replace(comment, comment.removeprefix("# ").removeprefix("# ").replace("#   ", "  "))
    (tmp_path / "new.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "new.yaml", ["domain.data.type=minionerec", "domain.data.path=DIR"]).recipe
    assert (recipe.engine.type, recipe.engine.processes, recipe.model.path) == ("deepspeed", 2, "DIR_OR_HUB_ID")


def test_init_never_overwrites_without_force(rlkit_, tmp_path):
    code, _, err = rlkit_("init", "r.yaml")
    assert (code, (tmp_path / "r.yaml").read_text()) == (2, RECIPE)
    assert err == "error: r.yaml: is there already; choose another name, or overwrite it with --force\n"
    assert rlkit_("init", "r.yaml", "--force")[0] == 0
    assert (tmp_path / "r.yaml").read_text() != RECIPE


def test_plugins_lists_kind_name_package_and_version(rlkit_):
    code, out, _ = rlkit_("plugins")
    assert code == 0
    assert ["algorithm", "grpo", "rlkit"] in [line.split()[:3] for line in out.splitlines()]
    rows = json.loads(rlkit_("plugins", "--json")[1])
    assert {"kind": "reward", "name": "item_match", "package": "rlkit", "version": rlkit.__version__} in rows


def test_plugins_shows_a_third_partys_package(rlkit_, tmp_path):
    source = (
        "from typing import Literal\n"
        "from rlkit.component import Component, Settings\nfrom rlkit.hookspecs import hookimpl\n"
        "class PraiseSettings(Settings):\n    type: Literal['praise'] = 'praise'\n"
        "@hookimpl\ndef register_rewards():\n    return [Component(PraiseSettings, 'x:y')]\n"
    )
    (tmp_path / "acme_praise.py").write_text(source)
    info = tmp_path / "acme_praise-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-praise\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text("[rlkit]\npraise = acme_praise\n")
    command = [sys.executable, "-m", "rlkit", "plugins", "--json"]
    path = os.pathsep.join([str(tmp_path), str(Path(rlkit.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "RLKIT_PLUGINS": "praise"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert {"kind": "reward", "name": "praise", "package": "acme-praise", "version": "2.5"} in json.loads(done.stdout)


def test_data_describe_takes_a_recipe_or_a_folder(rlkit_, tmp_path):
    code, out, _ = rlkit_("data", "describe", "r.yaml", "domain.data.users=40")
    assert code == 0
    assert "cold targets" in out
    code, _, err = rlkit_("data", "describe", tmp_path)
    assert code == 2
    assert err.startswith(f"error: {tmp_path}: no file for train")


# ---- used wrongly


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["run"], "Missing argument 'RECIPE'"),
        (["run", "r.yaml", "--smoek"], "No such option: --smoek (Possible options: --smoke)"),
        (["run", "rr.yaml"], "error: rr.yaml: cannot be read: no such file; there is r.yaml"),
        (["run", "."], "error: .: cannot be read: it is a folder; name a YAML file"),
        (["run", "r.yaml", "seed"], "error: command line: 'seed': not an override; write key=value, such as seed=1"),
        (["validate", "r.yaml", "r.yaml"], "error: command line: 'r.yaml': not an override"),
        (["init", "no/such/r.yaml"], "error: no/such/r.yaml: cannot be written: no such file or directory"),
        (["init", "--domain", "chta", "x.yaml"], "error: --domain: no starter recipe for 'chta'; did you mean 'chat'?"),
        (["data", "describe", "nothing"], "error: nothing: cannot be read: no such file"),
        (["evaluate", "nothing"], "error: nothing: no recipe.yaml here; name a run directory"),
        (["compare", "a", "b"], "error: a/evaluate/eval.json: does not exist"),
        (
            ["grpo", "--data", "nothing"],
            "error: --data: does not exist, got 'nothing'; name a file or a folder of prompts",
        ),
        (["sft", "--data", "r.yaml"], "error: r.yaml: holds rows of the format text (plain lines), which give prompts"),
        (
            ["grpo", "algorithm.groupsize=2"],
            "stages.grpo.algorithm.groupsize: no such setting; did you mean 'group_size'?",
        ),
        (
            ["grpo", "group_size=2"],
            "group_size: no such setting here; did you mean 'stages.grpo.algorithm.group_size'?",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_clear_message_and_exit_code_2(rlkit_, arguments, message):
    code, out, err = rlkit_(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_an_error_keeps_its_exit_code(rlkit_, monkeypatch):
    from rlkit.errors import TrainingError

    def fail(*_, **__):
        raise TrainingError("loss: not a number at step 3; lower the learning rate", "second line")

    monkeypatch.setattr(rlkit.run, "run", fail)
    code, _, err = rlkit_("run", "r.yaml")
    assert (code, err) == (1, "error: loss: not a number at step 3; lower the learning rate\nerror: second line\n")


def test_an_interrupted_run_says_how_to_go_on(rlkit_, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(rlkit.run, "run", interrupt)
    code, _, err = rlkit_("run", "r.yaml")
    assert (code, err) == (130, "interrupted; the same command goes on from the last checkpoint\n")
    assert "the same command without --fresh goes on" in rlkit_("run", "r.yaml", "--fresh")[2]


def test_a_bug_keeps_its_traceback(rlkit_, monkeypatch, capsys):
    def crash(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(rlkit.run, "run", crash)
    monkeypatch.setattr(sys, "argv", ["rlkit", "run", "r.yaml"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_a_closed_pipe_is_silent(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    for arguments in (["schema"], ["run", "r.yaml", "--dry-run"], ["plugins"], ["--help"]):
        command = [sys.executable, "-m", "rlkit", *arguments]
        environment = os.environ | {"PYTHONPATH": str(Path(rlkit.__file__).parents[1])}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment
        )
        process.stdout.close()
        with process.stderr:
            assert process.stderr.read() == b""
        process.wait()


def test_every_verb_has_help_with_a_first_line_that_fits(rlkit_):
    code, out, _ = rlkit_("--help")
    assert code == 0
    commands = out.partition("Commands:")[2]
    assert "..." not in commands
    for verb in [command.callback.__name__ for command in app.registered_commands]:
        assert f"\n  {verb} " in commands
        assert rlkit_(verb, "--help")[0] == 0


def test_the_version_is_the_packages(rlkit_):
    assert rlkit_("--version") == (0, f"rlkit {rlkit.__version__}\n", "")


def test_completion_offers_the_verbs():
    environment = os.environ | {"_RLKIT_COMPLETE": "complete_bash", "COMP_WORDS": "rlkit ", "COMP_CWORD": "1"}
    script = "import sys; sys.argv = ['rlkit']; from rlkit.cli.main import main; main()"
    root = Path(rlkit.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=root)
    assert {"run", "validate", "grpo"} <= set(done.stdout.split())


def test_verbs_that_list_components_know_what_is_installed(rlkit_):
    listed = {(row["kind"], row["name"]) for row in json.loads(rlkit_("plugins", "--json")[1])}
    assert {("engine", name) for name in load_plugins().components("engine")} <= listed
