"""Create a preset, or load a Hugging Face causal language model, with its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from rlkit.config.models import AdapterSettings, CausalLMSettings
from rlkit.errors import ModelError
from rlkit.models.presets import preset_config
from rlkit.models.tokenizer import CHAT_TEMPLATE, add_tokens, byte_tokenizer, matrices, train_only_rows

GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that add nothing to ``tokenizer.json``, by the names that ``tokenizer_config.json`` gives them."""


class LoadedModel(NamedTuple):
    """A causal language model, its tokenizer, and the ids of the tokens that the domain added."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    new_token_ids: list[int]


def quiet() -> None:
    """Keep transformers' own progress bars and notes off the terminal; its errors stay."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_causal_lm(
    settings: CausalLMSettings, *, path: Path | None = None, new_tokens: Sequence[str] = (), seed: int = 0
) -> LoadedModel:
    """Create or load a model and give the domain's tokens rows in it.

    Args:
        settings: the recipe's model.
        path: the model of an earlier stage; wins over the settings' path and preset.
        new_tokens: tokens that the tokenizer must hold, each as one id.
        seed: of the weights of a preset and of new rows.

    Raises:
        ModelError: nothing loadable lies at the path.
    """
    source = path or settings.path
    if source is None:
        return _create(settings, new_tokens, seed)
    model, tokenizer = _load(str(source), settings)
    return LoadedModel(model, tokenizer, add_tokens(model, tokenizer, new_tokens, seed=seed))


def _create(settings: CausalLMSettings, new_tokens: Sequence[str], seed: int) -> LoadedModel:
    tokenizer = _named_tokenizer(settings) if settings.tokenizer else byte_tokenizer()
    tokenizer.add_tokens(list(new_tokens))
    set_seed(seed)
    config = preset_config(settings, tokenizer)
    config._attn_implementation = settings.attention
    model = Qwen2ForCausalLM(config).to(_dtype(settings) if settings.dtype != "auto" else torch.float32)
    model.generation_config.update(pad_token_id=tokenizer.pad_token_id)
    return LoadedModel(model, tokenizer, tokenizer.convert_tokens_to_ids(list(new_tokens)))


def _load(source: str, settings: CausalLMSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = load_checkpoint(source, settings, AutoModelForCausalLM, "causal language model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def load_checkpoint(
    source: str, settings: CausalLMSettings, form: Any, what: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer as they were saved, a chat template added where there is none.

    Args:
        source: a folder or hub id.
        settings: dtype, attention implementation, and whether remote code may run.
        form: one of transformers' ``AutoModelFor...``.
        what: how messages call such a model.

    Raises:
        ModelError: nothing loadable lies there, weights are missing, or the named tokenizer does not fit.
    """
    named = source == settings.path and settings.tokenizer is not None
    if source.startswith((".", "/", "~")) and not Path(source).is_dir():
        raise ModelError(f"model.path: there is no folder {source!r}; name the folder of a Hugging Face model")
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ModelError(f"model.path: no config.json in {source!r}; name the folder of a Hugging Face model")
    try:
        tokenizer = _named_tokenizer(settings) if named else _load_tokenizer(source, settings)
        model, found = form.from_pretrained(
            source,
            dtype="auto" if settings.dtype == "auto" else _dtype(settings),
            attn_implementation=settings.attention,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = _first_line(error)
        raise ModelError(
            f"model.path: cannot load {source!r}: {reason}; name a folder or hub id of a {what}"
        ) from error
    if missing := sorted(found["missing_keys"]):  # transformers would fill them with noise
        raise ModelError(
            f"model.path: {source!r} lacks {len(missing)} of its weights, such as {missing[0]!r}; "
            f"name the folder of a whole {what}"
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    if named:
        _fit(model, tokenizer, settings)
    return model, tokenizer


def tokenizer_of(settings: CausalLMSettings) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the recipe's model alone, as it is before a domain adds tokens.

    Raises:
        ModelError: there is none.
    """
    if settings.tokenizer:
        return _named_tokenizer(settings)
    if settings.path is None:
        return byte_tokenizer()
    try:
        tokenizer = _load_tokenizer(settings.path, settings)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path: no tokenizer loads from {settings.path!r}: {_first_line(error)}") from error
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _named_tokenizer(settings: CausalLMSettings) -> PreTrainedTokenizerBase:
    """Load the tokenizer that the settings name: by the files of a Hugging Face tokenizer, never by unpickling."""
    source = str(settings.tokenizer)
    if Path(source).is_file():
        raise ModelError(f"model.tokenizer: a file, got {source!r}; name the folder that holds tokenizer.json")
    try:
        tokenizer = _load_tokenizer(source, settings)
    except (OSError, ValueError) as error:
        reason = _first_line(error)
        raise ModelError(f"model.tokenizer: cannot load {source!r}: {reason}; name a folder or hub id") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".: ")


def _fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: CausalLMSettings) -> None:
    """Let a model end its answers as another tokenizer does.

    Raises:
        ModelError: the tokenizer has tokens that the model has no row for.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"model.tokenizer: {settings.tokenizer!r} has {len(tokenizer)} tokens, but the model has {rows} rows; "
            "name the tokenizer that the model was trained with"
        )
    for config in (model.config, model.generation_config):
        if config is not None:
            config.eos_token_id = tokenizer.eos_token_id


def _load_tokenizer(source: str, settings: CausalLMSettings) -> PreTrainedTokenizerBase:
    """Load a tokenizer as it was saved.

    ``AutoTokenizer`` (transformers 5.23) reopens a generic tokenizer as the class that goes with the model: beside a
    Qwen2 model ours would come back as a ``Qwen2Tokenizer``, which normalizes text and adds a token without a row.
    """
    folder = Path(source)
    if (folder / "tokenizer.json").is_file() and (folder / "tokenizer_config.json").is_file():
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        if config.get("tokenizer_class") in GENERIC_TOKENIZERS and "auto_map" not in config:
            return PreTrainedTokenizerFast.from_pretrained(source)
    return AutoTokenizer.from_pretrained(source, trust_remote_code=settings.trust_remote_code)


def _dtype(settings: CausalLMSettings) -> torch.dtype:
    return getattr(torch, settings.dtype)


def make_trainable(loaded: LoadedModel, settings: CausalLMSettings) -> Any:
    """Choose what is trained: everything, a LoRA adapter with the new rows, or the new rows alone.

    Returns:
        The model, or the PEFT model around it.
    """
    if settings.freeze_backbone:
        if not loaded.new_token_ids:
            raise ModelError(
                "model.freeze_backbone: the domain added no tokens, so nothing would be trained; set it to false"
            )
        train_only_rows(loaded.model, loaded.new_token_ids)
    if settings.adapter is None:
        return loaded.model
    return _with_adapter(loaded, settings.adapter)


def _with_adapter(loaded: LoadedModel, adapter: AdapterSettings) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = adapter.target_modules
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        trainable_token_indices=_new_rows(loaded),
    )
    model = get_peft_model(loaded.model, config)
    head = loaded.model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None  # PEFT's wrapper around new rows hides it, and TRL's fused loss reads it
    return model


def _new_rows(loaded: LoadedModel) -> dict[str, list[int]] | None:
    """Return the rows of new tokens by the name of the layer that holds them: a head that is not tied has its own."""
    if not loaded.new_token_ids:
        return None
    names = {id(module): name.rpartition(".")[2] for name, module in loaded.model.named_modules()}
    return {names[id(layer)]: loaded.new_token_ids for layer in matrices(loaded.model)}


def merged(model: Any) -> PreTrainedModel:
    """Return the plain model, with an adapter merged into its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def add_dropout(model: PreTrainedModel, probability: float) -> None:
    """Apply dropout to the embeddings and to what attention and feed-forward layers add, in training mode only.

    Qwen2 has attention dropout alone; small models trained from scratch on little data need more. Hooks leave
    weights and saved files as they are.
    """
    if probability == 0:
        return

    def drop(module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        first = output[0] if isinstance(output, tuple) else output
        dropped = nn.functional.dropout(first, probability)
        return (dropped, *output[1:]) if isinstance(output, tuple) else dropped

    model.get_input_embeddings().register_forward_hook(drop)
    for layer in model.get_decoder().layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)
