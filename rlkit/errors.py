"""Everything that rlkit raises on purpose.

    RlkitError                 the user can mend it; printed without a traceback
    |-- RecipeError            a recipe or a command-line override (exit 2)
    |-- PluginError            a plugin that clashes, fails to import or misspells a hook (exit 2)
    |-- DataError              a data file, named by file and line (exit 2)
    |-- ModelError             a checkpoint or tokenizer that does not fit (exit 2)
    |-- RunError               a run directory that does not fit its recipe (exit 2)
    `-- TrainingError          training cannot go on (exit 1)
        `-- DeadPrefixError    a constraint leaves no continuation (exit 1)

One line per problem: ``where: what is wrong, got <value!r>; what to do``.
"""

from __future__ import annotations

from collections.abc import Iterable


class RlkitError(Exception):
    """A problem, or several at once, that the user can mend.

    Args:
        problems: one line each; shown in this order.
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RecipeError(RlkitError):
    """A recipe or an override is wrong."""


class PluginError(RlkitError):
    """A plugin does not load; the message names its package."""


class DataError(RlkitError):
    """A data file is wrong; the message names file and line."""


class ModelError(RlkitError):
    """A checkpoint or a tokenizer does not fit what the recipe asks of it."""


class RunError(RlkitError):
    """A run directory does not fit the recipe."""


class TrainingError(RlkitError):
    """Training cannot go on."""

    exit_code = 1


class DeadPrefixError(TrainingError):
    """A constraint leaves a sequence without any continuation."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'? (known: ...)"`` or ``"; choose one of: ..."`` for a name that is not known."""
    import difflib

    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1)
    if close:
        return f"; did you mean {close[0]!r}? (known: {', '.join(choices)})"
    return f"; choose one of: {', '.join(choices)}" if choices else ""
