"""Reaching into causal LMs, and which of them may be fed packed rows."""

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlkit.errors import ModelError
from rlkit.models.attention import additive_mask, base_model, decoder, head, head_logits, packing_problem

# peft 0.21 asks transformers 5.23 for a property that was renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ALIASES = {"GPT2Config": {"n_embd": 16, "n_head": 2, "n_layer": 2}, "BloomConfig": {"n_head": 2, "n_layer": 2}}


def build(name: str, **changes: Any) -> Any:
    """Return a tiny random causal LM of a config class."""
    config_class: type[PretrainedConfig] = getattr(transformers, name)
    settings = ({"vocab_size": 40, "hidden_size": 16} | ALIASES[name]) if name in ALIASES else SMALL
    torch.manual_seed(0)
    attention = changes.pop("attention", "sdpa")
    return AutoModelForCausalLM.from_config(config_class(**(settings | changes)), attn_implementation=attention).eval()


def with_adapter(model: Any, **changes: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(target_modules=["q_proj"], **changes))


@pytest.mark.parametrize("name", ["Qwen2Config", "Qwen3Config", "LlamaConfig", "GPT2Config", "GemmaConfig"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_full_attention_may_be_packed(name: str, attention: str) -> None:
    assert packing_problem(build(name, attention=attention)) is None


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_attention"),
        ("MistralConfig", {"sliding_window": 8}, "sliding window of 8"),
        ("Gemma2Config", {"sliding_window": 8}, "sliding_attention"),
        ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}, "conv"),
        ("BloomConfig", {}, "position_ids"),
        ("GPTNeoConfig", {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}, "local"),
        ("FalconConfig", {"alibi": True}, "alibi"),
        ("MambaConfig", {}, "position_ids"),
    ],
)
def test_models_that_need_more_than_a_mask_are_refused(name: str, changes: dict[str, Any], reason: str) -> None:
    accepted = {"GPTNeoConfig": {"vocab_size", "hidden_size"}, "FalconConfig": SMALL.keys() - {"head_dim"}}
    settings = {key: value for key, value in SMALL.items() if key in accepted.get(name, SMALL.keys())}
    config_class = getattr(transformers, name)
    if name in ALIASES:
        settings = {"vocab_size": 40, "hidden_size": 16} | ALIASES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_class(**(settings | changes)))
    assert reason in (packing_problem(model) or "")


def test_an_attention_that_ignores_masks_is_refused() -> None:
    model = build("Qwen2Config")
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in (packing_problem(model) or "")


def test_an_adapter_hides_nothing() -> None:
    sliding = build("MistralConfig", sliding_window=8)
    assert "sliding window" in (packing_problem(with_adapter(sliding)) or "")
    model = build("Qwen2Config")
    wrapped = with_adapter(model)
    assert packing_problem(wrapped) is None
    assert base_model(wrapped) is model
    assert decoder(wrapped) is model.model
    assert head(wrapped) is model.lm_head


def test_virtual_tokens_are_refused() -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(build("Qwen2Config"), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="PROMPT_TUNING"):
        decoder(model)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ModelError, match="Qwen2Model"):
        head(build("Qwen2Config").model)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Qwen2Config", {}),
        ("GPT2Config", {}),
        ("Gemma2Config", {"final_logit_softcapping": 0.05, "attention": "eager"}),
        ("CohereConfig", {"logit_scale": 0.25}),
        ("GraniteConfig", {"logits_scaling": 3.0}),
        ("PhiConfig", {}),  # its head has a bias
    ],
)
def test_head_logits_are_the_models_own(name: str, changes: dict[str, Any]) -> None:
    if name in ("PhiConfig", "CohereConfig"):
        changes = changes | {"num_key_value_heads": 2}
    model = build(name, **changes)
    ids, some = torch.randint(3, 40, (2, 6)), torch.tensor([3, 7, 30])
    with torch.no_grad():
        own, states = model(input_ids=ids).logits, decoder(model)(input_ids=ids).last_hidden_state
        torch.testing.assert_close(head_logits(model, states), own)
        torch.testing.assert_close(head_logits(model, states, some), own[..., some])


def test_an_adapter_on_the_head_takes_part_in_its_rows() -> None:
    model = with_adapter(build("Qwen2Config", tie_word_embeddings=False), init_lora_weights=False)
    from peft import LoraConfig

    model.add_adapter("second", LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    model.set_adapter("second")
    ids, some = torch.randint(3, 40, (2, 6)), torch.tensor([3, 7, 30])
    with torch.no_grad():
        own, states = model(input_ids=ids).logits, decoder(model)(input_ids=ids).last_hidden_state
        torch.testing.assert_close(head_logits(model, states, some), own[..., some])


def test_tied_embeddings_get_their_gradient_through_the_rows() -> None:
    model = build("Qwen2Config", tie_word_embeddings=True)
    head_logits(model, torch.ones(1, 16), torch.tensor([3, 7])).sum().backward()
    grad = model.model.embed_tokens.weight.grad
    assert grad.abs().sum(1).nonzero().flatten().tolist() == [3, 7]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_additive_mask_hides_what_is_not_visible(attention: str) -> None:
    model = build("Qwen2Config", attention=attention)
    ids = torch.randint(3, 40, (1, 6))
    visible = torch.ones(6, 6).tril().bool()
    visible[3:, :3] = False  # the second half sees only itself
    with torch.no_grad():
        packed = decoder(model)(
            input_ids=ids,
            attention_mask=additive_mask(visible[None], torch.float32),
            position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]),
        ).last_hidden_state
        alone = decoder(model)(input_ids=ids[:, 3:]).last_hidden_state
    torch.testing.assert_close(packed[:, 3:], alone)
