"""A process that scores samples for a supervised reward, started by ``rlkit.policy.supervised.Worker``.

It speaks JSON lines. First in: ``{"type", "settings"}`` of the reward; first out: ``{"ready": true}`` or
``{"error": ...}``. Then for each ``{"samples": [...]}`` one ``{"outcomes": [...]}``. Whatever the reward prints goes to
standard error, and it finds its standard input empty. The parent kills it when an answer takes too long, and it ends,
with what it has started, when its parent is gone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from typing import Any, TextIO


def main(shown: int) -> None:
    """Serve until standard input ends.

    Args:
        shown: the file that standard error goes to once the reward is loaded.
    """
    _watch_parent()
    requests, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # prints of a reward must not look like replies
    reward = _load(json.loads(requests.readline()), replies)
    for stream in (1, 2):
        os.dup2(shown, stream)
    _reply(replies, {"ready": True})
    from rlkit.policy.text_rewards import Outcome, Sample, reason

    for line in requests:
        samples = [Sample(**row) for row in json.loads(line)["samples"]]
        try:
            outcomes = reward.judge(samples)
        except Exception as error:  # a user's function may raise anything; the sample is left out, and says why
            outcomes = [Outcome(float("nan"), reason(error))] * len(samples)
        _reply(replies, {"outcomes": [dataclasses.asdict(outcome) for outcome in outcomes]})
    _end_all()


def _load(wanted: dict[str, Any], replies: TextIO) -> Any:
    from rlkit.errors import RlkitError
    from rlkit.plugins import load_plugins

    try:
        component = load_plugins().get("reward", wanted["type"])
        return component.load()(component.settings.model_validate(wanted["settings"]), None)
    except RlkitError as error:
        _reply(replies, {"error": str(error)})
        sys.exit(1)


def _reply(replies: TextIO, value: dict[str, Any]) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


def _watch_parent() -> None:
    """End when the parent is gone, however long the reward takes."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        _end_all()

    threading.Thread(target=watch, daemon=True).start()


def _end_all() -> None:
    """End this process and those of its group, which is its own."""
    os.killpg(os.getpgrp(), signal.SIGKILL)
