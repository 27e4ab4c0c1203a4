"""Tokenizers: one built offline for presets, and new tokens for any of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Used where a tokenizer brings no chat template. The roles alone part the messages: no line ends between them, which
transformers' Jinja (``trim_blocks``) would drop after a block anyway."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of 256 bytes and six special tokens: any text, no download, no training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    vocabulary = {token: index for index, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    fast.add_special_tokens({"additional_special_tokens": special[3:]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of everything that turns text into ids: vocabulary, merges, normalizer, ..., and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)  # a tokenizer in pure Python has none
    rules = json.loads(backend.to_str()) if backend else {}
    rules = {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}  # of the last call
    content = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template or "", rules])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def add_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], *, seed: int
) -> list[int]:
    """Give each token an id and an embedding row, in the input embedding and in the output head, tied or not.

    A new row starts at the mean of the old rows plus a tenth of their spread in noise: at the mean a new token is
    as likely as a typical one, and the noise tells the new rows apart.

    Returns:
        The ids of all ``tokens``; rows of tokens that were there before are left as they are.
    """
    known = tokenizer.get_vocab()
    new = [token for token in tokens if token not in known]
    if new:
        tokenizer.add_tokens(new)
        old_rows = min(len(known), model.get_input_embeddings().weight.shape[0])
        rows = tokenizer.convert_tokens_to_ids(new)
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        _start_rows(model, rows, old_rows, seed)
    return tokenizer.convert_tokens_to_ids(list(tokens))


def matrices(model: PreTrainedModel) -> list[Any]:
    """Return the layers that hold a row per token: the input embedding, and the output head where it is not tied."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return [embedding] if head.weight is embedding.weight else [embedding, head]


@torch.no_grad()
def _start_rows(model: PreTrainedModel, rows: Sequence[int], old_rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in (layer.weight for layer in matrices(model)):
        old = weight[:old_rows].float()  # (V, D)
        noise = torch.randn(len(rows), weight.shape[1], generator=generator).to(old.device)
        weight[list(rows)] = (old.mean(0) + 0.1 * old.std(0) * noise).to(weight.dtype)


def train_only_rows(model: PreTrainedModel, rows: Sequence[int]) -> None:
    """Freeze everything but these rows of the input embedding and of the output head.

    The gradient of every other row is zeroed, so Adam leaves those rows bit for bit as they are; weight decay
    would not, which is why ``freeze_backbone`` goes with ``weight_decay: 0``.
    """
    model.requires_grad_(False)
    for weight in (layer.weight for layer in matrices(model)):
        keep = torch.zeros(weight.shape[0], 1)
        keep[list(rows)] = 1.0
        weight.requires_grad_(True)
        weight.register_hook(lambda gradient, keep=keep: gradient * keep.to(gradient))
