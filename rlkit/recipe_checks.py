"""What pydantic cannot see: whether the parts of a recipe fit each other.

Every check works on the plain tree and on what is declared by the classes that it names, so that mistakes elsewhere in
the recipe do not hide these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from rlkit import records
from rlkit.component import Settings
from rlkit.config.train import TrainSettings
from rlkit.errors import did_you_mean
from rlkit.recipe_batches import batches
from rlkit.recipe_errors import Problem
from rlkit.recipe_extra import extra_problem
from rlkit.recipe_schema import follow, places
from rlkit.recipe_yaml import Keys

Classes = dict[Keys, type[Settings]]


def cross_checks(model: type[Settings], tree: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what does not fit together in a recipe.

    Args:
        model: the recipe's type, narrowed to what is installed.
        tree: the recipe as plain data, valid or not.
    """
    classes = {place.keys: found for place, value in places(model, tree) if (found := _component(place, value))}
    everyone = list(_mapping(tree.get("stages")))
    stages = [name for name in everyone if ("stages", name) in classes]
    yield from _domains(classes)
    yield from _parts_for_domains(model, tree, classes)
    yield from _constrained(tree, classes, stages)
    yield from _consumed(classes, everyone)
    yield from _given(model, tree, classes, everyone)
    yield from _references(model, tree, classes)
    yield from _values(tree, classes, stages)
    yield from _selected(tree, classes, stages)
    yield from _frozen(model, tree, stages)
    yield from _extra(model, tree, classes)
    yield from _arithmetic(model, tree, stages)


def _component(place: Any, value: Any) -> type[Settings] | None:
    return place.installed.member(value) if place.installed else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _name(settings: type[Settings]) -> str:
    return str(settings.model_fields["type"].default)


def _domains(classes: Classes) -> Iterator[Problem]:
    domain = classes.get(("domain",))
    for keys, settings in classes.items():
        if domain and settings.domains and _name(domain) not in settings.domains:
            wrong = f"{_name(settings)!r} is made for the domain {' or '.join(settings.domains)}, got {_name(domain)!r}"
            yield Problem(keys, f"{wrong}; choose another, or change the domain")


def _parts_for_domains(model: type[Settings], tree: Mapping[str, Any], classes: Classes) -> Iterator[Problem]:
    """Yield settings inside of a component that are for another domain and differ from their defaults."""
    domain = classes.get(("domain",))
    for place, value in places(model, tree):
        form = place.form
        if domain is None or not (isinstance(form, type) and issubclass(form, Settings) and form.domains):
            continue
        if "type" not in form.model_fields and _name(domain) not in form.domains and isinstance(value, dict):
            defaults = form().model_dump(mode="json")
            for key in (key for key, entry in value.items() if key in defaults and entry != defaults[key]):
                wrong = f"is for the domain {' or '.join(form.domains)} and does nothing in {_name(domain)!r}"
                yield Problem((*place.keys, key), f"{wrong}; leave it out", at_key=True)


def _constrained(tree: Mapping[str, Any], classes: Classes, stages: list[str]) -> Iterator[Problem]:
    """Yield rollouts, chosen or by default, that search a tree of valid completions where the domain has none."""
    domain = classes.get(("domain",))
    if domain is None or getattr(domain, "constrained", True):
        return
    for stage in stages:
        keys: Keys = ("stages", stage, "algorithm", "rollout")
        rollout = classes.get(keys) or _default_rollout(tree["stages"][stage], classes.get(keys[:-1]))
        if rollout and getattr(rollout, "needs_constraint", False):
            wrong = f"{_name(rollout)!r} searches a tree of valid completions, which the domain {_name(domain)!r} lacks"
            yield Problem(keys, f"{wrong}; write {{type: sample}}")


def _default_rollout(stage: Any, algorithm: type[Settings] | None) -> type[Settings] | None:
    written = _mapping(stage).get("algorithm")
    field = algorithm.model_fields.get("rollout") if algorithm else None
    if field is None or not isinstance(written, dict) or "rollout" in written:
        return None
    default = field.get_default(call_default_factory=True)
    return type(default) if isinstance(default, Settings) else None


def _consumed(classes: Classes, stages: list[str]) -> Iterator[Problem]:
    """Yield stages and algorithms whose records the domain does not make, or whose artefacts no earlier stage makes."""
    domain = classes.get(("domain",))
    made: set[str] = set()
    all_known = True  # what a stage of unknown type would make is not known
    for stage in stages:
        own = [(keys, found) for keys, found in classes.items() if keys[:2] == ("stages", stage) and len(keys) <= 3]
        all_known = all_known and ("stages", stage) in classes
        for keys, settings in own:
            for wanted in settings.consumes:
                if hasattr(records, wanted):
                    if domain and wanted not in domain.produces:
                        yield Problem(keys, _no_records(settings, wanted, domain))
                elif wanted not in made and all_known:
                    yield Problem(keys, f"{_name(settings)!r} needs a {wanted}, which no earlier stage makes; add one")
        made.update(artefact for _, settings in own for artefact in settings.produces)


def _no_records(settings: type[Settings], wanted: str, domain: type[Settings]) -> str:
    made = ", ".join(domain.produces) or "nothing"
    wrong = f"{_name(settings)!r} learns from {wanted} records, but the domain {_name(domain)!r} makes {made}"
    return f"{wrong}; choose another algorithm or domain"


def _given(model: type[Settings], tree: Mapping[str, Any], classes: Classes, stages: list[str]) -> Iterator[Problem]:
    """Yield algorithms whose records the domain could make, but its settings name no data for."""
    domain: Any = _valid(model, tree.get("domain"), "domain")
    if not hasattr(domain, "records"):
        return
    given: tuple[str, ...] = domain.records()
    for stage in stages:
        keys: Keys = ("stages", stage, "algorithm")
        for wanted in classes[keys].consumes if keys in classes else ():
            if wanted in domain.produces and wanted not in given:
                wrong = f"{_name(classes[keys])!r} learns from {wanted} records, but the domain is given no such data"
                yield Problem(keys, f"{wrong} (it has {', '.join(given)}); name a file of them in the domain")


def _references(model: type[Settings], tree: Mapping[str, Any], classes: Classes) -> Iterator[Problem]:
    """Yield fields that name no earlier stage, or one that does not make what the field needs."""
    everyone = list(_mapping(tree.get("stages")))
    for place, value in places(model, tree):
        if len(place.keys) < 3 or place.keys[0] != "stages" or not isinstance(value, str):
            continue
        field = place.keys[-1] if isinstance(place.keys[-1], str) else place.keys[-2]  # an entry of a list
        kinds = getattr(place.owner, "references", {}).get(field)
        if kinds:
            earlier = everyone[: everyone.index(str(place.keys[1]))]
            fitting = [name for name in earlier if any(_makes(classes, name, kind) for kind in kinds)]
            if value not in fitting:
                yield Problem(place.keys, _no_such_model(value, earlier, everyone, fitting, kinds))


def _values(tree: Mapping[str, Any], classes: Classes, stages: list[str]) -> Iterator[Problem]:
    """Yield value heads on the policy's own states that start from a stage without one."""
    for stage in stages:
        value = _mapping(_mapping(_mapping(tree["stages"][stage]).get("algorithm")).get("value"))
        name = value.get("start_from")
        source = classes.get(("stages", name, "algorithm")) if isinstance(name, str) else None
        if source and value.get("backbone", "shared") == "shared" and "value" not in source.roles:
            keys: Keys = ("stages", stage, "algorithm", "value", "start_from")
            wrong = f"must be a stage with a value head (ppo), got {name!r}"
            yield Problem(keys, f"{wrong}; write backbone: separate to start from the weights of another model")


def _makes(classes: Classes, stage: str, kind: str) -> bool:
    """Return whether a stage makes an artefact of a kind; a stage or an algorithm of unknown type has its own error."""
    own, algorithm = classes.get(("stages", stage)), classes.get(("stages", stage, "algorithm"))
    if own is None or ("algorithm" in own.model_fields and algorithm is None):
        return True
    return kind in own.produces or (algorithm is not None and kind in algorithm.produces)


def _no_such_model(
    name: str, earlier: list[str], everyone: list[str], fitting: list[str], kinds: tuple[str, ...]
) -> str:
    if name not in everyone:
        return f"no stage is called {name!r}{did_you_mean(name, fitting)}"
    what = "a model" if kinds == ("policy",) else f"a {' or a '.join(kinds)}"
    choice = f"choose one of: {', '.join(fitting)}" if fitting else f"no stage before this one trains {what}"
    if name not in earlier:
        return f"must be an earlier stage, got {name!r}; {choice}"
    return f"must be a stage that trains {what}, got {name!r}; {choice}"


def _selected(tree: Mapping[str, Any], classes: Classes, stages: list[str]) -> Iterator[Problem]:
    """Yield metrics for choosing the best checkpoint that the domain does not measure on the valid split."""
    known = getattr(classes.get(("domain",)), "valid_metrics", ())
    for stage in stages if known else ():
        field = getattr(classes.get(("stages", stage, "algorithm")), "model_fields", {}).get("validate_on")
        algorithm = _mapping(_mapping(tree["stages"][stage]).get("algorithm"))
        wanted = _mapping(algorithm.get("validate_on")).get(
            "select_by", getattr(field and field.default, "select_by", None)
        )
        choices = (*known, "reward", "last")
        if field and isinstance(wanted, str) and wanted not in choices:
            keys = ("stages", stage, "algorithm", "validate_on", "select_by")
            yield Problem(keys, f"the domain measures no {wanted!r} on its valid split{did_you_mean(wanted, choices)}")


def _frozen(model: type[Settings], tree: Mapping[str, Any], stages: list[str]) -> Iterator[Problem]:
    """Yield weight decay where all but some rows of a matrix is frozen: it would shrink the frozen rows as well."""
    if not getattr(_valid(model, tree.get("model", {}), "model"), "freeze_backbone", False):
        return
    for stage in stages:
        train = getattr(_valid(model, tree["stages"][stage], "stages", stage), "train", None)
        if isinstance(train, TrainSettings) and train.weight_decay > 0:
            wrong = f"must be 0 with model.freeze_backbone, got {train.weight_decay:g}"
            advice = "it would change the rows that stay frozen; leave it out, or train the whole model"
            yield Problem(("stages", stage, "train", "weight_decay"), f"{wrong}; {advice}")


def _extra(model: type[Settings], tree: Mapping[str, Any], classes: Classes) -> Iterator[Problem]:
    for place, value in places(model, tree):
        if not (place.keys[-1:] == ("extra",) and issubclass(place.owner, TrainSettings)):
            continue
        algorithm = classes.get((*place.keys[:2], "algorithm"))
        sources = getattr(algorithm, "training_arguments", ())
        for name in _mapping(value) if algorithm else ():
            problem = extra_problem(name, sources, getattr(algorithm, "said_here", None))
            if problem:
                yield Problem((*place.keys, name), problem, at_key=True)


def _arithmetic(model: type[Settings], tree: Mapping[str, Any], stages: list[str]) -> Iterator[Problem]:
    """Yield batch sizes that do not divide, of stages that are valid by themselves."""
    engine = _valid(model, tree.get("engine", {}), "engine")
    for stage in stages if engine else ():
        found = batches(_valid(model, tree["stages"][stage], "stages", stage), engine)
        for key, message in found.problems() if found else ():
            yield Problem(("stages", stage, *key.split(".")), message)


def _valid(model: type[Settings], value: Any, *keys: str) -> Settings | None:
    installed = follow(model, keys).installed
    settings = installed.member(value) if installed else None
    try:
        return settings.model_validate(installed.named(value)) if settings and installed else None
    except ValidationError:
        return None
