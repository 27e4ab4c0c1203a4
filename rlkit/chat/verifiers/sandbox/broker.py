"""The verdict: carries calls from the tests to the model's code and results back, believes neither, and decides."""

from __future__ import annotations

import contextlib
import secrets
import signal
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from rlkit.chat.verifiers.sandbox import plain
from rlkit.chat.verifiers.sandbox.child import Child, Ended, Misbehaved
from rlkit.chat.verifiers.sandbox.frames import TooLong
from rlkit.chat.verifiers.sandbox.job import Case, Checks, Kind, Result

if TYPE_CHECKING:
    from rlkit.chat.verifiers.sandbox.pool import Sandbox

MAX_OUTPUT_BYTES = 1 << 20
REASON = 200
LAST_WORDS_SECONDS = 1.0
"""A process that hung up is given this long to end by itself, so that its status can be told."""


class _Stop(Exception):
    """There is nothing more to find out about a sample.

    Args:
        kind: as in ``Result``.
        reason: as in ``Result``.
    """

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


def judge(sandbox: Sandbox, code: str, tests: Checks, until_failure: bool) -> Result:
    """Run one sample.

    Raises:
        TrainingError: the sandbox itself does not work.
    """
    sandbox.start()
    start = time.monotonic()
    deadline = start + sandbox.timeout_seconds
    verdicts = _cases(sandbox, code, tests.cases, deadline) if tests.cases else _functions(
        sandbox, code, tests, deadline, until_failure
    )  # fmt: skip
    found: list[tuple[Kind, str]] = []
    with contextlib.closing(verdicts):
        try:
            for verdict in verdicts:
                found.append(verdict)
                if until_failure and verdict[0] != "passed":
                    break
        except _Stop as stop:
            found.append((stop.kind, stop.reason))
    total, passed = len(tests.cases or tests.tests), sum(kind == "passed" for kind, _ in found)
    kind, reason = _worst(found, total)
    return Result(kind, "".join(filter(str.isprintable, reason))[:REASON], passed, total, time.monotonic() - start)


def _worst(found: list[tuple[Kind, str]], total: int) -> tuple[Kind, str]:
    """Return what is wrong, what has no verdict first; passed where every test has passed."""
    wrong = [verdict for verdict in found if verdict[0] != "passed"]
    unsupported = [verdict for verdict in wrong if verdict[0] == "unsupported"]
    if wrong:
        return (unsupported or wrong)[0]
    return ("passed", "") if len(found) == total else ("error", f"{len(found)} of {total} tests were run")


def _functions(
    sandbox: Sandbox, code: str, tests: Checks, deadline: float, until_failure: bool
) -> Generator[tuple[Kind, str]]:
    """Yield a verdict for each test of functions.

    Raises:
        _Stop: there are no more.
    """
    with sandbox.child("answer") as model, sandbox.child("drive") as driver:
        try:
            names = _load(model, code, tests.entry_point, deadline)
            job = {"setup": tests.setup, "tests": tests.tests, "entry_point": tests.entry_point}
            driver.send({**job, "names": names, "until_failure": until_failure}, deadline)
            calls = failures = 0
            while "done" not in (message := driver.receive(deadline, silent=model)):
                if "call" in message:
                    calls += 1
                    driver.send(_ask(model, message, deadline), deadline)
                else:
                    verdict = _verdict(message)
                    failures += verdict[0] != "passed"
                    yield verdict
            if not calls and not failures:  # any code would pass them
                raise _Stop("unsupported", "the tests call no function of the code")
        except TimeoutError as error:
            raise _Stop("timeout", f"no end within {sandbox.timeout_seconds:g} s") from error
        except Ended as error:
            raise _Stop(*_how_it_ended(model, driver)) from error
        except Misbehaved as error:
            raise _Stop("error", f"the code {error}") from error
        except TooLong as error:
            raise _Stop("unsupported", str(error)) from error


def _verdict(message: dict[str, Any]) -> tuple[Kind, str]:
    """Return what the process of the tests says about one test; only one way of saying it is a pass."""
    if message == {"passed": ""}:
        return "passed", ""
    kind: Kind = "unsupported" if "unsupported" in message else "failed"
    return kind, str(message.get(kind, "the process of the tests sends no verdict"))


def _load(model: Child, code: str, entry_point: str, deadline: float) -> list[str]:
    """Let a process run the code; return the names of what can be called.

    Raises:
        _Stop: it raises, or lacks the function under test.
    """
    model.send({"code": code}, deadline)
    reply = model.receive(deadline)
    names = reply.get("names")
    if isinstance(reply.get("error"), str):
        raise _Stop("error", reply["error"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Misbehaved("sends what is no message")
    if entry_point and entry_point not in names:
        raise _Stop("failed", f"defines no function {entry_point}")
    return names


def _ask(model: Child, call: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Carry a call to the model's code and return the reply for the tests.

    Raises:
        Misbehaved: what comes is no reply to this call.
    """
    number = secrets.randbits(52)
    model.send({"id": number, "name": call["call"], "args": call["args"], "kwargs": call["kwargs"]}, deadline)
    reply = model.receive(deadline)
    if reply.get("id") != number:
        raise Misbehaved("answers a call that was never made")
    if isinstance(reply.get("unsupported"), str):
        return {"unsupported": reply["unsupported"][:REASON]}
    error, args = reply.get("error"), reply.get("args")
    if isinstance(error, str) and isinstance(args, list) and plain.is_plain(args):
        return {"error": error[:REASON], "args": args}
    value, changed = reply.get("value"), reply.get("changed", [])
    if "value" not in reply or not isinstance(changed, list) or not plain.is_plain([value, changed]):
        raise Misbehaved("sends what is no message")
    if changed and value is not None:
        raise Misbehaved("returns a value and changes its arguments as well")
    return {"value": value, "changed": changed}


def _how_it_ended(model: Child, driver: Child) -> tuple[Kind, str]:
    """Say who hung up, and why."""
    child, who = (model, "the code") if model.hung_up() else (driver, "the process of the tests")
    try:
        code = child.wait(time.monotonic() + LAST_WORDS_SECONDS)["code"]
    except TimeoutError:
        return "error", f"{who} closed its channel"
    if code in (-signal.SIGXCPU, -signal.SIGALRM):
        return "timeout", f"{who} used up its processor time"
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return "error", f"{who} {how}"


def _cases(sandbox: Sandbox, code: str, cases: Sequence[Case], deadline: float) -> Generator[tuple[Kind, str]]:
    """Yield a verdict for each case, run in a process of its own.

    Raises:
        _Stop: there are no more.
    """
    for case in cases:
        with sandbox.child("program") as program:
            try:
                program.send({"code": code, "input": case.input}, deadline)
                output = program.receive_all(MAX_OUTPUT_BYTES, deadline)
                if len(output) > MAX_OUTPUT_BYTES:
                    raise _Stop("failed", f"prints more than {MAX_OUTPUT_BYTES:,} bytes")
                status = program.wait(deadline)["code"]
            except TimeoutError as error:
                raise _Stop("timeout", f"no end within {sandbox.timeout_seconds:g} s") from error
            except Ended:  # it ended before it read all of its input
                status, output = program.end()["code"], b""
            except TooLong as error:
                raise _Stop("unsupported", str(error)) from error
        if status:
            yield "error", f"ended with status {status}"
        elif _lines(output.decode(errors="replace")) == _lines(case.output):
            yield "passed", ""
        else:
            yield "failed", f"prints {output[:80].decode(errors='replace')!r}"


def _lines(text: str) -> list[str]:
    """Return lines as judges of programs compare them: without white space at their ends, or empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]
