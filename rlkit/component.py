"""The one shape of everything pluggable: settings that need no torch, and where the code lies."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from rlkit.errors import PluginError

KINDS = (
    "stage",
    "algorithm",
    "domain",
    "model",
    "reward",
    "loss_term",
    "data_format",
    "quantizer",
    "rollout",
    "engine",
    "callback",
)


class Settings(BaseModel):
    """Frozen settings that forbid unknown keys.

    A component's settings add ``type: Literal["its_name"] = "its_name"``. What the component needs and
    gives is declared once, here, so that a recipe is refused before torch is imported:
    ``consumes`` names record classes or artefact kinds, ``produces`` artefact kinds, ``roles`` the
    models and scorers that take part (policy, reference, value, reward), ``domains`` the domains that a
    component is made for (none: all), ``references`` the fields that name earlier stages, and what these must make.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    consumes: ClassVar[tuple[str, ...]] = ()
    produces: ClassVar[tuple[str, ...]] = ()
    roles: ClassVar[tuple[str, ...]] = ()
    domains: ClassVar[tuple[str, ...]] = ()
    references: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @property
    def makes(self) -> tuple[str, ...]:
        """Return what these settings lead to: what they produce themselves, and what the parts inside them produce."""
        parts = (getattr(self, name) for name in type(self).model_fields)
        inner = (kind for part in parts if isinstance(part, Settings) for kind in part.produces)
        return tuple(dict.fromkeys((*self.produces, *inner)))

    def files(self) -> tuple[str, ...]:
        """Return files and folders that a result depends on: where one changes, a finished stage is no longer it."""
        return ()

    def check(self) -> None:
        """Read what the settings name (files, folders) without torch, so that ``rlkit validate`` can report it.

        Raises:
            DataError: every problem found, by file and line.
        """

    def check_online(self) -> None:
        """Connect to the servers that the settings name, for ``rlkit validate --online``.

        Raises:
            DataError: one cannot be reached.
        """


@dataclass(frozen=True, slots=True)
class Slot:
    """Marks a settings field, ``Annotated[Settings, Slot("reward")]``, that any installed component of a kind fills.

    Args:
        kind: one of ``KINDS``.
        default: the ``type`` that a mapping without ``type`` means; none: ``type`` is required.
    """

    kind: str
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Component:
    """A named part that recipes can choose.

    Args:
        settings: its settings class; the default of its ``type`` field is its name.
        target: what runs, as ``"module:attribute"`` imported on first use (built-ins always), or the object itself.
    """

    settings: type[Settings]
    target: str | Callable[..., Any]

    @property
    def name(self) -> str:
        """Return the ``type`` that recipes write."""
        return str(self.settings.model_fields["type"].default)

    def load(self) -> Any:
        """Import and return the target.

        Raises:
            PluginError: the module or the attribute does not exist.
        """
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"{self.name}: cannot import {self.target!r}: {error}; reinstall the package that provides it"
            ) from error
