"""The starter recipes that ``rlkit init`` writes."""

from __future__ import annotations

from pathlib import Path

from rlkit.errors import RecipeError, did_you_mean

_HEAD = """\
# A starter recipe: {what}
# Check it: `rlkit validate {file}`; try it: `rlkit run {file} --smoke`; run it: `rlkit run {file}`.
# What is left out has a default: `rlkit run {file} --dry-run` shows all of them, `rlkit schema` explains them.

name: {name}                # the run's folder: runs/{name}
seed: 0

model:
  preset: nano              # a tiny model from scratch (nano, micro, mini) ...
  # path: DIR_OR_HUB_ID     # ... or any Hugging Face causal language model
"""

_RECOMMENDATION = """
domain:
  type: recommendation
  data:
    type: demo              # a generated shop; your own data in MiniOneRec's format:
    # type: minionerec
    # path: DIR
  max_history: 10           # how many of the last items a prompt shows

stages:                     # run in this order; a finished stage is skipped by the next call
  semantic_ids:
    type: semantic_ids      # read or make the items' semantic IDs
  sft:
    algorithm:
      type: sft             # learn from what users did
    train:
      learning_rate: 1e-3
      batch_size: 64        # per update, over all processes
      epochs: 5
  grpo:
    algorithm:
      type: grpo            # learn from rewards on the model's own recommendations
      group_size: 16        # recommendations per prompt
      rewards:
        - type: item_match
        - type: rank_discount
    train:
      learning_rate: 1e-5
      batch_size: 64        # prompts per update
      max_steps: 100
  evaluate:
    type: evaluate          # HR@K and NDCG@K beside baselines
    num_beams: 50

# engine:                   # two processes on this machine:
#   type: deepspeed
#   zero: 2
#   processes: 2
"""

_CHAT = """
domain:
  type: chat
  prompts: train.jsonl      # rows like {"prompt": "What is 2 + 3?", "answer": "5"}

stages:                     # run in this order; a finished stage is skipped by the next call
  sft:
    algorithm:
      type: sft             # learn from the answers
    train:
      learning_rate: 1e-4
      batch_size: 32        # per update, over all processes
      epochs: 1
  grpo:
    algorithm:
      type: grpo            # learn from rewards on the model's own answers
      group_size: 8         # answers per prompt
      rollout:
        type: sample
        max_completion_tokens: 64
      rewards:
        - type: exact_match
    train:
      learning_rate: 1e-6
      batch_size: 32        # prompts per update
      max_steps: 100
  evaluate:
    type: evaluate

# engine:                   # two processes on this machine:
#   type: deepspeed
#   zero: 2
#   processes: 2
"""

STARTERS = {
    "recommendation": ("a generative recommender, by SFT and then GRPO", _RECOMMENDATION),
    "chat": ("a language model that answers questions, by SFT and then GRPO", _CHAT),
}


def write_starter(file: Path, domain: str, force: bool) -> None:
    """Write a starter recipe.

    Raises:
        RecipeError: there is no such starter, the file is there already, or it cannot be written.
    """
    if domain not in STARTERS:
        raise RecipeError(f"--domain: no starter recipe for {domain!r}{did_you_mean(domain, STARTERS)}")
    what, body = STARTERS[domain]
    try:
        with file.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(_HEAD.format(what=what, file=file, name=f"my_{domain}") + body)
    except FileExistsError as error:
        raise RecipeError(f"{file}: is there already; choose another name, or overwrite it with --force") from error
    except OSError as error:
        raise RecipeError(f"{file}: cannot be written: {(error.strerror or str(error)).lower()}") from error
