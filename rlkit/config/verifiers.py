"""Settings of rewards that check a completion: mathematics, a user's function, a remote scorer."""

from __future__ import annotations

import ast
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rlkit.config.rewards import RewardSettings
from rlkit.errors import DataError, did_you_mean


class MathSettings(RewardSettings):
    r"""1 where the final answer equals the prompt's answer in value, else 0.

    The final answer is what stands in ``\boxed{...}``, after ``####``, after "the answer is", else the last number. A
    completion that was cut off, or that gives two different answers, gets 0.
    """

    type: Literal["math"] = "math"
    domains: ClassVar[tuple[str, ...]] = ("chat",)
    verifies: ClassVar[bool] = True

    strict: bool = True
    """Every answer that is boxed or marked must be right; false: the last one counts."""
    marked_only: bool = False
    """An answer must be boxed, marked by ``####``, announced or in <answer> tags; the last number does not count."""
    worked_out: bool = True
    """What is left to do is wrong: integrals and the like, and for a number also sums, powers, roots (3 + 4 for 7)."""
    tolerance: float = Field(1e-6, ge=0, lt=0.1)
    """How far an answer with a decimal point may be off: relative to answers below 1, absolute above."""
    formula_seconds: float = Field(1.0, gt=0, le=60)
    """Processor time that math-verify may take for two formulas, in its own process; then the answer is wrong."""
    max_characters: int = Field(150_000, ge=1)
    """Longer completions are wrong."""


# ---- a user's function

KEYWORDS = {
    "sample": ("prompt", "completion", "answer", "truncated", "context"),
    "batch": ("prompts", "completions", "answers", "truncated", "contexts"),
}
"""What a function can be given: a sample's fields, or a list of each."""


class PythonSettings(RewardSettings):
    """What a function of yours returns, from a file of yours: ``def reward(completion, answer): return 0.5``.

    It is called with those of the keywords prompt, completion, answer, truncated and context that it takes, one sample
    at a time in a process that can be killed; or, per batch, with lists: prompts, completions, answers, truncated and
    contexts, all samples at once in the run's own process. It returns a number, or a list of them.
    """

    type: Literal["python"] = "python"
    domains: ClassVar[tuple[str, ...]] = ("chat",)

    file: str = Field(min_length=1)
    """The Python file; ``~`` is the home folder. It may import what is installed, but no file beside it."""
    function: str = "reward"
    """The name of the function; it is defined at the top level of the file."""
    per: Literal["sample", "batch"] = "sample"
    """Whether it is called with one sample or with all of them."""
    arguments: Mapping[str, str | int | float | bool] = {}
    """Further arguments, by name, the same ones at every call."""

    @property
    def supervised(self) -> bool:  # type: ignore[override]
        """Whether samples are scored one by one in processes that can be killed."""
        return self.per == "sample"

    @property
    def path(self) -> Path:
        """Return the file."""
        return Path(self.file).expanduser()

    @model_validator(mode="after")
    def _can_be_called(self) -> PythonSettings:
        problems = list(_problems(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _problems(settings: PythonSettings) -> Iterator[str]:
    """Yield what is wrong with a file and its function, without running it."""
    try:
        tree = ast.parse(settings.path.read_text(encoding="utf-8"))
    except OSError as error:
        where = "" if settings.path.is_absolute() else f" (looked for in {Path.cwd()}, where rlkit runs)"
        problem = (error.strerror or str(error)).lower()
        yield f"file {settings.file!r} cannot be read: {problem}{where}; name a Python file"
        return
    except SyntaxError as error:
        yield f"{settings.file}:{error.lineno or 1}: this is not Python: {error.msg}; mend it"
        return
    except ValueError as error:
        yield f"file {settings.file!r} is not Python: {error}; mend it"
        return
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    found = functions.get(settings.function)
    if found is None:
        yield f"{settings.file} defines no function {settings.function!r}{did_you_mean(settings.function, functions)}"
    elif isinstance(found, ast.AsyncFunctionDef):
        yield f"{settings.file}:{found.lineno}: {settings.function} is async; write a plain function"
    else:
        place = f"{settings.file}:{found.lineno}: {settings.function}"
        yield from (f"{place} {problem}" for problem in _misfits(found, settings))


def _misfits(function: ast.FunctionDef, settings: PythonSettings) -> Iterator[str]:
    """Yield why a function cannot be called with the keywords that there are."""
    taken = function.args
    named = [argument.arg for argument in (*taken.args, *taken.kwonlyargs)]
    optional = {argument.arg for argument in taken.args[len(taken.args) - len(taken.defaults) :]}
    optional |= {argument.arg for argument, value in zip(taken.kwonlyargs, taken.kw_defaults) if value is not None}
    known = (*KEYWORDS[settings.per], *settings.arguments)
    if taken.posonlyargs:
        yield "takes arguments by position only; leave out the '/'"
    for name in named:
        if name not in known and name not in optional:
            yield f"wants {name!r}, which is not given{did_you_mean(name, known)}"
    if taken.kwarg is None:
        unused = [name for name in settings.arguments if name not in named]
        yield from (f"does not take the argument {name!r}{did_you_mean(name, named)}" for name in unused)
        said = KEYWORDS[settings.per][1]
        if said not in named and not taken.posonlyargs:
            yield f"does not take {said!r}, so it would not see what it scores; add it"


# ---- a remote scorer


class HttpSettings(RewardSettings):
    """Scores from a server: samples go out in batches, numbers come back.

    It is sent, by POST, ``{"samples": [{"prompt", "completion", "answer", "truncated", "context"}]}`` and answers
    ``{"scores": [...]}``, a number or null for each sample, and if it likes ``"parts": {name: [...]}``.
    A batch that fails after all retries has no scores, so its samples leave their groups; a request that the server
    refuses (4xx) ends the run.
    """

    type: Literal["http"] = "http"
    domains: ClassVar[tuple[str, ...]] = ("chat",)

    url: str
    """Where to send samples; http or https, without a password in it."""
    batch_size: int = Field(64, ge=1)
    """Samples of one request at most."""
    parallel: int = Field(4, ge=1, le=64)
    """Requests at the same time."""
    request_seconds: float = Field(30.0, gt=0)
    """How long one request may take."""
    retries: int = Field(6, ge=0, le=20)
    """How often a request is sent again after a time-out, a lost connection, or status 408, 425, 429 or 5xx.

    With the waits that there are by default a server may be gone for half a minute; 8 retries are two minutes. After a
    batch that had them all in vain the others are sent once, until one is answered.
    """
    backoff_seconds: float = Field(0.5, ge=0)
    """The wait before the first retry; it doubles each time, up to a minute."""
    auth_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the secret; it is sent as ``Authorization: Bearer`` and stored nowhere."""
    auth_header: str = Field("Authorization", pattern=r"^[A-Za-z0-9-]+$")
    """The header that the secret goes to."""
    auth_scheme: str = "Bearer"
    """What stands before the secret; empty: nothing."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an address of a server, got {url!r}; write http://host:port/path")
        if parts.username or parts.password:
            raise ValueError("the address holds a password, which recipes store; name a variable in auth_env instead")
        if parts.port == 0:
            raise ValueError(f"port 0 is no port, got {url!r}; write http://host:port/path")
        return url

    def check(self) -> None:
        """Look for the secret.

        Raises:
            DataError: the environment does not hold it.
        """
        if self.auth_env is not None and not os.environ.get(self.auth_env):
            raise DataError(
                f"reward http: auth_env: the environment variable {self.auth_env!r} is not set; export it first"
            )

    def check_online(self) -> None:
        """Connect to the server, without asking it anything.

        Raises:
            DataError: nobody answers there.
        """
        parts = urlsplit(self.url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        try:
            socket.create_connection((str(parts.hostname), port), timeout=min(self.request_seconds, 10.0)).close()
        except OSError as error:
            place = f"{parts.hostname}:{port}"
            raise DataError(
                f"reward http: url: nobody answers at {place}: {error}; start the server, or mend the url"
            ) from error
