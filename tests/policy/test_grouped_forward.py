"""The prompt computed once per group gives what separate forwards give."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rlkit.errors import DeadPrefixError, ModelError, TrainingError
from rlkit.policy import completion_states, grouped_forward
from rlkit.policy.completion_states import dense_states, grouped_states
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import PolicyOutput, expected_gain, policy_forward
from rlkit.recsys.trie import Trie

VOCABULARY = 40
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2Config": SMALL | {"tie_word_embeddings": True},
    "LlamaConfig": SMALL,
    "GPT2Config": {
        "vocab_size": VOCABULARY,
        "n_embd": 16,
        "n_head": 2,
        "n_layer": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    | dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0),
    "MistralConfig": SMALL | {"sliding_window": 4},
}
SEQUENCES = [[10, 20, 30], [10, 20, 31], [10, 21, 30], [11, 20, 32], [12, 22, 33], [12, 23, 30]]


def build(name: str = "Qwen2Config", attention: str = "sdpa") -> Any:
    """Return a tiny causal LM whose weights are large enough for attention to matter."""
    torch.manual_seed(0)
    config = getattr(transformers, name)(**CONFIGS[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.3)
    return model


def example() -> GroupBatch:
    """Return padded prompts and completions of 1 to 3 tokens that follow the trie; one completion is absent."""
    torch.manual_seed(1)
    prompts, lengths = torch.randint(3, VOCABULARY, (3, 9)), torch.tensor([9, 4, 1])
    prompt_mask = torch.arange(9) >= 9 - lengths[:, None]
    completions = torch.tensor(SEQUENCES)[torch.randint(0, len(SEQUENCES), (3, 4))]  # (3, 4, 3)
    mask = torch.ones(3, 4, 3, dtype=torch.bool)
    mask[1, 2] = False  # absent
    completions[1, 2] = 39  # ... and what lies there is no path of the trie
    return GroupBatch(prompts, prompt_mask, completions, mask)


def ragged() -> GroupBatch:
    """Return the example with completions of different lengths, and garbage behind their ends."""
    batch = example()
    ends = torch.randint(1, 4, (3, 4))
    batch.mask &= torch.arange(3) < ends[..., None]
    batch.completions = torch.where(batch.mask, batch.completions, torch.randint(3, VOCABULARY, (3, 4, 3)))
    return batch


def each_alone(model: nn.Module, batch: GroupBatch, reading: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
    """Run every completion alone, unpadded; ``reading`` turns (logits (V,), tokens so far, token) into ()."""
    result = torch.zeros(batch.mask.shape)
    for b, g in batch.mask.any(-1).nonzero().tolist():
        prompt = batch.prompts[b, batch.prompt_mask[b]]
        completion = batch.completions[b, g, batch.mask[b, g]]
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0]
        for c, token in enumerate(completion.tolist()):
            value = reading(logits[len(prompt) - 1 + c], completion[:c], token)
            result = result.index_put((torch.tensor(b), torch.tensor(g), torch.tensor(c)), value)
    return result


def over_vocabulary(logits: Tensor, before: Tensor, token: int) -> Tensor:
    return logits.log_softmax(-1)[token]


def gradient(model: nn.Module, values: Tensor) -> Tensor:
    """Return the flat gradient of a sum of the values that weighs each differently."""
    model.zero_grad()
    (values * torch.linspace(-1, 2, values.numel()).view(values.shape)).sum().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def assert_equal_to(model: nn.Module, output: PolicyOutput, right: Tensor) -> None:
    torch.testing.assert_close(output.logprobs, right, rtol=1e-5, atol=1e-5)
    ours, theirs = gradient(model, output.logprobs), gradient(model, right)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4


@pytest.mark.parametrize("mode", ["grouped", "dense"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["Qwen2Config", "LlamaConfig", "GPT2Config"])
def test_log_probs_and_gradients_are_those_of_separate_forwards(name: str, attention: str, mode: Any) -> None:
    model, batch = build(name, attention), ragged()
    output = policy_forward(model, batch, mode=mode)
    assert output.entropy is None
    assert output.hidden is None
    assert_equal_to(model, output, each_alone(model, batch, over_vocabulary))


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (1, 3)])
def test_single_tokens_and_single_completions_work(shape: tuple[int, int]) -> None:
    model, batch = build(), example()
    batch = GroupBatch(
        batch.prompts,
        batch.prompt_mask,
        batch.completions[:, : shape[0], : shape[1]],
        batch.mask[:, : shape[0], : shape[1]],
    )
    assert_equal_to(model, policy_forward(model, batch, mode="grouped"), each_alone(model, batch, over_vocabulary))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 with transformers 5.23
def test_lora_trains_as_in_separate_forwards() -> None:
    model = get_peft_model(build(), LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    batch = ragged()
    assert_equal_to(model, policy_forward(model, batch, mode="grouped"), each_alone(model, batch, over_vocabulary))
    adapted = policy_forward(model, batch).logprobs
    with model.disable_adapter():
        assert not torch.allclose(policy_forward(model, batch).logprobs, adapted)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("adapter", [False, True])
def test_activation_checkpointing_changes_nothing(adapter: bool) -> None:
    model, batch = build(), ragged()
    if adapter:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    model.train()
    right = each_alone(model, batch, over_vocabulary)
    model.activation_checkpointing_enable()
    assert_equal_to(model, policy_forward(model, batch, mode="grouped"), right)


def test_bfloat16_is_close() -> None:
    model, batch = build(), ragged()
    with torch.no_grad():
        right = each_alone(model, batch, over_vocabulary)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = policy_forward(model, batch, mode="grouped").logprobs
        pure = policy_forward(build().bfloat16(), batch, mode="grouped").logprobs
    for logprobs in (mixed, pure):
        assert logprobs.dtype == torch.float32
        torch.testing.assert_close(logprobs, right, rtol=0.1, atol=0.1)


def test_autocast_gradients_flow() -> None:
    model, batch = build(), ragged()
    right = gradient(model, policy_forward(model, batch, mode="grouped").logprobs)
    with torch.autocast("cpu", torch.bfloat16):
        values = policy_forward(model, batch, mode="grouped").logprobs
    assert float((gradient(model, values) - right).norm() / right.norm()) < 0.1


def allowed_after(before: Tensor) -> list[int]:
    """Return what the sequences allow after some tokens, without a trie."""
    start = before.tolist()
    return sorted({sequence[len(start)] for sequence in SEQUENCES if sequence[: len(start)] == start})


@pytest.mark.parametrize("mode", ["grouped", "dense"])
@pytest.mark.parametrize("name", ["Qwen2Config", "LlamaConfig"])  # tied and untied embeddings
def test_under_a_constraint_probability_is_shared_by_the_allowed_children(name: str, mode: Any) -> None:
    model, batch = build(name), example()
    trie = Trie.build(SEQUENCES, end_token=None)

    def over_children(logits: Tensor, before: Tensor, token: int) -> Tensor:
        allowed = allowed_after(before)
        return (logits[allowed] / 1.7).log_softmax(-1)[allowed.index(token)]

    def entropy_of_children(logits: Tensor, before: Tensor, token: int) -> Tensor:
        return torch.distributions.Categorical(logits=logits[allowed_after(before)] / 1.7).entropy()

    output = policy_forward(
        model, batch, constraint=trie, normalization="children", temperature=1.7, with_entropy=True, mode=mode
    )
    assert_equal_to(model, output, each_alone(model, batch, over_children))
    assert output.entropy is not None
    torch.testing.assert_close(output.entropy, each_alone(model, batch, entropy_of_children), rtol=1e-5, atol=1e-5)


def test_a_completion_outside_of_the_constraint_is_an_error() -> None:
    model, batch = build(), example()
    batch.completions[0, 0, 1] = 39
    trie = Trie.build(SEQUENCES, end_token=None)
    with pytest.raises(DeadPrefixError):
        policy_forward(model, batch, constraint=trie, normalization="children")


def kept_beside(token: int) -> list[int]:
    """Return the tokens that a made-up sampler kept when it drew this one; shared states may keep different ones."""
    return sorted({token, *range(5, 5 + token % 7)})


@pytest.mark.parametrize("mode", ["grouped", "dense"])
def test_under_top_k_probability_is_shared_by_the_kept_tokens(mode: Any) -> None:
    model, batch = build(), ragged()
    batch.kept = torch.full((3, 4, 3, 8), -1)
    for b, g, c in batch.mask.nonzero().tolist():
        kept = torch.tensor(kept_beside(int(batch.completions[b, g, c])))
        batch.kept[b, g, c, : len(kept)] = kept

    def over_kept(logits: Tensor, before: Tensor, token: int) -> Tensor:
        return (logits[kept_beside(token)] / 0.7).log_softmax(-1)[kept_beside(token).index(token)]

    output = policy_forward(model, batch, temperature=0.7, mode=mode)
    assert_equal_to(model, output, each_alone(model, batch, over_kept))


def test_a_token_that_sampling_did_not_keep_is_caught() -> None:
    batch = ragged()
    batch.kept = torch.full((3, 4, 3, 1), 2)
    with pytest.raises(AssertionError, match="not among the tokens"):
        policy_forward(build(), batch)


def test_entropies_are_those_of_the_whole_vocabulary() -> None:
    model, batch = build(), ragged()

    def entropy_of(logits: Tensor, before: Tensor, token: int) -> Tensor:
        return torch.distributions.Categorical(logits=logits / 2).entropy()

    output = policy_forward(model, batch, temperature=2.0, with_entropy=True, mode="grouped")
    assert output.entropy is not None
    right = each_alone(model, batch, entropy_of)
    torch.testing.assert_close(output.entropy, right, rtol=1e-5, atol=1e-5)
    ours, theirs = gradient(model, output.entropy), gradient(model, right)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4


def test_hidden_states_are_those_that_predict_each_token() -> None:
    model, batch = build(), ragged()
    output = policy_forward(model, batch, with_hidden=True, mode="grouped")
    assert output.hidden is not None
    assert (output.hidden[~batch.mask] == 0).all()
    predicted = model.lm_head(output.hidden).log_softmax(-1).gather(-1, batch.completions[..., None])[..., 0]
    torch.testing.assert_close(predicted[batch.mask], output.logprobs[batch.mask])
    torch.testing.assert_close(dense_states(model, batch), grouped_states(model, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["grouped", "dense"])
def test_what_does_not_count_has_no_log_prob_and_no_gradient(mode: Any) -> None:
    model, batch = build(), ragged()
    output = policy_forward(model, batch, with_entropy=True, mode=mode)
    assert output.entropy is not None
    assert (output.logprobs[~batch.mask] == 0).all()
    assert (output.entropy[~batch.mask] == 0).all()
    right = gradient(model, output.logprobs)
    weights = torch.linspace(-1, 2, batch.mask.numel()).view(batch.mask.shape)
    model.zero_grad()
    logprobs = policy_forward(model, batch, mode=mode).logprobs
    (logprobs * weights.masked_fill(~batch.mask, 1e6)).sum().backward()
    torch.testing.assert_close(torch.cat([weight.grad.flatten() for weight in model.parameters()]), right)


def test_a_batch_without_completions_gives_zeros_that_can_be_trained_on() -> None:
    model, batch = build(), example()
    batch.mask[:] = False
    output = policy_forward(model, batch, mode="grouped")
    assert (output.logprobs == 0).all()
    assert (gradient(model, output.logprobs) == 0).all()  # every parameter takes part: DDP waits for each


def test_a_sliding_window_goes_dense_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model, batch = build("MistralConfig"), ragged()
    right = each_alone(model, batch, over_vocabulary)
    with caplog.at_level(logging.INFO, logger="rlkit"):
        assert_equal_to(model, policy_forward(model, batch), right)
        policy_forward(model, batch)
    assert [record.message for record in caplog.records if "sliding window of 4" in record.message] != []
    assert len(caplog.records) == 1
    with pytest.raises(ModelError, match="sliding window"):
        policy_forward(model, batch, mode="grouped")


def test_the_expected_gain_is_the_stated_formula() -> None:
    model, batch = build("LlamaConfig"), example()
    # weights: per layer q and o 16 x 16, k and v 16 x 8, three of 16 x 32, two norms of 16; a last norm of 16
    linear = 2 * (2 * 256 + 2 * 128 + 3 * 512 + 32) + 16
    square = 2 * 16 * 2
    grouped, dense = 9 + 4 * 2, 9 + 2
    expected = 4 * (linear * dense + square * dense**2) / (linear * grouped + square * grouped**2)
    assert expected_gain(model, batch) == pytest.approx(expected)
    assert expected > 2


def test_completions_too_long_for_their_prompt_go_dense(caplog: pytest.LogCaptureFixture) -> None:
    model, tokens = build("LlamaConfig"), torch.ones(1, 16, 60, dtype=torch.long)
    batch = GroupBatch(torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2), tokens, tokens)
    assert expected_gain(model, batch) < 1
    with caplog.at_level(logging.INFO, logger="rlkit"), torch.no_grad():
        policy_forward(model, batch)
    assert "too long" in caplog.text


@pytest.mark.parametrize("broken", ["sees other completions", "sees padding", "wrong positions"])
def test_a_wrong_row_is_caught_by_the_comparison(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right_keys, right_positions = completion_states.visible_keys, completion_states._positions

    def keys(prompt_mask: Tensor, group_size: int, tokens: int) -> Tensor:
        visible = right_keys(prompt_mask, group_size, tokens)
        causal = torch.ones_like(visible).tril()
        if broken == "sees other completions":
            return torch.where(
                torch.nn.functional.pad(prompt_mask, (0, group_size * tokens), value=True)[:, None], causal, visible
            )
        return right_keys(torch.ones_like(prompt_mask), group_size, tokens)

    def positions(batch: GroupBatch, group_size: int, tokens: int) -> Tensor:
        return torch.arange(right_positions(batch, group_size, tokens).shape[1]).expand(len(batch), -1)

    if broken == "wrong positions":
        monkeypatch.setattr(completion_states, "_positions", positions)
    else:
        monkeypatch.setattr(completion_states, "visible_keys", keys)
    with pytest.raises(TrainingError, match="forward: dense"):
        policy_forward(build(), ragged(), mode="auto")


def test_rows_are_compared_again_only_when_longer_than_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def counting(model: nn.Module, batch: GroupBatch) -> Tensor:
        compared.append(batch.prompts.shape[1])
        return dense_states(model, batch)

    monkeypatch.setattr(grouped_forward, "dense_states", counting)
    model, batch = build(), example()
    short = GroupBatch(batch.prompts[:, 2:], batch.prompt_mask[:, 2:], batch.completions, batch.mask)
    for part in (short, short, batch, batch, short):
        policy_forward(model, part)
    assert compared == [7, 9]
    policy_forward(build(), short)  # another model starts anew
    assert compared == [7, 9, 7]


def test_a_model_that_changes_its_logits_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    monkeypatch.setattr(model.lm_head, "forward", lambda states: nn.functional.linear(states, model.lm_head.weight))
    forward = model.forward

    def doubled(*args: Any, **settings: Any) -> Any:
        output = forward(*args, **settings)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(model, "forward", doubled)
    with pytest.raises(ModelError, match="not those of its output head"):
        policy_forward(model, example())


def test_active_dropout_is_caught() -> None:
    model = build("GPT2Config").train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    with pytest.raises((TrainingError, ModelError), match="dropout"):
        policy_forward(model, example())


class Policy(nn.Module):
    """A module as trainers wrap it: the forward of the language model lies inside of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: GroupBatch) -> Tensor:
        return policy_forward(self.model, batch, mode="grouped").logprobs


def test_it_runs_inside_of_a_distributed_wrapper(tmp_path: Any) -> None:
    model, batch = build(), ragged()
    right = gradient(model, policy_forward(model, batch).logprobs)
    model.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(Policy(model))
        torch.testing.assert_close(gradient(model, wrapped(batch)), right)
    finally:
        torch.distributed.destroy_process_group()
