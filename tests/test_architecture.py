"""The house rules that a machine can hold: floors, the light column, sizes, docstrings, recipes, and the README."""

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

from rlkit.component import Settings
from rlkit.plugins import load_plugins
from rlkit.recipe import Recipe, load_recipe

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "rlkit").rglob("*.py"))
HEAVY = {"torch", "transformers", "trl", "datasets", "pandas", "sklearn", "deepspeed", "peft", "accelerate"}
MAX_FILE, MAX_FUNCTION = 400, 60

# From the ground up; a module imports from lower floors, and from its own package or group only.
FLOORS = (
    ("errors", "records"),
    ("component",),
    ("hookspecs", "config"),
    ("builtin",),
    ("plugins",),
    ("recipe", "rlhf_config"),
    ("ops", "monitor"),
    ("models",),
    ("job", "run_directory", "progress", "events", "callbacks", "training"),
    ("policy",),
    ("algorithms", "recsys", "chat", "engines", "reward_models", "report"),
    ("stages", "reward_lab"),
    ("preflight",),
    ("run", "worker", "rlhf_pipeline"),
    ("plugin_kit",),
    ("cli", "__main__"),
)
NEIGHBORS = {"algorithms", "recsys", "chat", "engines", "reward_models", "report"}
LIGHT = ("errors", "records", "component", "hookspecs", "config", "builtin", "plugins", "recipe", "rlhf_config")
LIGHT += ("cli", "monitor")
LIGHT_READERS = ("rlkit.recsys.data", "rlkit.chat.data", "rlkit.chat.evaluation_data", "rlkit.models.head_files")
# ``Settings.check`` reads the data that settings name, in the function; what it imports must be light.
UPWARD_IN_A_FUNCTION = {
    ("rlkit.config.recommendation_data", "rlkit.recsys.data.minionerec"),
    ("rlkit.config.chat", "rlkit.chat.data.read"),
    ("rlkit.config.stages", "rlkit.chat.evaluation_data"),
    ("rlkit.config.reward_models", "rlkit.models.head_files"),
    ("rlkit.config.process_rewards", "rlkit.models.head_files"),
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(module):
    """Return the first name below ``rlkit``; ``recipe_yaml`` and its sisters are parts of ``recipe``."""
    name = [*module.split("."), ""][1]
    return "recipe" if name.startswith("recipe_") else name


def floor(module):
    return next((rank for rank, names in enumerate(FLOORS) if part(module) in names), None)


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Yield (module, whether it is imported when the file is) for every import; types-only imports count as well."""
    nodes = [(node, True) for node in tree(path).body]
    while nodes:
        node, at_top = nodes.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            submodules = (f"{node.module}.{alias.name}" for alias in node.names)
            names = [name for name in submodules if is_module(name)] or [node.module]
            yield from ((name, at_top) for name in names)
        at_top = at_top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_for_types(node)
        nodes += [(child, at_top) for child in ast.iter_child_nodes(node)]


def is_module(name):
    base = ROOT.joinpath(*name.split("."))
    return name.startswith("rlkit") and (base.with_suffix(".py").is_file() or (base / "__init__.py").is_file())


def is_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def is_light(module):
    return (
        part(module) in LIGHT or module.startswith(LIGHT_READERS) or module in ("rlkit", "rlkit.recsys", "rlkit.chat")
    )


def test_every_module_stands_on_a_floor():
    assert [module for path in FILES if (module := module_name(path)) != "rlkit" and floor(module) is None] == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down(path):
    own = module_name(path)
    for name, _ in imports(path):
        if name.startswith("rlkit.") and part(name) != part(own) and (own, name) not in UPWARD_IN_A_FUNCTION:
            assert floor(name) is not None, f"{own} imports {name}, which stands on no floor"
            assert floor(name) <= floor(own), f"{own} imports {name} from a floor above"
            assert not {part(own), part(name)} <= NEIGHBORS, f"{own} imports its neighbor {name}"


@pytest.mark.parametrize("path", [path for path in FILES if is_light(module_name(path))], ids=module_name)
def test_light_modules_import_nothing_heavy(path):
    for name, at_top in imports(path):
        if at_top:
            assert name.split(".")[0] not in HEAVY, f"{module_name(path)} imports {name} at module level"
            assert not name.startswith("rlkit.") or is_light(name), f"{module_name(path)} imports the heavy {name}"


def test_exceptions_from_the_floors_are_needed_and_lead_to_light_modules():
    for own, name in UPWARD_IN_A_FUNCTION:
        found = dict(imports(ROOT.joinpath(*own.split(".")).with_suffix(".py")))
        assert found.get(name) is False, f"{own} imports {name} in no function; delete the exception"
        assert is_light(name)


def test_ops_import_nothing_of_rlkit_but_ops():
    for path in FILES:
        if part(module_name(path)) == "ops":
            assert [name for name, _ in imports(path) if name.startswith("rlkit") and part(name) != "ops"] == []


def test_the_rules_see_what_they_forbid(tmp_path):
    """The walk finds imports in functions, in branches and for types, and tells which run at import."""
    path = tmp_path / "sample.py"
    path.write_text(
        "import torch\nif TYPE_CHECKING:\n    from rlkit import job\ntry:\n    import trl\nfinally:\n    pass\n"
        "class A:\n    def f(self):\n        from rlkit.recsys import trie\n"
    )
    found = {("torch", True), ("rlkit.job", False), ("trl", True), ("rlkit.recsys.trie", False)}
    assert set(imports(path)) == found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f"{node.name}: {size(node)} lines" for node in functions if size(node) > MAX_FUNCTION] == []


def size(node):
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_every_file_opens_with_what_it_is_about(path):
    assert not tree(path).body or ast.get_docstring(tree(path))


def all_settings():
    registry = load_plugins()
    found, open_ = set(), [Recipe]
    open_ += [c.settings for kind in KINDS_BUILT_IN for c in registry.components(kind).values()]
    while open_:
        settings = open_.pop()
        if settings not in found:
            found.add(settings)
            open_ += [inner for field in settings.model_fields.values() for inner in settings_in(field.annotation)]
    return sorted(found, key=lambda settings: settings.__name__)


def settings_in(annotation):
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return [annotation]
    return [inner for argument in getattr(annotation, "__args__", ()) for inner in settings_in(argument)]


KINDS_BUILT_IN = (
    *("stage", "algorithm", "domain", "model", "reward", "loss_term", "data_format", "quantizer", "rollout", "engine"),
)


@pytest.mark.parametrize("settings", all_settings(), ids=lambda settings: settings.__name__)
def test_every_setting_has_a_docstring(settings):
    assert settings.__doc__
    fields = settings.model_fields.items()
    assert [name for name, field in fields if name != "type" and not field.description] == []


def test_every_built_in_component_has_code_behind_its_name():
    registry = load_plugins()
    for kind in KINDS_BUILT_IN:
        for component in registry.components(kind).values():
            if registry.origin(kind, component.name).package == "rlkit":
                module, _, attribute = component.target.partition(":")
                path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
                assert path.is_file(), f"{kind} {component.name}: {component.target}"
                assert attribute in top_level_names(path), f"{kind} {component.name}: {component.target}"


def top_level_names(path):
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def test_the_architecture_page_names_every_module():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listing = page.partition("## Every file in a line")[2].partition("```\n")[2].partition("```")[0]
    files = {path.relative_to(ROOT / "rlkit").with_suffix("").parts for path in FILES if path.name != "__init__.py"}
    names = {parts[0] for parts in files}
    names |= {parts[1] for parts in files if len(parts) == 2 and parts[0] != "config"}
    assert sorted(names - set(re.findall(r"\w+", listing))) == []


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("**/*.yaml")), ids=lambda path: path.name)
def test_every_recipe_validates_and_opens_with_what_it_is(path):
    load_recipe(path)
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_commands_in_the_readme_exist():
    from rlkit.cli.main import app

    verbs = {command.callback.__name__ for command in app.registered_commands} | {g.name for g in app.registered_groups}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```.*?^```", readme, re.DOTALL | re.MULTILINE))
    assert set(re.findall(r"^(?:\$ )?rlkit ([a-z-]+)", blocks, re.MULTILINE)) <= verbs
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) if blocks else set()
    assert set(re.findall(r"^(?:\$ )?make ([a-z-]+)", blocks, re.MULTILINE)) <= targets
