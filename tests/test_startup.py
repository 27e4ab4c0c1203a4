"""What the light commands load: modules, not milliseconds (those are measured by benchmarks/startup.py)."""

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
import sys
from rlkit.cli.main import main
try:
    main()
except SystemExit as end:
    code = end.code
print(file=sys.stderr)
print(code or 0, *sys.modules, file=sys.stderr)
"""


def loaded(*arguments, cwd):
    """Run a command in a process of its own; return its exit code and the modules that it loaded."""
    command = [sys.executable, "-c", LOADED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=True)
    code, *modules = done.stderr.splitlines()[-1].split()
    return int(code), set(modules)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "bad.yaml").write_text(RECIPE.replace("sft}", "sff}"))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["run", "--help"], 0),
        (["grpo", "--help"], 0),
        (["no-such-verb"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_help_loads_no_settings_no_plugin_and_nothing_heavy(folder, arguments, code):
    found, modules = loaded(*arguments, cwd=folder)
    assert found == code
    assert modules.isdisjoint({*HEAVY, "pluggy", "yaml", "numpy", "rlkit.component", "rlkit.plugins", "rlkit.recipe"})


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["validate", "r.yaml"], 0),
        (["validate", "bad.yaml"], 2),
        (["run", "r.yaml", "--dry-run"], 0),
        (["run", "r.yaml", "--dry-run", "--smoke"], 0),
        (["grpo", "--dry-run"], 0),
        (["schema"], 0),
        (["plugins"], 0),
        (["init", "new.yaml"], 0),
        (["data", "describe", "r.yaml", "domain.data.users=40"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_light_verbs_load_nothing_heavy(folder, arguments, code):
    found, modules = loaded(*arguments, cwd=folder)
    assert found == code
    assert modules.isdisjoint(HEAVY)


def test_importing_every_light_module_loads_nothing_heavy():
    root = Path(__file__).parent.parent
    light = "errors records component hookspecs builtin plugins recipe recipe_smoke cli.main cli.dry_run cli.starter"
    script = (
        "; ".join(f"import rlkit.{name}" for name in light.split())
        + "; import rlkit.recsys.data.minionerec, sys; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    assert set(done.stdout.split()).isdisjoint(HEAVY)
