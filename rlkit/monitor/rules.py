"""The rules: from the history of a stage to symptoms, in words with numbers; what they mean stands in ``alarms``.

Every rule is a pure function that returns a symptom and the step where it began, or None.
"""

from __future__ import annotations

import math
from itertools import pairwise, takewhile
from statistics import fmean

from rlkit.config.monitor import MonitorSettings
from rlkit.monitor.history import (
    History,
    Row,
    finite,
    has_risen,
    mean_of_last,
    median_of,
    noise,
    standard_error,
)

Symptom = tuple[str, int]
FEW, SOME = 3, 5
"""Rollouts that smooth a metric: one that hardly varies, one that does."""
MIN_LENGTH_CHANGE = 4.0
"""Tokens; below, a ratio of lengths says nothing."""
MIN_DROP = 0.1
"""The least fall of the reward that counts, as a share of it or of its spread: the larger one."""
MIN_FALL = 0.02
"""The least fall of a held-out figure that counts, whatever its size."""
CLEAR = 3.0
"""Standard errors that are no chance: the best of many looks is also the luckiest."""
UNLIKELY = 1e-5
"""A run of rollouts without a signal that is likelier than this says nothing: with rare rewards there are many."""


def _above(history: History, name: str, limit: float, count: int) -> tuple[float, int] | None:
    """Return the mean of a metric's last values where it lies above a limit, and the step since when it does."""
    now = mean_of_last(history.values(name), count)
    if now is None or now <= limit:
        return None
    return now, history.began(lambda row: bool(finite([row], name)) and row[name] > limit, count)


def large_updates(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether single updates move the policy too far: clipping, KL to the sampling policy, or a leap of KL."""
    clipped = _above(history, "clip_fraction", settings.clip_fraction, FEW)
    if clipped:
        return f"clip fraction {clipped[0]:.2f} (limit {settings.clip_fraction:g})", clipped[1]
    moved = _above(history, "approx_kl", settings.approx_kl, FEW)
    if moved:
        return f"KL to the sampling policy {moved[0]:.3g} per token (limit {settings.approx_kl:g})", moved[1]
    last = [row for row in history.rows[-SOME:] if finite([row], "kl")]
    for before, after in pairwise(last):
        if before["kl"] < settings.kl_high / 2 and after["kl"] > 2 * settings.kl_high:
            said = f"KL to the reference rose from {before['kl']:.3g} to {after['kl']:.3g} per token in one rollout"
            return said, int(before["step"])
    return None


def kl_high(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether the policy has left the reference."""
    found = _above(history, "kl", settings.kl_high, FEW)
    return found and (f"KL to the reference {found[0]:.3g} per token (limit {settings.kl_high:g})", found[1])


def kl_growing(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether KL has grown fivefold within a window, to half of its limit."""
    values = history.values("kl")
    now, before = mean_of_last(values, FEW), mean_of_last(values[:-FEW], settings.window)
    if now is None or before is None or before < settings.kl_low or now < max(5 * before, settings.kl_high / 2):
        return None
    return f"KL to the reference grew from {before:.3g} to {now:.3g} per token", _ago(history, FEW)


def kl_low(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether the policy has not moved, although half of the stage is over, and has gained nothing."""
    values = [abs(value) for value in history.values("kl")]  # an estimate below 0 is noise, and hides as much KL
    now, before = mean_of_last(values, settings.window), mean_of_last(values[: -settings.window], settings.window)
    if now is None or before is None or history.seen < max(2 * settings.window, history.planned // 2):
        return None
    windows_left = max(history.planned - history.seen, 0) / settings.window
    if max(now, now + (now - before) * windows_left) >= settings.kl_low:  # it moves, though late
        return None
    if _gained(history, settings.window):
        return None
    said = f"KL to the reference {now:.2g} per token (limit {settings.kl_low:g}) and no gain after {history.seen}"
    return f"{said} rollouts", int(history.start[0]["step"])


def reward_falling(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether the mean reward of a window lies clearly below that of the window before."""
    size, values = settings.window, history.values("reward")
    if len(values) < 2 * size:
        return None
    now, before = values[-size:], values[-2 * size : -size]
    drop = fmean(before) - fmean(now)
    spread = mean_of_last(history.values("reward_spread"), size) or 0.0
    least = MIN_DROP * max(abs(fmean(before)), spread)
    error = max(standard_error(now, before), noise(values) * math.sqrt(2 / size))  # 10 values alone may agree by chance
    if drop <= max(settings.reward_drop * error, least, 1e-6):
        return None
    return f"reward fell from {fmean(before):.4g} to {fmean(now):.4g} within {2 * size} rollouts", _ago(history, size)


def no_signal(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether rewards do not differ, where they have not risen to that."""

    def equal(row: Row) -> bool:
        return row.get("zero_signal", 0.0) >= settings.zero_signal or row.get("reward_spread", 1.0) <= 1e-6

    last = history.rows[-SOME:]
    if len(last) < SOME or not all(equal(row) for row in last) or _gained(history, SOME):
        return None
    without = len(list(takewhile(equal, reversed(history.rows))))
    before = [equal(row) for row in history.rows[:-without]]
    if before and ((sum(before) + 1) / (len(before) + 1)) ** without > UNLIKELY:
        return None
    share = fmean(finite(last, "zero_signal") or [1.0])
    reward = fmean(finite(last, "reward") or [0.0])
    if all(row.get("reward_spread", 1.0) <= 1e-6 for row in last):
        return f"all rewards of {SOME} rollouts are {reward:.4g}", history.began(equal)
    return f"{share:.0%} of groups have equal rewards, mean {reward:.4g}", history.began(equal)


def entropy_collapse(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether entropy is gone and nothing was won by it, or hardly any different completions are left."""
    now, start = mean_of_last(history.values("entropy"), FEW), history.first("entropy", FEW)
    if now is None or len(start) < FEW or now >= settings.entropy or now >= fmean(start) / 5:
        return None
    kinds = mean_of_last(history.values("diversity/rollout"), FEW)
    kinds_before = fmean(history.first("diversity/rollout", FEW) or [0.0])
    same = kinds is not None and kinds < 0.3 * kinds_before
    if not same and _gained(history, FEW):
        return None
    said = f"entropy fell from {fmean(start):.3g} to {now:.2g} nats per token"
    if kinds is not None:
        said += f", different completions from {kinds_before:.0%} to {kinds:.0%}"
    limit = min(settings.entropy, fmean(start) / 5)
    return said, history.began(lambda row: bool(finite([row], "entropy")) and row["entropy"] < limit, FEW)


def length_growing(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether completions have become much longer."""
    return _length(history, settings, longer=True)


def length_shrinking(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether completions have become much shorter."""
    return _length(history, settings, longer=False)


def _length(history: History, settings: MonitorSettings, longer: bool) -> Symptom | None:
    name = "completion_length"
    now, start = mean_of_last(history.values(name), SOME), fmean(history.first(name, SOME) or [0.0])
    if now is None or history.seen < 2 * SOME or start <= 0 or abs(now - start) < MIN_LENGTH_CHANGE:
        return None
    if (now / start if longer else start / max(now, 1e-9)) < settings.length_ratio:
        return None
    reward, first = fmean(history.values("reward")[-SOME:] or [0.0]), fmean(history.first("reward", SOME) or [0.0])
    said = (
        f"completions went from {start:.1f} to {now:.1f} tokens while the reward went from {first:.4g} to {reward:.4g}"
    )
    half = (now + start) / 2
    return said, history.began(lambda row: (row.get(name, start) > half) == longer, SOME)


def truncated(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether many completions are cut off."""
    found = _above(history, "truncated", settings.truncated, SOME)
    return found and (f"{found[0]:.0%} of completions are cut off (limit {settings.truncated:.0%})", found[1])


def gradient_growing(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether gradients have exploded, and are not a single outlier."""
    rows = [row for row in history.rows if row.get("zero_signal", 0.0) < 1 and finite([row], "grad_norm")]
    values = finite(rows, "grad_norm")  # without a signal there is next to no gradient, whatever comes after it
    if len(values) < SOME + settings.window:
        return None
    now, before = median_of(values[-SOME:]), median_of(values[-SOME - settings.window : -SOME])
    if now <= max(settings.gradient_ratio * before, 1.0):
        return None
    return f"gradient norm grew from {before:.3g} to {now:.3g}", int(rows[-SOME]["step"])


def value_diverging(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether the value loss grows and values explain nothing."""
    size = settings.window
    now, start = mean_of_last(history.values("value_loss"), size), history.first("value_loss", size)
    explained = mean_of_last(history.values("explained_variance"), size)
    if now is None or explained is None or history.seen < 2 * size or explained >= 0:
        return None
    if now <= settings.value_ratio * fmean(start):
        return None
    said = f"value loss grew from {fmean(start):.3g} to {now:.3g}, explained variance {explained:.2f}"
    return said, _ago(history, size)


def reward_fails(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether a reward raises on many completions."""
    found = _unscored(history, settings)
    return found if found and not _late(history) else None


def reward_slow(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether a reward misses its deadline on many completions, or is slow."""
    found = _unscored(history, settings)
    if found and _late(history):
        return found
    names = {name for row in history.rows[-FEW:] for name in row if name.startswith("reward_ms/")}
    for name in sorted(names):
        slow = _above(history, name, settings.reward_ms, FEW)
        if slow:
            said = f"{name.removeprefix('reward_ms/')} takes {slow[0]:.0f} ms per completion"
            return f"{said} (limit {settings.reward_ms:g})", slow[1]
    return None


def _unscored(history: History, settings: MonitorSettings) -> Symptom | None:
    found = _above(history, "unscored", settings.unscored, FEW)
    if not found:
        return None
    why = next((row["error"] for row in reversed(history.rows) if row.get("error")), "")
    return f"{found[0]:.0%} of completions could not be scored" + (f": {why}" if why else ""), found[1]


def _late(history: History) -> bool:
    """Return whether most of what could not be scored missed its deadline."""
    return fmean(finite(history.rows[-FEW:], "late") or [0.0]) > 0.5


def hacking_gap(history: History, settings: MonitorSettings) -> Symptom | None:
    """Return whether a held-out figure has fallen below its best, in two looks, while the reward in training rose.

    What the choice of prompts does to a look is no fall: looks bring the standard errors of their figures.
    """
    for name in history.held_out:
        looks = [row for row in history.looks if finite([row], name)]
        if len(looks) < FEW:
            continue
        best = max(looks[:-2], key=lambda row: float(row[name]))
        least = max(settings.hacking_gap * abs(best[name]), MIN_FALL)
        if any(best[name] - row[name] < max(least, CLEAR * _error(best, row, name)) for row in looks[-2:]):
            continue
        before = finite([row for row in history.rows if row["step"] <= best["step"]], "reward")[-SOME:]
        before = before or history.first("reward", SOME)
        now = history.values("reward")[-SOME:]
        if has_risen(now, before):
            said = f"{name} fell from {best[name]:.4g} (step {best['step']}) to {looks[-1][name]:.4g}"
            return f"{said} while the reward in training rose from {fmean(before):.4g} to {fmean(now):.4g}", int(
                looks[-2]["step"]
            )
    return None


def _error(one: Row, other: Row, name: str) -> float:
    """Return the standard error of the difference between two looks; 0 where they do not say."""
    return math.hypot(*(row.get("errors", {}).get(name, 0.0) for row in (one, other)))


def _gained(history: History, count: int) -> bool:
    """Return whether the reward lies above that of the stage's start."""
    return has_risen(history.values("reward")[-count:], history.first("reward", count))


def _ago(history: History, count: int) -> int:
    return int(history.rows[-count]["step"])
