"""How to reach into a causal language model, and whether its rows may be packed.

A packed row holds several sequences that a 4-D additive mask keeps apart: the completions of one prompt, or the beams
of one search. transformers (5.23, ``masking_utils._preprocess_mask_arguments``) uses a 4-D mask *as it is*, in place of
the mask that each layer would have built, so a model that needs more than "visible or not" is silently wrong:
``packing_problem`` names those.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from rlkit.errors import ModelError

PACKABLE_ATTENTION = ("sdpa", "eager")


def base_model(model: nn.Module) -> nn.Module:
    """Return the Hugging Face causal LM inside a PEFT wrapper (adapters stay active in its layers), else ``model``.

    Raises:
        ModelError: the adapter adds virtual tokens outside of the layers; a forward below the wrapper would lose them.
    """
    unwrap = getattr(model, "get_base_model", None)
    if unwrap is None:
        return model
    adapter = cast(Any, model).active_peft_config
    if adapter.is_prompt_learning:
        kind = str(getattr(adapter.peft_type, "value", adapter.peft_type))
        raise ModelError(f"adapter: its virtual tokens lie outside of the model, got {kind!r}; use LoRA")
    return cast(nn.Module, unwrap())


def decoder(model: nn.Module) -> nn.Module:
    """Return the transformer below the output head: token ids in, ``last_hidden_state`` (B, T, D) out."""
    return cast(nn.Module, cast(Any, base_model(model)).get_decoder())


def head(model: nn.Module) -> nn.Module:
    """Return the output head: states (..., D) in, logits (..., V) out.

    Raises:
        ModelError: the model has none.
    """
    inner = base_model(model)
    module = cast(Any, inner).get_output_embeddings()
    if module is None:
        raise ModelError(f"model: has no output head, got {type(inner).__name__!r}; load it as a causal language model")
    return cast(nn.Module, module)


def head_logits(model: nn.Module, states: Tensor, token_ids: Tensor | None = None) -> Tensor:
    """Apply the output head, and what the model does to its logits, to some states only.

    Args:
        model: the causal LM, perhaps inside a PEFT wrapper.
        states: (..., D) of the decoder; carries the gradient.
        token_ids: (S,) the vocabulary entries to compute (None: all). A plain head computes only those; its rows are
            taken inside of the forward, so tied embeddings receive their gradient.

    Returns:
        (..., V), or (..., S) in the order of ``token_ids``.
    """
    layer, config = head(model), cast(Any, decoder(model)).config
    if token_ids is None:
        logits = layer(states)
    elif type(layer) is nn.Linear:
        bias = None if layer.bias is None else layer.bias.index_select(0, token_ids)
        logits = nn.functional.linear(states, layer.weight.index_select(0, token_ids), bias)
    else:  # an adapter's layer: its weight alone would leave the adapter out
        logits = layer(states).index_select(-1, token_ids)
    scale = (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
    logits = logits if scale == 1 else logits * scale  # Cohere multiplies, Granite divides
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    return logits if cap is None else cap * torch.tanh(logits / cap)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn "query sees key" into what every attention implementation adds to its scores.

    Additive, because a boolean 4-D mask is silently wrong under eager attention (transformers 5.23). Every query must
    see at least one key, itself where nothing else is left: a row of nothing but minima turns into NaN once a cast to
    a narrower type makes the minimum ``-inf``.

    Args:
        visible: (B, Q, K) True where the query sees the key.
        dtype: of the attention scores: the model's.

    Returns:
        (B, 1, Q, K), 0 where visible, else the smallest number of ``dtype``.
    """
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def packing_problem(model: nn.Module) -> str | None:
    """Return why packed rows would be wrong for this model, None where they are right."""
    inner = decoder(model)
    config: Any = inner.config
    name = type(inner).__name__
    attention = config._attn_implementation
    if attention not in PACKABLE_ATTENTION:
        return f"attention implementation {attention!r} ignores a 4-D additive mask (packable: sdpa, eager)"
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        return f"{name} takes no position_ids"
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())}
    if kinds := kinds - {"full_attention", "global"}:
        return f"{name} has layers of type {', '.join(sorted(kinds))}"
    if getattr(inner, "_is_stateful", False):
        return f"{name} has recurrent layers"
    if getattr(config, "sliding_window", None):
        return f"{name} attends within a sliding window of {config.sliding_window}"
    if getattr(config, "alibi", False):
        return f"{name} derives distances from the order of the row (alibi), not from position_ids"
    return None
