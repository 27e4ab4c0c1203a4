"""Discovery of plugins: a third party's package on the path, and everything that can be wrong with one."""

import importlib
import sys
import textwrap

import pytest

from rlkit import builtin
from rlkit.component import KINDS, Component
from rlkit.config.rewards import ItemMatchSettings
from rlkit.errors import PluginError, RecipeError
from rlkit.hookspecs import Registration, RunEvents
from rlkit.plugins import load_plugins
from rlkit.recipe import recipe_from_tree

GOOD = """
    from typing import ClassVar, Literal
    from pydantic import Field
    from rlkit.component import Component, Settings
    from rlkit.hookspecs import hookimpl

    class NudgeSettings(Settings):
        type: Literal["nudge"] = "nudge"
        consumes: ClassVar[tuple[str, ...]] = ("Prompt",)
        produces: ClassVar[tuple[str, ...]] = ("policy",)
        strength: float = Field(0.5, gt=0, le=1)

    @hookimpl
    def register_algorithms():
        return [Component(NudgeSettings, "rlkit_nudge_no_such_module:nudge")]
"""
ANOTHER = GOOD.replace("nudge", "shove").replace("Nudge", "Shove")
BUILT_IN = {component.name for component in builtin.register_algorithms()}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that puts a package with an entry point on the path, as an installer would."""
    made, entries = [], []

    def make(source, *, name="acme-nudge", module="acme_nudge", version="1.2.3", entry="nudge", target=None):
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[rlkit]\n{entry} = {target or module}\n")
        made.append(module)
        entries.append(entry)
        monkeypatch.setenv("RLKIT_PLUGINS", ",".join(entries))
        importlib.invalidate_caches()
        load_plugins.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    for module in made:
        sys.modules.pop(module, None)
    load_plugins.cache_clear()


def problems(error):
    return "\n".join(error.value.problems)


def recipe_with(algorithm):
    return {
        "name": "x",
        "domain": {"type": "recommendation"},
        "stages": {"policy": {"algorithm": algorithm}},
    }


def test_every_kind_has_exactly_one_hook():
    hooks = sorted(name for name in vars(Registration) if name.startswith("register_"))
    assert hooks == sorted(f"register_{kind}s" for kind in KINDS)


def test_every_hook_has_a_docstring():
    for specification in (Registration, RunEvents):
        for name, hook in vars(specification).items():
            if not name.startswith("_"):
                assert hook.__doc__, name


def test_built_in_components_come_through_the_same_hooks():
    registry = load_plugins()
    assert isinstance(registry.get("algorithm", "grpo"), Component)
    assert registry.origin("algorithm", "grpo").package == "rlkit"
    assert set(registry.components("rollout")) == {"beam", "sample"}


def test_a_third_partys_algorithm_joins_the_union_with_its_own_settings(install):
    install(GOOD)
    registry = load_plugins()
    assert registry.origin("algorithm", "nudge") == ("acme-nudge", "1.2.3")
    assert registry.packages() == {"acme-nudge": "1.2.3"}
    stage = recipe_from_tree(recipe_with({"type": "nudge", "strength": 0.25})).recipe.stages["policy"]
    assert stage.algorithm.strength == 0.25
    with pytest.raises(RecipeError) as error:
        recipe_from_tree(recipe_with({"type": "nudge", "strength": 2, "strenth": 1}), source="here")
    assert "here: stages.policy.algorithm.strength: must be <= 1, got 2" in problems(error)
    assert "here: stages.policy.algorithm.strenth: no such setting; did you mean 'strength'?" in problems(error)


def test_without_the_plugin_the_same_recipe_lists_what_is_installed():
    with pytest.raises(RecipeError, match=r"no algorithm is called 'nudge'; choose one of: dpo, grpo"):
        recipe_from_tree(recipe_with({"type": "nudge"}))


def test_a_target_that_cannot_be_imported_is_named_when_it_is_loaded(install):
    install(GOOD)
    with pytest.raises(PluginError, match="nudge: cannot import 'rlkit_nudge_no_such_module:nudge'"):
        load_plugins().get("algorithm", "nudge").load()


def test_an_unknown_component_is_answered_with_the_known_ones():
    with pytest.raises(
        PluginError, match=r"no reward is called 'item_mach'; did you mean 'item_match'\? \(known: .*exact"
    ):
        load_plugins().get("reward", "item_mach")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_thing", "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("x = (", "cannot be imported: SyntaxError"),
        ("x = 1", "registers nothing; mark its functions with rlkit.hookspecs.hookimpl"),
        (
            GOOD.replace("register_algorithms", "register_algoritms"),
            "no hook is called 'register_algoritms'; did you mean 'register_algorithms'?",
        ),
        (GOOD.replace("register_algorithms", "on_rollouts"), "on_rollouts is an event of a run, not of registration"),
        (
            GOOD.replace("register_algorithms()", "register_algorithms(registry)"),
            "is not a plugin: PluginValidationError",
        ),
        (GOOD.replace("return [", "return 1; ["), "must return rlkit.component.Component objects, got 1"),
        (
            GOOD.replace("return [Component", "return None; [Component"),
            "must return rlkit.component.Component objects, got None",
        ),
        (GOOD.replace("return [", "return [1 / 0, "), "fails in register_algorithms: ZeroDivisionError"),
        (GOOD.replace('type: Literal["nudge"] = "nudge"', "pass"), "NudgeSettings has no name"),
        (GOOD.replace('type: Literal["nudge"] = "nudge"', 'type: str = "nudge"'), "NudgeSettings has no name"),
        (GOOD.replace('"nudge"] = "nudge"', '"nudge"]'), "NudgeSettings has no name"),
        (
            GOOD.replace("Component(NudgeSettings", "Component(int"),
            "settings must be a subclass of rlkit.component.Settings",
        ),
        (GOOD.replace('"nudge"', '"grpo"'), "the algorithm 'grpo' is provided by rlkit"),
    ],
)
def test_a_faulty_plugin_is_one_loud_error_that_names_its_package(install, source, message):
    install(source)
    with pytest.raises(PluginError) as error:
        load_plugins()
    assert len(error.value.problems) == 1
    assert message in problems(error)
    assert "acme-nudge 1.2.3" in problems(error)


def test_an_entry_point_to_a_missing_attribute_is_named(install):
    install(GOOD, target="acme_nudge:plugin")
    with pytest.raises(PluginError, match=r"plugin 'nudge' of acme-nudge 1\.2\.3 cannot be imported: AttributeError"):
        load_plugins()


def test_all_faulty_plugins_are_reported_at_once(install):
    install("1 / 0")
    install("import no_such_thing", name="other", module="other", entry="other")
    with pytest.raises(PluginError) as error:
        load_plugins()
    assert ["acme-nudge" in error.value.problems[0], "other" in error.value.problems[1]] == [True, True]


def test_two_plugins_with_the_same_name_are_both_named(install):
    install(GOOD)
    install(GOOD, name="rival-nudge", module="rival", version="9", entry="rival")
    with pytest.raises(PluginError, match=r"'nudge' is provided by acme-nudge 1\.2\.3 and by rival-nudge 9"):
        load_plugins()


def test_rlkit_plugins_narrows_by_entry_point_or_package(install, monkeypatch):
    install(GOOD)
    install(ANOTHER, name="acme-shove", module="acme_shove", entry="shove")
    assert {"nudge", "shove"} <= set(load_plugins().components("algorithm"))
    assert {"grpo", "sft"} <= BUILT_IN
    for wanted, expected in (("nudge", {"nudge"}), (" acme-shove ,", {"shove"}), ("", set())):
        monkeypatch.setenv("RLKIT_PLUGINS", wanted)
        load_plugins.cache_clear()
        assert set(load_plugins().components("algorithm")) - BUILT_IN == expected


def test_rlkit_plugins_keeps_a_broken_plugin_out_without_importing_it(install, monkeypatch):
    install("1 / 0")
    monkeypatch.setenv("RLKIT_PLUGINS", "")
    assert "grpo" in load_plugins().components("algorithm")
    assert "acme_nudge" not in sys.modules


def test_rlkit_plugins_with_an_unknown_name_says_so(install, monkeypatch):
    install(GOOD)
    monkeypatch.setenv("RLKIT_PLUGINS", "nuge")
    with pytest.raises(PluginError, match="RLKIT_PLUGINS: no plugin is called 'nuge'; did you mean 'nudge'"):
        load_plugins()


def test_installing_a_plugin_changes_no_recipe_that_does_not_name_it(install):
    algorithm = {"type": "grpo", "rewards": [{"type": "item_match"}]}
    before = recipe_from_tree(recipe_with(algorithm)).tree
    install(GOOD)
    assert recipe_from_tree(recipe_with(algorithm)).tree == before


def test_settings_that_contain_themselves_are_refused(install):
    install("""
        from typing import Annotated, Literal
        from rlkit.component import Component, Settings, Slot
        from rlkit.hookspecs import hookimpl

        class SumSettings(Settings):
            type: Literal["sum"] = "sum"
            parts: tuple[Annotated[Settings, Slot("reward")], ...]

        @hookimpl
        def register_rewards():
            return [Component(SumSettings, "x:y")]
    """)
    with pytest.raises(
        PluginError, match=r"acme_nudge: settings contain themselves through a slot.*SumSettings > SumSettings"
    ):
        recipe_from_tree(recipe_with({"type": "sft"}))


def test_plugins_load_once_per_process():
    assert load_plugins() is load_plugins()
    assert load_plugins().get("reward", "item_match").settings is ItemMatchSettings
