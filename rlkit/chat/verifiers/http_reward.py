"""The reward ``http``: a server scores, in batches, with retries and time-outs.

The standard library alone. Redirects are not followed: they would take the secret elsewhere.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError

from rlkit.chat.verifiers.threads import call_each
from rlkit.config.verifiers import HttpSettings
from rlkit.errors import RecipeError, TrainingError
from rlkit.policy.text_rewards import Outcome, Sample, TextReward

logger = logging.getLogger(__name__)

AGAIN = (408, 425, 429)
"""Besides 5xx: the statuses of a request that may succeed later."""
MAX_WAIT_SECONDS = 60.0
SAID_WAIT_SECONDS = 4.0
"""The shortest wait that is announced."""
MAX_BYTES = 64 * 2**20
"""Of a reply."""
MOST = 1e38
"""A score is a number of 32 bits; what is larger, or NaN, is none."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class _Failed(Exception):
    """A request that may be sent again; ``wait``: how long the server asks to be left alone."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class HttpReward(TextReward):
    """Asks a server.

    Args:
        settings: the reward's.
        domain: whose tokenizer decodes rollouts.

    Raises:
        RecipeError: the environment does not hold the secret.
    """

    def __init__(self, settings: HttpSettings, domain: Any) -> None:
        super().__init__(lambda samples: [outcome.score for outcome in self.judge(samples)], domain)
        self.settings = settings
        self.opener = urllib.request.build_opener(_NoRedirect)
        self.patient = True
        """Whether requests are sent again; not after one that was, in vain, until another is answered."""
        _secret(settings)

    def judge(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Score samples; those of a batch that failed say why.

        Raises:
            TrainingError: the server refuses requests, or its replies are not what they should be.
        """
        size = self.settings.batch_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        found = call_each(self._batch, batches, self.settings.parallel)
        return [outcome for outcomes in found for outcome in outcomes]

    def _batch(self, samples: Sequence[Sample]) -> list[Outcome]:
        body = json.dumps({"samples": [_plain(sample) for sample in samples]}, default=str).encode()
        started = time.monotonic()
        for last, wait in _waits(self.settings):
            try:
                reply = _within(self.settings.request_seconds, lambda: self._ask(body))
                self.patient = True
                return _outcomes(reply, len(samples), time.monotonic() - started)
            except _Failed as failed:
                if last or not self.patient:
                    self.patient = False
                    logger.warning("reward http: %s: %s; %d samples have no score", self.url, failed, len(samples))
                    took = 1000 * (time.monotonic() - started) / len(samples)
                    return [Outcome(math.nan, str(failed), took)] * len(samples)
                wait = min(max(wait, failed.wait), MAX_WAIT_SECONDS)
                if wait >= SAID_WAIT_SECONDS:
                    logger.warning("reward http: %s: %s; asked again in %g seconds", self.url, failed, wait)
                time.sleep(wait)
        raise AssertionError("there is a last try")

    @property
    def url(self) -> str:
        """Return the address."""
        return self.settings.url

    def _ask(self, body: bytes) -> Any:
        """Send one request.

        Raises:
            _Failed: it may be sent again.
            TrainingError: it may not.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json", **_secret(self.settings)}
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        seconds = self.settings.request_seconds
        end = time.monotonic() + seconds
        try:
            with self.opener.open(request, timeout=seconds) as reply:
                data = _read(reply, end)
        except HTTPError as error:
            raise _refused(error, self.url) from error
        except (OSError, HTTPException) as error:
            raise _Failed(f"{type(error).__name__}: {error}") from error
        except ValueError:  # not its text, which may hold the secret
            raise TrainingError(
                f"reward http: {self.url}: the request cannot be written; look for letters beyond ASCII, or line "
                "breaks, in the url and in the secret"
            ) from None
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise TrainingError(f"reward http: {self.url}: the reply is not JSON: {error}; mend the server") from error


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what a call returns; a socket's own time-out does not end where a server drips byte by byte.

    Raises:
        _Failed: it takes too long; its thread goes on until the server ends.
    """
    found: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            found.put((call(), None))
        except BaseException as error:  # handed to the caller, whatever it is
            found.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = found.get(timeout=min(seconds, threading.TIMEOUT_MAX))
    except queue.Empty:
        raise _Failed(f"timed out: no whole reply within {seconds:g} seconds") from None
    if error is not None:
        raise error
    return value


def _waits(settings: HttpSettings) -> Iterator[tuple[bool, float]]:
    """Yield for each try whether it is the last one, and how long to wait after it."""
    for number in range(settings.retries + 1):
        yield number == settings.retries, settings.backoff_seconds * 2**number


def _plain(sample: Sample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in ("prompt", "completion", "answer", "truncated", "context")}


def _secret(settings: HttpSettings) -> dict[str, str]:
    """Return the header with the secret, read anew for every request.

    Raises:
        RecipeError: the environment does not hold it.
    """
    if settings.auth_env is None:
        return {}
    secret = os.environ.get(settings.auth_env, "").strip()
    if not secret:
        raise RecipeError(
            f"reward http: auth_env: the environment variable {settings.auth_env!r} is not set; export it first"
        )
    return {settings.auth_header: f"{settings.auth_scheme} {secret}".strip()}


def _read(reply: Any, end: float) -> bytes:
    """Read a reply to its end, however slowly it drips."""
    data = bytearray()
    while piece := reply.read1(1 << 16):
        data += piece
        if time.monotonic() > end:
            raise _Failed("the reply took too long")
        if len(data) > MAX_BYTES:
            raise _Failed(f"the reply is larger than {MAX_BYTES:,} bytes")
    return bytes(data)


def _refused(error: HTTPError, url: str) -> Exception:
    """Return what a status means: try again, or give up."""
    said = ""
    with error, suppress(OSError, HTTPException):  # the status says enough
        said = " ".join(error.read(300).decode("utf-8", "replace").split())
    if error.code >= 500 or error.code in AGAIN:
        asked = error.headers.get("Retry-After", "")
        return _Failed(f"status {error.code}: {said}", float(asked) if asked.isascii() and asked.isdigit() else 0.0)
    return TrainingError(f"reward http: {url}: status {error.code}: {said}; mend the url, the secret or the server")


def _outcomes(reply: Any, count: int, seconds: float) -> list[Outcome]:
    """Check a reply.

    Raises:
        TrainingError: it does not hold a score for each sample.
    """
    scores: Any = reply.get("scores") if isinstance(reply, Mapping) else reply
    parts = reply.get("parts") if isinstance(reply, Mapping) else None
    lists = [scores, *(parts or {}).values()] if isinstance(parts or {}, Mapping) else [None]
    if not all(_fits(values, count) for values in lists):
        got = json.dumps(reply)
        got = got if len(got) <= 200 else f"{got[:197]}..."
        raise TrainingError(
            f'reward http: expected {{"scores": [...]}} with {count} numbers, and parts of as many, got {got}; '
            "mend the server"
        )
    return [
        Outcome(
            math.nan if score is None else float(score),
            "the server gave no score" if score is None else "",
            1000 * seconds / count,
            {name: float(values[index]) for name, values in (parts or {}).items() if values[index] is not None},
        )
        for index, score in enumerate(scores)
    ]


def _fits(values: Any, count: int) -> bool:
    """Return whether a list holds a finite number or null for each sample."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(
            value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST)
            for value in values
        )
    )
