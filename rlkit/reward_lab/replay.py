"""Score a quarantined completion again."""

from __future__ import annotations

from typing import Any

from rlkit.plugins import load_plugins
from rlkit.policy.supervised import SupervisedReward, judge
from rlkit.policy.text_rewards import Sample


def again(row: dict[str, Any]) -> str:
    """Return what a reward says about a row of quarantine.jsonl now."""
    component = load_plugins().get("reward", row["settings"]["type"])
    settings: Any = component.settings.model_validate(row["settings"])
    reward = SupervisedReward(settings, None) if settings.supervised else component.load()(settings, None)
    sample = Sample(row["prompt"], row["completion"], row["answer"], row["truncated"], row["context"])
    outcome = judge(reward, component.name, settings, [sample])[0]
    if isinstance(reward, SupervisedReward):
        reward.close()
    return (
        f"no score: {outcome.error}" if outcome.error else f"score {outcome.score:g} in {outcome.milliseconds:.0f} ms"
    )
