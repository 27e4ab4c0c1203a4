"""The recipe's type for what is installed: every ``Slot`` becomes a discriminated union, and any place can be found.

``narrow`` rebuilds a settings class whose fields hold slots; ``follow`` walks it along the location of an error.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, create_model
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rlkit.component import Settings, Slot
from rlkit.errors import PluginError
from rlkit.plugins import Registry

# Tags stand in the locations of errors beside the keys of the recipe. No key can begin like this: YAML forbids NUL.
TAG = "\0"


class Installed:
    """The union over the installed components that may fill a slot.

    Args:
        slot: what the field asks for.
        members: settings classes by name, their own slots narrowed already.
        type_is_optional: whether JSON Schema accepts a mapping without ``type``.
    """

    def __init__(self, slot: Slot, members: dict[str, type[Settings]], type_is_optional: bool) -> None:
        self.slot = slot
        self.members = members
        self.type_is_optional = type_is_optional

    def member(self, value: Any) -> type[Settings] | None:
        """Return the settings class that a value, a mapping or settings, stands for."""
        return self.members.get((_tag(self.named(value)) or "").removeprefix(TAG))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return pydantic's tagged union, which may have one member only or none."""
        if not self.members:
            return core_schema.no_info_plain_validator_function(self._nothing_installed)
        choices = {TAG + name: handler.generate_schema(settings) for name, settings in self.members.items()}
        union = core_schema.tagged_union_schema(choices, discriminator=_tag)
        return core_schema.no_info_before_validator_function(self.named, union)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return a ``oneOf`` that no mapping matches twice, so that editors show no false errors."""
        if not self.members:
            return {"not": {}}
        union = handler(schema)
        if self.type_is_optional and self.slot.default is None:
            return {"anyOf": union["oneOf"]}
        branches = zip(self.members, union["oneOf"], strict=True)
        return {"oneOf": [b if n == self.slot.default else {"allOf": [b], "required": ["type"]} for n, b in branches]}

    def named(self, value: Any) -> Any:
        """Return a mapping with its ``type`` filled in, and settings made for open slots as a mapping."""
        if isinstance(value, Settings):
            return self._as_mapping(value)
        if isinstance(value, dict) and "type" not in value and self.slot.default:
            return {"type": self.slot.default, **value}
        return value

    def _as_mapping(self, value: Settings) -> Any:
        """Return settings that were built from classes with open slots as the mapping that a recipe would hold."""
        if isinstance(value, tuple(self.members.values())):
            return value
        return {"type": getattr(value, "type", ""), **{name: getattr(value, name) for name in value.model_fields_set}}

    def _nothing_installed(self, value: Any) -> Any:
        raise PydanticCustomError("union_tag_invalid", "nothing is installed", {"tag": _tag(value) or TAG})


def _tag(value: Any) -> str | None:
    name = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return None if name is None else f"{TAG}{name}"


def narrow(settings: type[Settings], registry: Registry) -> type[Settings]:
    """Return a subclass whose slots, at any depth, accept what is installed; the class itself where it has none.

    Raises:
        PluginError: a component has a slot that it could fill itself.
    """
    return _Narrowing(registry).settings(settings)


class _Narrowing:
    """One pass over the tree of settings; every class is narrowed once."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.done: dict[type[Settings], type[Settings]] = {}
        self.open: list[type[Settings]] = []

    def settings(self, old: type[Settings]) -> type[Settings]:
        if old in self.open:
            chain = " > ".join(part.__name__ for part in (*self.open, old))
            raise PluginError(
                f"{old.__module__}: settings contain themselves through a slot, got {chain}; break the circle"
            )
        if old not in self.done:
            self.open.append(old)
            fields = {name: new for name, field in old.model_fields.items() if (new := self._field(field))}
            self.done[old] = _subclass(old, fields) if fields else old
            self.open.pop()
        return self.done[old]

    def _field(self, field: FieldInfo) -> tuple[Any, FieldInfo] | None:
        slot = _slot(field.metadata)
        form = self._installed(slot, not field.is_required()) if slot else self._form(field.annotation)
        if form is field.annotation:
            return None
        bare = copy.copy(field)
        bare.metadata = [part for part in field.metadata if part is not slot]
        bare.validate_default = True  # the default was made for open slots, so it goes through the union too
        if isinstance(bare.default, Settings) and isinstance(form, type) and issubclass(form, Settings):
            bare.default = form.model_validate(bare.default.model_dump(exclude_unset=True))
        return form, bare

    def _form(self, form: Any) -> Any:
        if isinstance(form, type) and issubclass(form, Settings):
            return self.settings(form)
        parts = get_args(form)
        if get_origin(form) is Annotated:
            if slot := _slot(parts[1:]):
                return self._installed(slot, False)
            inner = self._form(parts[0])
            return form if inner is parts[0] else Annotated[inner, *parts[1:]]
        new = tuple(self._form(part) for part in parts)
        if all(one is other for one, other in zip(new, parts, strict=True)):
            return form
        if isinstance(form, types.UnionType):
            return Union[new]  # noqa: UP007  (the parts are known at run time only)
        return form.copy_with(new) if hasattr(form, "copy_with") else get_origin(form)[new]

    def _installed(self, slot: Slot, type_is_optional: bool) -> Any:
        components = self.registry.components(slot.kind)
        members = {name: self.settings(component.settings) for name, component in components.items()}
        return Annotated[Settings, Installed(slot, members, type_is_optional)]


def _slot(metadata: Sequence[Any]) -> Slot | None:
    return next((part for part in metadata if isinstance(part, Slot)), None)


def _subclass(old: type[Settings], fields: dict[str, Any]) -> type[Settings]:
    return create_model(old.__name__, __base__=old, __module__=old.__module__, __doc__=old.__doc__, **fields)


class Place(NamedTuple):
    """What lies at a location.

    Args:
        keys: the path in the recipe.
        owner: the settings whose field the last key is, or that lie here where the location ends with a tag.
        form: the type of the value; ``Any`` where nothing is known of it.
        branch: whether the location ends inside a plain union, whose other branches have errors of their own.
    """

    keys: tuple[str | int, ...]
    owner: type[Settings]
    form: Any
    branch: bool

    @property
    def installed(self) -> Installed | None:
        """Return the union that fills a slot here."""
        return self.form if isinstance(self.form, Installed) else None


def follow(model: type[Settings], location: Sequence[str | int]) -> Place:
    """Walk a recipe type along the location of an error, or along plain keys with the tags among them."""
    place = Place((), model, model, False)
    for part in location:
        place = _step(place, part)
    return place._replace(form=bare(place.form))


def _step(place: Place, part: str | int) -> Place:
    form = bare(place.form)
    if part == "[key]":  # the key of a mapping, not its value
        return place._replace(form=Any)
    if form is Any and str(part).startswith(TAG):  # inside a plain union, whose branches are not followed
        return place
    if isinstance(form, Installed):
        settings = form.members[str(part).removeprefix(TAG)]
        return place._replace(owner=settings, form=settings)
    if get_origin(form) in (Union, types.UnionType):
        return place._replace(form=Any, branch=True)
    keys = (*place.keys, part)
    if isinstance(form, type) and issubclass(form, Settings):
        field = form.model_fields.get(str(part))
        return Place(keys, form, field_form(field) if field else Any, False)
    return place._replace(keys=keys, form=_entry(form))


def places(model: type[Settings], tree: Any) -> Iterator[tuple[Place, Any]]:
    """Yield every place of a plain tree with what stands there; what the type does not know has the form ``Any``."""
    return _inside(Place((), model, model, False), tree)


def _inside(place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
    place = place._replace(form=bare(place.form))
    yield place, value
    if place.installed:
        member = place.installed.member(value) or Any
        place = place._replace(form=member)
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, entry in entries:
        yield from _inside(_step(place, key), entry)


def owners(
    form: Any, value: Any, keys: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], type[Settings]]]:
    """Yield the path and the class of all settings in a plain tree, those included that it leaves to their defaults."""
    form = bare(form)
    settings = form.member(value) if isinstance(form, Installed) else form
    if isinstance(settings, type) and issubclass(settings, Settings):
        yield keys, settings
        for name, field in settings.model_fields.items():
            yield from owners(field_form(field), value.get(name, {}) if isinstance(value, dict) else {}, (*keys, name))
        return
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from owners(_entry(form), entry, (*keys, key))


def _entry(form: Any) -> Any:
    """Return the type of the entries of a list or of the values of a mapping."""
    parts = get_args(form) or (Any,)
    return parts[-1] if get_origin(form) in (dict, Mapping) else parts[0]


def field_form(field: FieldInfo) -> Any:
    """Return the type of a field with the union that fills it, where it is a slot."""
    return next((part for part in field.metadata if isinstance(part, Installed)), field.annotation)


def bare(form: Any) -> Any:
    """Return a form without ``None`` and metadata; a filled slot is its union."""
    if get_origin(form) is Annotated:
        inner, *metadata = get_args(form)
        return next((part for part in metadata if isinstance(part, Installed)), None) or bare(inner)
    if get_origin(form) in (Union, types.UnionType):
        present = [part for part in get_args(form) if part is not type(None)]
        return bare(present[0]) if len(present) == 1 else form
    return form
