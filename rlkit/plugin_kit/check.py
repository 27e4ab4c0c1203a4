"""The conformance suite: what rlkit expects of every plugin, tried on one package."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlkit.component import KINDS, Component
from rlkit.errors import PluginError, RlkitError
from rlkit.plugin_kit.packages import Package, find_package, findable
from rlkit.plugin_kit.settings_checks import check_declarations, check_schema, check_settings, check_unknown_key
from rlkit.plugin_kit.smoke import CannotTry, helpers, recipe_for, run_quietly, trainer_of
from rlkit.plugins import load_plugins

HEAVY = ("torch", "transformers", "trl", "datasets", "pandas", "sklearn")
Try = Callable[[], None]


class Check(NamedTuple):
    """One line of the table.

    Args:
        part: the package, or ``kind name`` of a component.
        what: what was tried.
        outcome: pass, fail or skip.
        reason: why, where it did not pass; one line per problem.
    """

    part: str
    what: str
    outcome: Literal["pass", "fail", "skip"]
    reason: str = ""


def check_plugin(wanted: str | Path) -> list[Check]:
    """Try a package, installed or not; what takes long runs in seconds on a CPU.

    Args:
        wanted: a folder with a ``pyproject.toml``, or the name of an installed distribution or of a module.

    Raises:
        PluginError: there is no such package, or it names no plugin.
    """
    package = find_package(wanted)
    with tempfile.TemporaryDirectory() as folder:
        others = helpers(Path(folder) / "helpers")
        found = [_attempt(package.name, "no clash of names", lambda: _clashes(package))]
        with findable(package, *others):
            found += [_attempt(package.name, *check) for check in _of_package(package)]
            if all(check.outcome == "pass" for check in found):
                for kind, component in _components(package):
                    part = f"{kind} {component.name}"
                    place = Path(folder) / "runs" / f"{kind}-{component.name}"
                    found += [_attempt(part, *check) for check in _of_component(kind, component, place)]
    return found


def failures(checks: Sequence[Check]) -> list[str]:
    """Return what failed, a line per problem; empty where the package conforms."""
    return [
        f"{check.part}: {check.what}: {line}"
        for check in checks
        if check.outcome == "fail"
        for line in check.reason.splitlines()
    ]


def _attempt(part: str, what: str, run: Try) -> Check:
    try:
        run()
    except CannotTry as error:
        return Check(part, what, "skip", str(error))
    except RlkitError as error:
        return Check(part, what, "fail", "\n".join(error.problems))
    except Exception as error:  # a third party's code may raise anything; the place in it is shown
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        return Check(part, what, "fail", reason)
    return Check(part, what, "pass")


# ---- the package


def _of_package(package: Package) -> Iterator[tuple[str, Try]]:
    yield "loads through the hooks", lambda: _loads(package)
    yield "imports nothing heavy", lambda: _light(package)


def _clashes(package: Package) -> None:
    """Look for names that another installed package provides as well; what else is wrong with others is theirs."""
    with findable(package, only=False):
        try:
            load_plugins()
        except PluginError as error:
            mine = [line for line in error.problems if "is provided by" in line and package.name in line]
            if mine:
                raise PluginError(*mine) from error


def _loads(package: Package) -> None:
    load_plugins()
    if not _components(package):
        raise PluginError("it registers no component; return some from a register_... function")


def _light(package: Package) -> None:
    """Import the modules in a process of their own: every command of rlkit does, so it must take no time."""
    modules = [target.partition(":")[0] for target in package.points.values()]
    code = f"import sys, {', '.join(modules)}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*package.paths, *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise PluginError(f"cannot be imported: {done.stderr.strip().splitlines()[-1]}")
    if heavy := done.stdout.split():
        raise PluginError(f"importing it imports {', '.join(heavy)}; import these in the functions that use them")


def _components(package: Package) -> list[tuple[str, Component]]:
    registry = load_plugins()
    return [
        (kind, component)
        for kind in KINDS
        for name, component in registry.components(kind).items()
        if registry.origin(kind, name).package == package.name
    ]


# ---- a component


def _of_component(kind: str, component: Component, folder: Path) -> Iterator[tuple[str, Try]]:
    settings = component.settings
    yield "settings", lambda: check_settings(settings)
    yield "JSON Schema", lambda: check_schema(settings)
    yield "unknown key", lambda: check_unknown_key(kind, settings)
    if kind in ("algorithm", "domain", "reward"):
        yield "declarations", lambda: check_declarations(kind, settings)
    yield "code loads", lambda: _callable(component)
    yield "runs on a CPU", lambda: _runs(kind, component, folder / "run")
    if kind == "reward":
        yield "order of a group", lambda: _reward_order(component, folder / "order")
    if kind == "algorithm":
        yield "order of a group", lambda: _loss_order(component, folder / "order")
    if kind == "loss_term":
        yield "order of pairs", lambda: _term_order(component)


def _callable(component: Component) -> None:
    target = component.load()
    if not callable(target):
        raise PluginError(f"its target cannot be called, got {target!r}; name a function or a class")


def _runs(kind: str, component: Component, folder: Path) -> None:
    tree, _ = recipe_for(kind, component.settings)
    for wanted in component.settings.consumes if kind == "algorithm" else ():
        if wanted[0].islower():
            raise CannotTry(f"it needs a {wanted}, which a stage before it would have to make")
    run_quietly(tree, folder)


def _reward_order(component: Component, folder: Path) -> None:
    if getattr(component.settings, "order_matters", False):
        raise CannotTry("its settings say that order matters")
    from rlkit.plugin_kit.invariance import TOLERANCE, reward_difference

    trainer = _trainer("reward", component, folder)
    reward = component.load()(trainer.settings.rewards[0], trainer.collector.domain)
    difference = reward_difference(trainer, reward)
    if not difference <= TOLERANCE:
        raise PluginError(
            f"scores depend on the order of a group's completions, by up to {difference:.3g}; look at each completion "
            "by itself, or declare order_matters: ClassVar[bool] = True"
        )


def _loss_order(component: Component, folder: Path) -> None:
    from rlkit.plugin_kit.invariance import TOLERANCE, loss_difference
    from rlkit.policy.trainer import PolicyTrainer

    trainer = _trainer("algorithm", component, folder)
    if not isinstance(trainer, PolicyTrainer):
        raise CannotTry("it learns from records, not from groups of completions")
    difference = loss_difference(trainer)
    if not difference <= TOLERANCE:
        raise PluginError(
            f"the loss depends on the order of a group's completions, by {difference:.3g}; reduce over the group"
        )


def _trainer(kind: str, component: Component, folder: Path) -> Any:
    tree, _ = recipe_for(kind, component.settings)
    return trainer_of(tree, folder)


def _term_order(component: Component) -> None:
    import torch

    settings = component.settings()
    chosen, rejected, margin = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).unbind()
    term = component.load()(settings)
    chosen.requires_grad_()
    here, there = term(chosen, rejected, margin), term(chosen.flip(0), rejected.flip(0), margin.flip(0))
    if here.shape != () or not here.isfinite() or not here.requires_grad:
        raise PluginError(f"must return a finite scalar that carries gradients, got {here!r}")
    if not torch.allclose(here, there, atol=1e-5):
        raise PluginError(f"depends on the order of the pairs, got {here.item():.6g} and {there.item():.6g}")
