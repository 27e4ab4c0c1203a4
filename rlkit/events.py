"""The callbacks that a recipe lists, in a pluggy manager that lives for one run."""

from __future__ import annotations

from typing import Any

import pluggy

from rlkit.errors import PluginError
from rlkit.hookspecs import RunEvents
from rlkit.plugins import Registry
from rlkit.recipe import Recipe


def event_manager(recipe: Recipe, registry: Registry) -> pluggy.PluginManager:
    """Return a manager with the recipe's callbacks; call ``manager.hook.on_...``.

    Raises:
        PluginError: a callback implements a hook that does not exist.
    """
    manager = pluggy.PluginManager("rlkit")
    manager.add_hookspecs(RunEvents)
    for settings in recipe.callbacks:
        name: Any = settings.type  # type: ignore[attr-defined]
        manager.register(registry.get("callback", name).load()(settings), name=name)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"callbacks: {error}; see rlkit.hookspecs.RunEvents for the hooks") from error
    return manager
