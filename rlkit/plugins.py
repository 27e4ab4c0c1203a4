"""Which components are installed: discovery through entry points, and the checks that make a faulty plugin loud."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_origin

import pluggy

from rlkit.component import KINDS, Component, Settings
from rlkit.errors import PluginError, did_you_mean
from rlkit.hookspecs import Registration, RunEvents

GROUP = "rlkit"
_HOOKS = {name: name.removeprefix("register_").removesuffix("s") for name in vars(Registration) if name[0] != "_"}
assert set(_HOOKS.values()) == set(KINDS)


class Origin(NamedTuple):
    """The package that a component comes from."""

    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}".rstrip()


class _Plugin(NamedTuple):
    """Something to ask for components: how to get hold of it, and whom to blame."""

    name: str
    origin: Origin
    load: Callable[[], Any]

    @property
    def where(self) -> str:
        return f"plugin {self.name!r} of {self.origin}"


class Registry:
    """The installed components, by kind and name."""

    def __init__(self, entries: Mapping[tuple[str, str], tuple[Component, Origin]]) -> None:
        self._entries = dict(entries)

    def components(self, kind: str) -> dict[str, Component]:
        """Return the components of a kind by name, in alphabetical order."""
        return {name: self._entries[found, name][0] for found, name in sorted(self._entries) if found == kind}

    def get(self, kind: str, name: str) -> Component:
        """Return one component.

        Raises:
            PluginError: none of this name is installed; the message lists what is.
        """
        return self._entry(kind, name)[0]

    def origin(self, kind: str, name: str) -> Origin:
        """Return the package and the version that provide a component."""
        return self._entry(kind, name)[1]

    def packages(self) -> dict[str, str]:
        """Return the versions of the packages that provide components, rlkit's own left out."""
        return {origin.package: origin.version for _, origin in self._entries.values() if origin.package != "rlkit"}

    def _entry(self, kind: str, name: str) -> tuple[Component, Origin]:
        if (kind, name) not in self._entries:
            raise PluginError(f"no {kind} is called {name!r}{did_you_mean(name, self.components(kind))}")
        return self._entries[kind, name]


@cache
def load_plugins(group: str = GROUP) -> Registry:
    """Load the built-in components and those of the installed plugins, once per process.

    The variable ``RLKIT_PLUGINS`` narrows the plugins to the entry points or packages that it lists, separated by
    commas; empty, it leaves only the built-in ones.

    Args:
        group: the entry-point group that plugins use.

    Raises:
        PluginError: whatever is wrong with any plugin, one line each, with its package and version.
    """
    manager = pluggy.PluginManager("rlkit")
    manager.add_hookspecs(Registration)
    entries: dict[tuple[str, str], tuple[Component, Origin]] = {}
    problems: list[str] = []
    for plugin in [_builtin(), *_installed(group)]:
        try:
            for kind, component in _components(manager, plugin):
                _add(entries, kind, component, plugin.origin)
        except PluginError as error:
            problems += error.problems
    if problems:
        raise PluginError(*problems)
    return Registry(entries)


def _builtin() -> _Plugin:
    import rlkit

    def load() -> Any:
        from rlkit import builtin

        return builtin

    return _Plugin("builtin", Origin("rlkit", rlkit.__version__), load)


def _installed(group: str) -> list[_Plugin]:
    from importlib.metadata import entry_points

    found = []
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        origin = Origin(point.dist.name, point.dist.version) if point.dist else Origin("unknown package", "")
        found.append(_Plugin(point.name, origin, point.load))
    wanted = os.environ.get("RLKIT_PLUGINS")
    if wanted is None:
        return found
    return _narrow(found, [name.strip() for name in wanted.split(",") if name.strip()])


def _narrow(found: list[_Plugin], names: list[str]) -> list[_Plugin]:
    known = {plugin.name for plugin in found} | {plugin.origin.package for plugin in found}
    unknown = [name for name in names if name not in known]
    if unknown:
        lines = [f"RLKIT_PLUGINS: no plugin is called {name!r}{did_you_mean(name, known)}" for name in unknown]
        raise PluginError(*lines)
    return [plugin for plugin in found if plugin.name in names or plugin.origin.package in names]


def _components(manager: pluggy.PluginManager, plugin: _Plugin) -> Iterator[tuple[str, Component]]:
    with _blamed(plugin, "cannot be imported"):
        module = plugin.load()
    with _blamed(plugin, "is not a plugin"):
        manager.register(module, name=f"{plugin.name} of {plugin.origin}")
    callers = manager.get_hookcallers(module) or []
    problems = [f"{plugin.where}: {_unknown_hook(caller.name)}" for caller in callers if not caller.has_spec()]
    if not callers:
        problems.append(f"{plugin.where}: registers nothing; mark its functions with rlkit.hookspecs.hookimpl")
    if problems:
        raise PluginError(*problems)
    for caller in callers:
        function = next(hook.function for hook in caller.get_hookimpls() if hook.plugin is module)
        yield from ((_HOOKS[caller.name], component) for component in _ask(plugin, caller.name, function))


def _unknown_hook(name: str) -> str:
    if hasattr(RunEvents, name):
        return f"{name} is an event of a run, not of registration; put it on a callback, returned by register_callbacks"
    return f"no hook is called {name!r}{did_you_mean(name, _HOOKS)}"


def _ask(plugin: _Plugin, hook: str, function: Callable[[], Any]) -> list[Component]:
    with _blamed(plugin, f"fails in {hook}"):
        returned = function()
        components = list(returned) if isinstance(returned, Iterable) else [returned]
    problems = [f"{plugin.where}: {hook}: {problem}" for part in components if (problem := _not_a_component(part))]
    if problems:
        raise PluginError(*problems)
    return components


def _not_a_component(part: Any) -> str:
    if not isinstance(part, Component):
        return f"must return rlkit.component.Component objects, got {part!r}"
    settings = part.settings
    if not (isinstance(settings, type) and issubclass(settings, Settings)):
        return f"settings must be a subclass of rlkit.component.Settings, got {settings!r}"
    field = settings.model_fields.get("type")
    names = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
    if len(names) != 1 or not isinstance(names[0], str) or field is None or field.default != names[0]:
        return f"{settings.__name__} has no name; give it a field like type: Literal['my_name'] = 'my_name'"
    return ""


def _add(entries: dict[tuple[str, str], tuple[Component, Origin]], kind: str, new: Component, origin: Origin) -> None:
    _, other = entries.get((kind, new.name), (None, None))
    if other:
        raise PluginError(
            f"the {kind} {new.name!r} is provided by {other} and by {origin}; "
            "uninstall one of them or choose plugins with RLKIT_PLUGINS"
        )
    entries[kind, new.name] = new, origin


@contextmanager
def _blamed(plugin: _Plugin, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a third party's code may raise anything; nothing is hidden, the cause stays attached
        advice = "mend or uninstall it, or leave it out with RLKIT_PLUGINS"
        raise PluginError(f"{plugin.where} {what}: {type(error).__name__}: {error}; {advice}") from error
