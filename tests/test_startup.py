"""What the light commands load: modules, not milliseconds (those are measured by benchmarks/startup.py)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "trl", "datasets", "pandas", "sklearn", "deepspeed", "peft", "accelerate")
RECIPE = """\
name: x
domain: {type: recommendation}
stages:
  sft: {algorithm: {type: sft}, train: {extra: {adam_epsilon: 1e-9}}}
  evaluate: {type: evaluate}
"""
LOADED = """
import json, sys
from rlkit.cli.main import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["rlkit", *command]
    try:
        main()
    except SystemExit as end:
        code = end.code
    print(file=sys.stderr)
    print("LOADED", code or 0, *sys.modules, file=sys.stderr)
"""


def loaded(commands, cwd):
    """Run commands one after the other in one new process; return the exit code of each and what is loaded by then."""
    command = [sys.executable, "-c", LOADED, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=True)
    lines = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("LOADED ")]
    return [(int(code), set(modules)) for code, *modules in lines]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "bad.yaml").write_text(RECIPE.replace("sft}", "sff}"))
    return tmp_path


HELP = {"--help": 0, "--version": 0, "run --help": 0, "grpo --help": 0, "no-such-verb": 2}
LIGHT = {
    "validate r.yaml": 0,
    "validate bad.yaml": 2,
    "run r.yaml --dry-run": 0,
    "run r.yaml --dry-run --smoke": 0,
    "grpo --dry-run": 0,
    "schema": 0,
    "plugins": 0,
    "init new.yaml": 0,
    "data describe r.yaml domain.data.users=40": 0,
}


def test_help_loads_no_settings_no_plugin_and_nothing_heavy(folder):
    light = {*HEAVY, "pluggy", "yaml", "numpy", "rlkit.component", "rlkit.plugins", "rlkit.recipe"}
    found = loaded([command.split() for command in HELP], cwd=folder)
    assert {said: (code, modules & light) for said, (code, modules) in zip(HELP, found, strict=True)} == {
        said: (code, set()) for said, code in HELP.items()
    }


def test_light_verbs_load_nothing_heavy(folder):
    found = loaded([command.split() for command in LIGHT], cwd=folder)
    assert {said: (code, modules & {*HEAVY}) for said, (code, modules) in zip(LIGHT, found, strict=True)} == {
        said: (code, set()) for said, code in LIGHT.items()
    }


def test_importing_every_light_module_loads_nothing_heavy():
    root = Path(__file__).parent.parent
    light = "errors records component hookspecs builtin plugins recipe recipe_smoke cli.main cli.dry_run cli.starter"
    script = (
        "; ".join(f"import rlkit.{name}" for name in light.split())
        + "; import rlkit.recsys.data.minionerec, sys; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    assert set(done.stdout.split()).isdisjoint(HEAVY)
