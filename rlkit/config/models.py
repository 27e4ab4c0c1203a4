"""Model settings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from rlkit.component import Settings


class AdapterSettings(Settings):
    """LoRA (Hu et al. 2021, arXiv 2106.09685); merged into the model when its stage ends, so before RL."""

    rank: int = Field(16, ge=1)
    """r, the rank of the update."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input; policy training switches it off."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Which layers get an adapter. New token rows are always trained beside it."""


class CausalLMSettings(Settings):
    """A causal language model: a preset made from a config, or a Hugging Face checkpoint."""

    type: Literal["causal_lm"] = "causal_lm"
    preset: Literal["nano", "micro", "mini"] = "nano"
    """A Qwen2 architecture from scratch, tokenizer included: nano (0.6 M parameters), micro (4 M), mini (30 M)."""
    path: str | None = None
    """A folder (``~`` is the home folder) or hub id of a Hugging Face causal language model; wins over ``preset``."""
    tokenizer: str | None = Field(None, min_length=1)
    """A folder or hub id of another tokenizer, which must have a row for every token in a model at ``path``; none: the
    model's own. It is saved with the model, so later stages have it too."""
    hidden_size: int | None = Field(None, ge=8)
    """Overrides the preset's width; a multiple of 64 keeps its head size."""
    intermediate_size: int | None = Field(None, ge=8)
    """Overrides the preset's feed-forward width."""
    layers: int | None = Field(None, ge=1)
    """Overrides the preset's depth."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on embeddings and each layer's output in SFT of a preset; policy training switches it off."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """The dtype of the weights; auto: the checkpoint's own."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    """The attention implementation; prompt-once training needs sdpa or eager."""
    adapter: AdapterSettings | None = None
    """LoRA for SFT and policy training; none: all weights are trained."""
    freeze_backbone: bool = False
    """Train only the rows of new tokens, in the input embedding and the output head."""
    trust_remote_code: bool = False
    """Run code that lies in the checkpoint; only for checkpoints whose code was read."""

    @field_validator("path", "tokenizer")
    @classmethod
    def _expand_home(cls, path: str | None) -> str | None:
        return str(Path(path).expanduser()) if path and path.startswith("~") else path
