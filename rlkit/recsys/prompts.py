"""The one place where prompts are written: SFT, RL, evaluation and serving all render them here.

compact    <begin> and the history's semantic IDs, nothing else; for small models from scratch
instruct   a short instruction with the history, for language models
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Template = Literal["compact", "instruct"]

_INSTRUCTION = (
    "### Instruction:\nA customer bought these items, oldest first. Write the code of the item that comes next.\n\n"
    "### History:\n{history}\n\n### Next item:\n"
)


def render_history(template: Template, history: Sequence[str], begin: str) -> str:
    """Return the prompt for a history.

    Args:
        template: how prompts look.
        history: the semantic IDs of the history, oldest first, each one string.
        begin: the tokenizer's begin token, or an empty string where it has none.
    """
    if template == "compact":
        return begin + "".join(history)
    return begin + _INSTRUCTION.format(history=", ".join(history))
