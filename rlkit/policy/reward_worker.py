"""A process that scores samples for a supervised reward: ``python -m rlkit.policy.reward_worker``.

It speaks JSON lines. First in: ``{"type", "settings"}`` of the reward; first out: ``{"ready": true}`` or
``{"error": ...}``. Then for each ``{"samples": [...]}`` one ``{"outcomes": [...]}``. Whatever the reward prints goes to
standard error. The parent kills it when an answer takes too long, and it ends when its parent is gone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from typing import Any, TextIO


def main() -> None:
    """Serve until standard input ends."""
    _watch_parent()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of a reward must not look like replies
    reward = _load(json.loads(sys.stdin.readline()), replies)
    from rlkit.policy.text_rewards import Outcome, Sample

    for line in sys.stdin:
        samples = [Sample(**row) for row in json.loads(line)["samples"]]
        try:
            outcomes = reward.judge(samples)
        except Exception as error:  # a user's function may raise anything; the sample is left out, and says why
            outcomes = [Outcome(float("nan"), f"{type(error).__name__}: {error}")] * len(samples)
        _reply(replies, {"outcomes": [dataclasses.asdict(outcome) for outcome in outcomes]})


def _load(wanted: dict[str, Any], replies: TextIO) -> Any:
    from rlkit.errors import RlkitError
    from rlkit.plugins import load_plugins

    try:
        component = load_plugins().get("reward", wanted["type"])
        reward = component.load()(component.settings.model_validate(wanted["settings"]), None)
    except RlkitError as error:
        _reply(replies, {"error": str(error)})
        sys.exit(1)
    _reply(replies, {"ready": True})
    return reward


def _reply(replies: TextIO, value: dict[str, Any]) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


def _watch_parent() -> None:
    """End when the parent is gone, however long the reward takes."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
