"""The reward ``python``: a function of the user's, loaded from its file without touching the import path."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from rlkit.config.verifiers import KEYWORDS, PythonSettings
from rlkit.errors import PluginError, TrainingError
from rlkit.policy.text_rewards import Sample, TextReward


def python_function(settings: PythonSettings, domain: Any) -> TextReward:
    """Build the reward.

    Raises:
        PluginError: the file cannot be imported, or its function is gone.
    """
    call = _bound(settings)
    name = f"reward python: {settings.function} in {settings.file}"
    per_batch = settings.per == "batch"

    def score(samples: Sequence[Sample]) -> list[float]:
        if not per_batch:
            return [_number(call(_fields(sample)), f"{name} returned") for sample in samples]
        found = call(_lists(samples))
        if isinstance(found, str | bytes | Mapping) or not hasattr(found, "__len__") or not hasattr(found, "__iter__"):
            raise TrainingError(f"{name} returned {_short(found)}; return a list with a number for each sample")
        if len(found) != len(samples):
            raise TrainingError(
                f"{name} returned {len(found)} scores for {len(samples)} samples; return one for each, in order"
            )
        return [_number(value, f"{name} returned for sample {index}") for index, value in enumerate(found)]

    return TextReward(score, domain)


def _bound(settings: PythonSettings) -> Callable[[Mapping[str, Any]], Any]:
    """Return what calls the function with those of the keywords that it takes."""
    function = getattr(load_file(settings), settings.function, None)
    if not callable(function):
        raise PluginError(
            f"reward python: {settings.file} defines no function {settings.function!r} once it has run; define it"
        )
    taken = inspect.signature(function).parameters.values()
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken)
    names = {parameter.name for parameter in taken}
    chosen = [name for name in KEYWORDS[settings.per] if every or name in names]
    fixed = dict(settings.arguments)
    wanted = [name for name in chosen if name not in fixed]
    return lambda given: function(**{name: given[name] for name in wanted}, **fixed)


def load_file(settings: PythonSettings) -> ModuleType:
    """Run the file as a module of its own.

    Raises:
        PluginError: it raises; the message says what and where.
    """
    path = settings.path.resolve()
    name = f"rlkit_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"reward python: {settings.file} is no Python file; let its name end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises is the user's to mend
        del sys.modules[name]
        at = _last_line(error, str(path))
        raise PluginError(
            f"reward python: {settings.file}{at}: {type(error).__name__}: {error}; mend the file"
        ) from error
    return module


def _last_line(error: BaseException, path: str) -> str:
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return line


def _fields(sample: Sample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in KEYWORDS["sample"]}


def _lists(samples: Sequence[Sample]) -> dict[str, Any]:
    pairs = zip(KEYWORDS["batch"], KEYWORDS["sample"])
    return {many: [getattr(sample, one) for sample in samples] for many, one in pairs}


def _number(value: Any, where: str) -> float:
    """Return a score as a float; a number of NumPy or PyTorch is one too.

    Raises:
        TrainingError: it is none, or not finite.
    """
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise TrainingError(f"{where} {_short(value)}; return a finite number")
    return number


def _short(value: Any) -> str:
    try:
        text = repr(value[:80] if isinstance(value, str | bytes) else value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= 80 else f"{text[:77]}..."
