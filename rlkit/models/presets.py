"""Small Qwen2 architectures that are created, not downloaded."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase, Qwen2Config

from rlkit.config.models import CausalLMSettings

WIDTHS = {  # hidden_size, intermediate_size, layers
    "nano": (128, 256, 2),
    "micro": (256, 1024, 4),
    "mini": (512, 2048, 8),
}


def preset_config(settings: CausalLMSettings, tokenizer: PreTrainedTokenizerBase) -> Qwen2Config:
    """Return the architecture of a preset for a tokenizer's vocabulary; heads are 64 wide."""
    hidden, intermediate, layers = WIDTHS[settings.preset]
    hidden = settings.hidden_size or hidden
    heads = max(1, hidden // 64)
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=settings.intermediate_size or intermediate,
        num_hidden_layers=settings.layers or layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
