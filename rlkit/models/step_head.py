"""Step heads: a language model's backbone that says at the end of each step of an answer whether the step is right.

The model is transformers' token classifier with two labels, 0 wrong and 1 right, as TRL's PRM trainer wrote it, so that
a saved folder scores alike in any other tool. What counts is the score at the last token of a step (Lightman et al.
2023, arXiv 2305.20050, section 2.6), that is the token which completes the last character of the step that is no white
space. So it does not matter how the tokenizer cuts what stands between two steps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from rlkit.config.models import CausalLMSettings
from rlkit.models.head_files import PROCESS
from rlkit.models.load import LoadedModel
from rlkit.models.scalar_head import length_batches, load_head, new_head, pad_right, plain_model, token_budget

LABELS = {0: "wrong", 1: "right"}


def load_step_head(
    settings: CausalLMSettings, path: str | Path | None = None, *, name: str = "model.path"
) -> LoadedModel:
    """Load a model together with its saved step head.

    Args:
        settings: dtype, attention implementation, and whether remote code may run.
        path: the model's folder; none: ``settings.path``.
        name: how messages call the setting that names the folder.

    Raises:
        ModelError: the folder holds no step head; it is never filled with noise.
    """
    what = "process reward model"
    return load_head(settings, path, AutoModelForTokenClassification, kind=PROCESS, name=name, what=what)


def new_step_head(loaded: LoadedModel, seed: int = 0) -> LoadedModel:
    """Put a fresh step head on the backbone of a causal language model, in place of its output head.

    Args:
        loaded: the language model; its backbone is taken over, not copied.
        seed: of the head's weights.

    Raises:
        ModelError: transformers has no token classifier for this architecture.
    """
    loaded.model.config.classifier_dropout = 0.0  # else transformers drops a tenth of what the head reads
    made = new_head(loaded, AutoModelForTokenClassification, len(LABELS), seed)
    made.model.config.id2label = LABELS
    made.model.config.label2id = {name: index for index, name in LABELS.items()}
    return made


# ---- steps in token space


class StepRow(NamedTuple):
    """A prompt and a completion as tokens, and where the steps of the completion end.

    Args:
        ids: prompt and completion, without the end token: no step is read there.
        prompt_tokens: how many of them are the prompt's.
        ends: positions in ``ids``, one for each step that is finished; two steps inside of one token share it.
        unfinished: whether the completion breaks off inside of a further step, or goes on past what was read.
    """

    ids: list[int]
    prompt_tokens: int
    ends: list[int]
    unfinished: bool


def step_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    truncated: Sequence[bool],
    *,
    separator: str,
    max_tokens: int,
) -> list[StepRow]:
    """Find where the steps of completions end.

    Args:
        tokenizer: the model's.
        prompts: token ids.
        completions: token ids, without the end token.
        truncated: whether a completion was cut off before its end.
        separator: what parts steps; what is blank is no step.
        max_tokens: of a row; the prompt loses its beginning, and only then does the completion lose its end.
    """
    texts = tokenizer.batch_decode(list(map(list, completions)), **_PLAIN)
    pieces = _pieces(tokenizer, completions)
    rows = []
    for prompt, ids, cut, text in zip(prompts, completions, truncated, texts):
        chars, unfinished = character_ends(text, separator, cut)
        ends = _token_ends(tokenizer, ids, text, chars, pieces)
        start = list(prompt)[-max(max_tokens - len(ids), 1) :]
        row = [*start, *ids][:max_tokens]
        fitting = [len(start) + end for end in ends if len(start) + end < len(row)]
        rows.append(StepRow(row, len(start), fitting, unfinished or len(fitting) < len(ends)))
    return rows


_PLAIN: dict[str, Any] = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}


def character_ends(text: str, separator: str, truncated: bool) -> tuple[list[int], bool]:
    """Return after which character each step ends, and whether a last one was begun and not finished.

    Args:
        text: a completion.
        separator: what parts steps.
        truncated: whether the text was cut off; what follows its last separator is then no finished step.
    """
    ends, at = [], 0
    for piece in text.split(separator):
        if said := piece.rstrip():
            ends.append(at + len(said))
        at += len(piece) + len(separator)
    unfinished = truncated and bool(text.rpartition(separator)[2].strip())
    return (ends[:-1] if unfinished else ends), unfinished


def _pieces(tokenizer: PreTrainedTokenizerBase, completions: Sequence[Sequence[int]]) -> Mapping[int, str]:
    """Return what each token that occurs stands for by itself."""
    known = sorted({token for ids in completions for token in ids})
    return dict(zip(known, tokenizer.batch_decode([[token] for token in known], **_PLAIN)))


def _token_ends(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str, chars: Sequence[int], pieces: Mapping[int, str]
) -> list[int]:
    """Return the index of the token that completes each character.

    Where the tokens by themselves do not add up to the text (a character of several tokens, a space that only stands
    between words), the shortest run of tokens that decodes to the text up to there is searched for.
    """
    alone = [pieces[token] for token in ids]
    if "".join(alone) == text:
        reached = list(accumulate(map(len, alone)))
        return [bisect_left(reached, char) for char in chars]

    def reaches(tokens: int, char: int) -> bool:
        return str(tokenizer.decode(list(ids[:tokens]), **_PLAIN))[:char] == text[:char]

    return [bisect_left(range(1, len(ids)), True, key=lambda tokens: reaches(tokens, char)) for char in chars]


# ---- scores


def log_odds(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return (B, T) the log-odds of "right" at every token; carries gradients.

    Args:
        model: a token classifier with two labels, perhaps inside a wrapper.
        input_ids: (B, T) padded on the right.
        attention_mask: (B, T).
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits.float()  # (B, T, 2)
    return logits[..., 1] - logits[..., 0]


def score_batch_steps(model: Any, rows: Sequence[StepRow]) -> Tensor:
    """Return (N,) float32 log-odds at the ends of all steps of rows, row by row; carries gradients."""
    device = next(model.parameters()).device
    ids, mask = pad_right([row.ids for row in rows], plain_model(model).config.pad_token_id)
    found = log_odds(model, ids.to(device), mask.to(device))
    at = [(index, end) for index, row in enumerate(rows) for end in row.ends]
    where = torch.tensor(at, dtype=torch.long, device=device).reshape(-1, 2)
    return found[where[:, 0], where[:, 1]]


@torch.no_grad()
def score_steps(
    model: Any,
    rows: Sequence[StepRow],
    *,
    batch_size: int = 64,
    batch_tokens: int | None = None,
    progress: Any = None,
) -> list[list[float]]:
    """Return the probability that each step is right, for every row.

    Args:
        model: a token classifier with two labels; the caller puts it into evaluation mode.
        rows: of ``step_rows``; one without steps costs nothing.
        batch_size: rows of a batch at most.
        batch_tokens: tokens of a batch at most, padding included; none: what suits the device.
        progress: called with the number of rows that are done, after each batch.
    """
    todo = [index for index, row in enumerate(rows) if row.ends]
    scores: list[list[float]] = [[] for _ in rows]
    budget, done = batch_tokens or token_budget(next(model.parameters()).device), len(rows) - len(todo)
    for batch in length_batches([len(rows[index].ids) for index in todo], batch_size, budget):
        chosen = [todo[place] for place in batch]
        found = score_batch_steps(model, [rows[index] for index in chosen]).sigmoid().cpu()
        for index, part in zip(chosen, found.split([len(rows[index].ends) for index in chosen])):
            scores[index] = part.tolist()
        done += len(chosen)
        if progress is not None:
            progress(done)
    return scores
