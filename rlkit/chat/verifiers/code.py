"""The reward ``code``: the Python in a completion, run against the tests of its row.

The row's tests stand in its context, or as JSON in its answer; the forms of HumanEval and of MBPP are read as well.
A sample without a verdict (its tests, or what passes between tests and code, have no plain form) scores NaN, which
counts as "mask this sample".
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.chat.verifiers.sandbox import isolation
from rlkit.chat.verifiers.sandbox.job import Case, Checks, Result
from rlkit.chat.verifiers.sandbox.pool import Sandbox
from rlkit.config.verifiers_code import CodeSettings
from rlkit.errors import DataError
from rlkit.policy.text_rewards import Outcome, Sample, TextReward
from rlkit.records import Prompt

logger = logging.getLogger(__name__)

FENCE = re.compile(r"^[ \t]*+```[ \t]*+(\w*+)[^\n]*+\n(.*?)(?:^[ \t]*+```|\Z)", re.MULTILINE | re.DOTALL)
"""Possessive, so that a long line without an end is read once and not from each of its characters."""
CARRIERS = ("tests", "test_list", "test", "cases")
"""The keys of a row under which tests stand."""
SETUPS = ("setup", "test_setup_code", "test_imports")
FUTURE = re.compile(r"^from __future__ import [\w, ]+$", re.MULTILINE)
"""Must come before anything else."""
PYTHON = ("", "python", "python3", "py")
TOP_LEVEL = re.compile(r"(?:\s|def\b|class\b|async\b|import\b|from\b|@|#|$)")
"""How a line begins that goes on with a program of functions; anything else is the model talking."""


class CodeReward(TextReward):
    """The reward, and how each sample did.

    Args:
        settings: the reward's.
        domain: whose tokenizer decodes rollouts; None where there are none.

    Raises:
        TrainingError: the host does not reach the isolation that the settings ask for.
    """

    def __init__(self, settings: CodeSettings, domain: Any) -> None:
        super().__init__(self._scores, domain)
        self.settings = settings
        if settings.isolation != "auto":
            isolation.require(isolation.detect(), settings.isolation)
        self.sandbox = Sandbox(settings.workers, settings.run_seconds, settings.memory_mb)
        logger.info("code runs in a sandbox with isolation %r (%s)", self.sandbox.level, ", ".join(self.sandbox.layers))

    def run(self, samples: Sequence[Sample]) -> list[Result]:
        """Return how the code of each sample did."""
        found = [self._job(sample) for sample in samples]
        jobs = [job for job in found if not isinstance(job, Result)]
        ran = iter(self.sandbox.run(jobs, until_failure=self.settings.score == "all"))
        return [job if isinstance(job, Result) else next(ran) for job in found]

    def _job(self, sample: Sample) -> tuple[str, Checks] | Result:
        """Return a sample's program and its tests, or what is known without running it."""
        try:
            tests, why = tests_of(sample), "the row carries no tests"
        except ValueError as error:
            tests, why = None, str(error)
        if tests is None:
            return Result("unsupported", why, 0, 0, 0.0)
        return self._refused(sample) or (program_of(sample), tests)

    def judge(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Score samples; one without a verdict says why."""
        results = self.run(samples)
        unsupported = [result.reason for result in results if result.kind == "unsupported"]
        for reason, count in Counter(unsupported).most_common(3):
            logger.info("code: %d of %d samples have no verdict: %s", count, len(samples), reason)
        return [
            Outcome(self._number(result), result.reason if result.kind == "unsupported" else "", 1000 * result.seconds)
            for result in results
        ]

    def reference(self, prompt: Prompt) -> str | None:
        """Return the program that should pass a prompt's tests: its answer, unless the tests themselves stand there.

        Raises:
            DataError: the row's tests cannot be read.
        """
        try:
            tests = tests_of(prompt)
        except ValueError as error:
            raise DataError(f"{prompt.source}: {error}; mend the row (docs/sandbox.md)") from error
        return prompt.answer if _in_context(prompt) or not tests else None

    def close(self) -> None:
        """End the sandbox; a later sample starts it again."""
        self.sandbox.close()

    def _refused(self, sample: Sample) -> Result | None:
        """Return the verdict on a completion that is too long to be looked at; None on any other."""
        characters, most = len(sample.completion), self.settings.max_characters
        return Result("failed", f"{characters} characters, more than {most}", 0, 1, 0.0) if characters > most else None

    def _scores(self, samples: Sequence[Sample]) -> list[float]:
        return [outcome.score for outcome in self.judge(samples)]

    def _number(self, result: Result) -> float:
        if result.kind == "unsupported":
            return math.nan
        return float(result.kind == "passed") if self.settings.score == "all" else result.passed / result.total


def code(settings: CodeSettings, domain: Any) -> CodeReward:
    """Build the reward."""
    return CodeReward(settings, domain)


def tests_of(sample: Sample | Prompt) -> Checks | None:
    """Return the tests of a sample's row, or of a prompt's; None where it carries none.

    Read are ``tests``, ``setup``, ``entry_point``, ``prompt`` and ``cases`` (each with ``input`` and ``output``);
    HumanEval's ``test`` and MBPP's ``test_list``, ``test_setup_code`` and ``test_imports`` stand for the first two.

    Raises:
        ValueError: they are no texts, or no cases; the message says all that is wrong.
    """
    row = _row(sample)
    if problems := _problems(row):
        raise ValueError("; ".join(problems))
    setup = next((row[key] for key in SETUPS if row.get(key) is not None), None)
    if setup is None:
        setup = _defined_by(_head(row))
    cases = tuple(Case(str(case["input"]), str(case["output"])) for case in row.get("cases") or ())
    tests = _texts(row.get("tests") or row.get("test_list") or row.get("test") or ())
    return Checks(tests, _texts(setup), row.get("entry_point") or "", cases) if tests or cases else None


def _problems(row: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with what a row says about its tests."""
    problems = [
        f"{key}: no text, nor a list of texts, got {str(row[key])[:60]!r}"
        for key in ("tests", "test_list", "test", *SETUPS)
        if row.get(key) is not None and not _are_texts(row[key])
    ]
    entry, cases = row.get("entry_point"), row.get("cases") or ()
    if entry and not (isinstance(entry, str) and entry.isidentifier()):
        problems.append(f"entry_point: not the name of a function, got {entry!r}")
    if not isinstance(cases, list | tuple):
        return [*problems, f"cases: no list, got {str(cases)[:60]!r}"]
    wrong = [case for case in cases if not _is_case(case)]
    if wrong:
        problems.append(f"cases: one lacks a text input or output, got {str(wrong[0])[:60]!r}")
    return problems


def _are_texts(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(text, str) for text in value))


def _is_case(case: object) -> bool:
    return isinstance(case, Mapping) and all(
        isinstance(case.get(key), str | int | float) for key in ("input", "output")
    )


def _context(sample: Sample | Prompt) -> Mapping[str, Any]:
    return sample.context if isinstance(sample.context, Mapping) else {}


def _in_context(sample: Sample | Prompt) -> bool:
    return any(_context(sample).get(key) for key in CARRIERS)


def _row(sample: Sample | Prompt) -> Mapping[str, Any]:
    """Return what the row says: its context, and where no tests stand there, those in its answer: JSON, or asserts."""
    context = _context(sample)
    if _in_context(sample):
        return context
    try:
        found = json.loads(sample.answer)
    except (ValueError, RecursionError):
        found = {"tests": sample.answer} if "assert" in sample.answer else {}
    return {**(found if isinstance(found, dict) else {}), **context}


def _head(row: Mapping[str, Any]) -> str:
    """Return the row's prompt where it is code that ends in the function under test; empty where it is a question."""
    prompt, entry = row.get("prompt"), row.get("entry_point")
    if not (isinstance(prompt, str) and isinstance(entry, str) and entry):
        return ""
    return prompt if _definition_of(entry).search(prompt) and _defined_by(prompt) else ""


def _definition_of(name: str) -> re.Pattern[str]:
    """Return what finds the definition of a name, or of any where the name is empty."""
    wanted = re.escape(name) or r"\w+"
    return re.compile(rf"^(?:async )?(?:def|class) {wanted}\b", re.MULTILINE)


@functools.lru_cache(maxsize=4096)
def _defined_by(prompt: str) -> str:
    """Return a prompt as a source that defines its imports and helpers; its last function is open, and may be empty."""
    for source in (prompt, f"{prompt.rstrip()}\n    pass\n"):
        try:
            compile(source, "<prompt>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            continue
        return source
    return ""


def _texts(value: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(text for text in ([value] if isinstance(value, str) else value) if text.strip())


def program_of(sample: Sample) -> str:
    """Return the program in a completion: its code block, after any thinking; else a continuation of the row's prompt.

    The prompt of the row (``context["prompt"]``: imports, helpers, the head of the function) goes before it.
    """
    row = _row(sample)
    prompt, entry = _head(row), row.get("entry_point") or ""
    text = sample.completion.rpartition("</think>")[2]
    defines = _definition_of(entry)
    blocks = [body for language, body in FENCE.findall(text) if language.lower() in PYTHON]
    if blocks:
        body = next((body for body in reversed(blocks) if defines.search(body)), blocks[-1])
        return _after(prompt, body, whole=bool(defines.search(body)))
    if not prompt:
        return text
    lines = text.split("\n")
    end = next((number for number, line in enumerate(lines) if number and not TOP_LEVEL.match(line)), len(lines))
    kept = "\n".join(lines[:end])
    return _after(prompt, kept, whole=bool(defines.search(kept)))


def _after(prompt: str, code: str, whole: bool) -> str:
    """Return code after the prompt; whole functions replace the open one that the prompt ends with."""
    if not (prompt and whole):
        return prompt + code
    return "\n".join((*FUTURE.findall(code), _defined_by(prompt), "", FUTURE.sub("", code)))
