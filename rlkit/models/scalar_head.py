"""Scalar heads: a language model's backbone with one number per sequence on top, made new or loaded with its head.

The model is transformers' sequence classifier with one label, so that a saved folder scores alike in any other tool.
transformers (5.23, ``GenericForSequenceClassification``) reads the number at the last token that is not the padding
token. Where padding and end token are one, the end of an answer would not count: ``choose_padding`` takes another.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rlkit.config.models import AdapterSettings, CausalLMSettings
from rlkit.errors import ModelError
from rlkit.models.head_files import OUTCOME, head_problem
from rlkit.models.load import LoadedModel, load_checkpoint

logger = logging.getLogger(__name__)


def load_scalar_head(
    settings: CausalLMSettings, path: str | Path | None = None, *, name: str = "model.path"
) -> LoadedModel:
    """Load a model together with its saved reward head.

    Args:
        settings: dtype, attention implementation, and whether remote code may run.
        path: the model's folder; none: ``settings.path``.
        name: how messages call the setting that names the folder.

    Raises:
        ModelError: the folder holds no head; it is never filled with noise.
    """
    form = AutoModelForSequenceClassification
    return load_head(settings, path, form, kind=OUTCOME, name=name, what="reward model")


def load_head(
    settings: CausalLMSettings, path: str | Path | None, form: Any, *, kind: str, name: str, what: str
) -> LoadedModel:
    """Load a model together with its saved head.

    Args:
        settings: dtype, attention implementation, and whether remote code may run.
        path: the model's folder; none: ``settings.path``.
        form: one of transformers' ``AutoModelFor...``.
        kind: of reward model, one of those of ``head_files``.
        name: how messages call the setting that names the folder.
        what: how messages call such a model.

    Raises:
        ModelError: the folder holds no such head.
    """
    source = str(Path(path or settings.path or "").expanduser())
    if problem := head_problem(source, name, kind):
        raise ModelError(problem)
    model, tokenizer = load_checkpoint(source, settings, form, what)
    if model.config.pad_token_id is None:
        choose_padding(model, tokenizer)
    else:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    return LoadedModel(model, tokenizer, [])


def new_scalar_head(loaded: LoadedModel, seed: int = 0) -> LoadedModel:
    """Put a fresh scalar head on the backbone of a causal language model, in place of its output head.

    Args:
        loaded: the language model, from a preset, a stage or a checkpoint; its backbone is taken over, not copied.
        seed: of the head's weights.

    Raises:
        ModelError: transformers has no sequence classifier for this architecture.
    """
    return new_head(loaded, AutoModelForSequenceClassification, 1, seed)


def new_head(loaded: LoadedModel, form: Any, labels: int, seed: int) -> LoadedModel:
    """Put a fresh head on the backbone of a causal language model.

    Args:
        loaded: the language model; its backbone is taken over, not copied.
        form: one of transformers' ``AutoModelFor...Classification``.
        labels: numbers that the head gives.
        seed: of the head's weights.

    Raises:
        ModelError: transformers has no such classifier for this architecture.
    """
    lm, config = loaded.model, loaded.model.config
    config.num_labels = labels
    try:
        with torch.device("meta"):  # the whole module is described, but only its head is made
            model = form.from_config(config)
    except ValueError as error:
        raise ModelError(
            f"model: there is no reward head for {type(lm).__name__!r} in transformers; choose another architecture"
        ) from error
    setattr(model, model.base_model_prefix, lm.base_model)
    set_seed(seed)
    _make_head(model, next(lm.base_model.parameters()))
    choose_padding(model, loaded.tokenizer)
    return LoadedModel(model, loaded.tokenizer, loaded.new_token_ids)


def _make_head(model: PreTrainedModel, like: Tensor) -> None:
    """Give the parameters outside of the backbone memory and random values."""
    std = getattr(model.config.get_text_config(), "initializer_range", 0.02)
    for name, child in model.named_children():
        if name != model.base_model_prefix:
            child.to_empty(device=like.device).to(like.dtype)
            for key, parameter in child.named_parameters():
                nn.init.zeros_(parameter) if key.endswith("bias") else nn.init.normal_(parameter, std=std)


def choose_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set a padding token in both that is not the end token, so that the end of an answer is seen.

    A special token of the tokenizer that never ends a text serves: it changes neither the vocabulary nor its hash.
    """
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = model.get_input_embeddings().weight.shape[0]
    if pad is None or pad == end:
        others = [tokenizer.unk_token_id, tokenizer.bos_token_id, *tokenizer.all_special_ids]
        pad = next((token for token in others if token is not None and token != end and token < rows), end)
    if pad is None:
        raise ModelError("model: its tokenizer has neither a padding nor an end token; add one to the tokenizer")
    if pad == end:
        logger.warning("the tokenizer's end token is its only special token, so the end of an answer is not scored")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = pad


def scalar_trainable(
    loaded: LoadedModel, adapter: AdapterSettings | None, freeze_backbone: bool, task: str = "SEQ_CLS"
) -> Any:
    """Choose what is trained: everything, the head alone, or a LoRA adapter with the head.

    Args:
        loaded: the model with its head.
        adapter: LoRA; none: without.
        freeze_backbone: train the head alone.
        task: PEFT's name for the kind of head.

    Returns:
        The model, or the PEFT model around it, which ``rlkit.models.load.merged`` makes plain again.

    Raises:
        ModelError: an adapter on a frozen backbone.
    """
    if freeze_backbone and adapter is not None:
        raise ModelError("freeze_backbone: with model.adapter the adapter would stay frozen too; leave one of them out")
    if freeze_backbone:
        loaded.model.base_model.requires_grad_(False)
    if adapter is None:
        return loaded.model
    from peft import LoraConfig, get_peft_model

    targets = adapter.target_modules
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=["score", "classifier"],  # heads; of token classifiers PEFT would adapt them as well
        task_type=task,  # PEFT trains and saves the head whole
    )
    return get_peft_model(loaded.model, config)


def sequence_scores(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return (B,) the head's number at the last real token of each row; carries gradients.

    Args:
        model: a sequence classifier with one label, perhaps inside a wrapper.
        input_ids: (B, T) padded on the right or on the left with the model's padding token.
        attention_mask: (B, T).
    """
    takes = inspect.signature(plain_model(model).forward).parameters
    further: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
    if "position_ids" in takes and not attention_mask[:, 0].all():  # else a row's positions would count its padding
        further["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return model(input_ids=input_ids, attention_mask=attention_mask, **further).logits.squeeze(-1)


def plain_model(model: Any) -> Any:
    """Return the Hugging Face model inside DDP, DeepSpeed or PEFT."""
    while not isinstance(model, PreTrainedModel):
        model = model.get_base_model() if hasattr(model, "get_base_model") else model.module
    return model


def token_budget(device: torch.device) -> int:
    """Return how many tokens are best scored together: on a CPU few, whose activations stay in its caches."""
    return 1024 if device.type == "cpu" else 16_384


def length_batches(lengths: Sequence[int], batch_size: int, batch_tokens: int) -> list[list[int]]:
    """Cut rows, the longest first, into batches of like lengths.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch at most.
        batch_tokens: tokens of a batch at most, padding included; a longer row is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        width = lengths[batches[-1][0]] if batches else 0
        if not batches or len(batches[-1]) == batch_size or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


@torch.no_grad()
def score_rows(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int = 64,
    batch_tokens: int | None = None,
    progress: Any = None,
) -> Tensor:
    """Score rows of token ids in batches of like lengths.

    Args:
        model: a sequence classifier with one label; the caller puts it into evaluation mode.
        rows: token ids, unpadded; none is empty.
        batch_size: rows of a batch at most.
        batch_tokens: tokens of a batch at most, padding included; none: what suits the device.
        progress: called with the number of rows that are done, after each batch.

    Returns:
        (N,) float32 on the CPU, in the order of ``rows``.
    """
    scores, done = torch.zeros(len(rows)), 0
    batch_tokens = batch_tokens or token_budget(next(model.parameters()).device)
    for batch in length_batches([len(row) for row in rows], batch_size, batch_tokens):
        scores[batch] = score_batch(model, [rows[index] for index in batch]).cpu()
        done += len(batch)
        if progress is not None:
            progress(done)
    return scores


def score_batch(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Return (B,) float32 scores of rows that are padded to the longest of them; carries gradients."""
    device = next(model.parameters()).device
    ids, mask = pad_right(rows, plain_model(model).config.pad_token_id)
    return sequence_scores(model, ids.to(device), mask.to(device)).float()


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B, T) of rows of different lengths."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])  # (B, T)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(width) < lengths[:, None]).long()


def text_ids(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str, bool]], max_tokens: int) -> list:
    """Tokenize prompts and completions apart, as sampling does; long rows are cut on the left, so the answer stays.

    Args:
        tokenizer: the model's.
        pairs: rendered prompt, completion without its end token, and whether the end token follows.
        max_tokens: of a row.
    """
    if not pairs:
        return []
    prompts, completions, ends = zip(*pairs)
    tokenize = lambda texts: tokenizer(list(texts), add_special_tokens=False).input_ids  # noqa: E731
    rows = zip(tokenize(prompts), tokenize(completions), ends)
    return [
        [*prompt, *completion, *([tokenizer.eos_token_id] if end else [])][-max_tokens:]
        for prompt, completion, end in rows
    ]
