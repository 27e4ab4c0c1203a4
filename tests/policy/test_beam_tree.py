"""Beam search and sampling over a tree, against scoring every completion by itself."""

import logging
import math
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlkit.errors import DeadPrefixError, TrainingError
from rlkit.policy import beam_rows
from rlkit.policy.beam_tree import Beams, beam_search, sample, sample_distinct
from rlkit.recsys.trie import Trie

VOCABULARY, END, PAD = 40, 1, 0
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # far from uniform, so that wrong positions or masks show
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": END,
}
SIDS = [[10, 20, 30], [10, 20, 31], [10, 21, 30], [11, 20, 30], [11, 22, 32], [12, 20, 33], [12, 23, 30], [12, 23, 31]]
RAGGED = [[10], [11, 20], [11, 21], [12, 20, 30], [12, 20, 31, 34, 35, 36, 37, 38], [13, 22, 30, 34]]
PREFIXED = [[10], [10, 20], [10, 20, 30], [11, 21], [12, 20, 31, 34, 35, 36, 37, 38], [12, 20, 31]]


def build(kind: str, **changes) -> nn.Module:
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, **changes
        )
        return GPT2LMHeadModel(config).eval()
    if kind == "bloom":
        config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
        return BloomForCausalLM(config).eval()
    classes = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
        "granite": (GraniteConfig, GraniteForCausalLM),
    }
    config_class, model_class = classes[kind]
    return model_class(config_class(**{**SHAPE, **changes})).eval()


def prompt_batch(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts; the first n tokens from the right are those of every longer prompt."""
    longest = max(lengths)
    tokens = torch.randint(2, 9, (longest,), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    return torch.where(mask, tokens, PAD), mask


@torch.no_grad()
def exhaustive(model, prompt, sequences, normalization="children", temperature=1.0) -> dict[tuple[int, ...], float]:
    """Score each completion in a row of its own, without padding, cache or tree."""
    scores = {}
    for sequence in {tuple(s) for s in sequences}:
        row = torch.cat([prompt, torch.tensor(sequence)])[None]
        logits = model(input_ids=row).logits[0, len(prompt) - 1 : -1] / temperature
        total = 0.0
        for depth, token in enumerate(sequence):
            if normalization == "vocabulary":
                total += logits[depth].log_softmax(-1)[token].item()
                continue
            allowed = sorted({s[depth] for s in sequences if tuple(s[:depth]) == sequence[:depth]})
            total += logits[depth, allowed].log_softmax(-1)[allowed.index(token)].item()
        scores[sequence] = total
    return scores


def as_dict(beams: Beams, row: int) -> dict[tuple[int, ...], float]:
    """Completions with their scores; checks padding on the way."""
    found = {}
    for tokens, mask, score, leaf in zip(beams.tokens[row], beams.mask[row], beams.scores[row], beams.leaves[row]):
        length = int(mask.sum())
        assert mask[:length].all()
        assert (tokens[length:] == PAD).all()
        assert (leaf >= 0) == (length > 0) == math.isfinite(score)
        if length:
            found[tuple(tokens[:length].tolist())] = score.item()
    return found


def search(model, prompts, mask, trie, num_beams, **options) -> Beams:
    return beam_search(model, prompts, mask, trie, num_beams=num_beams, pad_token_id=PAD, **options)


def said(caplog) -> list[str]:
    """What decoding logged: that it does not pack rows."""
    return [record.message for record in caplog.records if record.name == beam_rows.__name__]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("normalization", ["children", "vocabulary"])
@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2", "granite", "bloom"])
def test_a_beam_as_wide_as_the_tree_scores_every_completion_as_a_row_of_its_own(kind, normalization, caplog):
    model, trie = build(kind), Trie.build(SIDS, end_token=END)
    prompts, mask = prompt_batch(7, 7)
    with caplog.at_level(logging.INFO, beam_rows.__name__):
        beams = search(model, prompts, mask, trie, len(SIDS), normalization=normalization)
    assert bool(said(caplog)) == (kind == "bloom")  # the others are packed
    expected = exhaustive(model, prompts[0], SIDS, normalization)
    assert as_dict(beams, 0) == pytest.approx(expected, abs=1e-5)
    assert (beams.scores.diff(dim=1) <= 0).all()
    if normalization == "children":
        assert beams.scores.exp().sum(1).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_left_padding_changes_no_score(kind, attention, caplog):
    model, trie = build(kind, attn_implementation=attention), Trie.build(SIDS, end_token=END)
    prompts, mask = prompt_batch(9, 4, 1)
    with caplog.at_level(logging.INFO, beam_rows.__name__):
        beams = search(model, prompts, mask, trie, len(SIDS))
    assert not said(caplog)
    for row, length in enumerate((9, 4, 1)):
        assert as_dict(beams, row) == pytest.approx(exhaustive(model, prompts[row, 9 - length :], SIDS), abs=1e-5)


@pytest.mark.parametrize("sequences", [RAGGED, PREFIXED], ids=["early leaves", "end token"])
@pytest.mark.parametrize("normalization", ["children", "vocabulary"])
def test_completions_of_one_to_eight_tokens_compete_by_their_sums(sequences, normalization):
    model, trie = build("qwen2"), Trie.build(sequences, end_token=END)
    prompts, mask = prompt_batch(6, 3)
    full = [[*sequence, END] for sequence in sequences] if sequences is PREFIXED else sequences
    for row, length in enumerate((6, 3)):
        expected = exhaustive(model, prompts[row, 6 - length :], full, normalization)
        wide = as_dict(search(model, prompts, mask, trie, 10, normalization=normalization), row)
        assert wide == pytest.approx(expected, abs=1e-5)
    beams = search(model, prompts, mask, trie, 10, normalization=normalization)
    assert beams.scores[:, len(sequences) :].isneginf().all()
    assert (beams.leaves[:, len(sequences) :] == -1).all()


def test_completions_shared_by_items_come_out_once():
    model, trie = build("qwen2"), Trie.build([*SIDS, SIDS[0], SIDS[3]], end_token=END)
    prompts, mask = prompt_batch(5)
    beams = search(model, prompts, mask, trie, 10)
    assert as_dict(beams, 0) == pytest.approx(exhaustive(model, prompts[0], SIDS), abs=1e-5)
    assert sorted(trie.leaf_sequence(beams.leaves)[0].tolist()) == [-1, -1, *range(len(SIDS))]


class PrefixTable(LogitsProcessor):
    """How Hugging Face's beam search is constrained: by a Python look-up for each beam."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens

    def __call__(self, input_ids, scores):
        closed = torch.full_like(scores, -1e6)
        for row, prefix in enumerate(input_ids[:, self.prompt_tokens :].tolist()):
            closed[row, [s[len(prefix)] for s in SIDS if s[: len(prefix)] == prefix] or [END]] = 0
        return scores.log_softmax(-1) + closed


def test_a_narrow_beam_agrees_with_hugging_face_beam_search():
    model, trie = build("qwen2"), Trie.build(SIDS, end_token=END)
    prompts, mask = prompt_batch(7, 5)
    config = GenerationConfig(
        num_beams=3, num_return_sequences=3, max_new_tokens=3, length_penalty=0.0, do_sample=False, pad_token_id=PAD,
        eos_token_id=END, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    processors = LogitsProcessorList([PrefixTable(7)])
    theirs = model.generate(prompts, attention_mask=mask.long(), generation_config=config, logits_processor=processors)
    ours = search(model, prompts, mask, trie, 3, normalization="vocabulary")
    assert ours.tokens.tolist() == theirs.sequences[:, 7:].view(2, 3, 3).tolist()
    torch.testing.assert_close(ours.scores, theirs.sequences_scores.view(2, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("normalization", ["children", "vocabulary"])
def test_temperature_divides_the_logits(normalization):
    model, trie = build("qwen2"), Trie.build(SIDS, end_token=END)
    prompts, mask = prompt_batch(5)
    beams = search(model, prompts, mask, trie, 8, normalization=normalization, temperature=0.5)
    assert as_dict(beams, 0) == pytest.approx(exhaustive(model, prompts[0], SIDS, normalization, 0.5), abs=1e-5)


def test_filters_close_completions_and_probabilities_are_normalized_over_the_rest():
    model, trie = build("qwen2"), Trie.build(SIDS, end_token=END)
    prompts, mask = prompt_batch(5, 5, 5)
    alive = trie.allowed_nodes(3, banned=[[0, 1, 6], [], [4]], allowed=[None, [2], [3, 4, 5]])
    beams = search(model, prompts, mask, trie, 8, alive=alive)
    for row, left in enumerate(([2, 3, 4, 5, 7], [2], [3, 5])):
        expected = exhaustive(model, prompts[0], [SIDS[i] for i in left])
        assert as_dict(beams, row) == pytest.approx(expected, abs=1e-5)
    drawn = sample(
        model, prompts, mask, trie, num_samples=20, generators=generators(0, 1, 2), pad_token_id=PAD, alive=alive
    )
    for row, left in enumerate(([2, 3, 4, 5, 7], [2], [3, 5])):
        assert set(trie.leaf_sequence(drawn.leaves[row]).tolist()) <= set(left)


def test_nothing_left_raises():
    model, trie = build("qwen2"), Trie.build(SIDS, end_token=END)
    prompts, mask = prompt_batch(5, 5)
    alive = torch.ones(2, trie.num_nodes, dtype=torch.bool)
    alive[1] = False
    with pytest.raises(DeadPrefixError, match=r"prompt and beam \[1, 0\]"):
        search(model, prompts, mask, trie, 4, alive=alive)
    alive[1] = True
    alive[1, trie.walk(torch.tensor(SIDS))[0, 2:]] = False  # its prefix [10, 20] leads on to one leaf, which stays open
    assert len(as_dict(search(model, prompts, mask, trie, 8, alive=alive), 1)) == len(SIDS) - 2
    alive[1] = True
    alive[1, trie.walk(torch.tensor(SIDS))[:2, 3]] = False  # both leaves behind [10, 20] are closed, but not the prefix
    with pytest.raises(DeadPrefixError, match="no continuation left"):
        search(model, prompts, mask, trie, 8, alive=alive)


def test_nan_raises():
    model, trie = build("qwen2"), Trie.build(SIDS, end_token=END)
    prompts, mask = prompt_batch(5)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(TrainingError, match="got nan"):
        search(model, prompts, mask, trie, 4)
    with pytest.raises(TrainingError, match="got nan"):
        sample_distinct(model, prompts, mask, trie, num_samples=4, generators=generators(0), pad_token_id=PAD)


def test_sampling_without_replacement_follows_the_exact_distribution_of_ordered_pairs():
    model, trie = build("qwen2"), Trie.build(RAGGED, end_token=END)
    prompts, mask = prompt_batch(5)
    repeats = 3000
    beams = sample_distinct(
        model, prompts.expand(repeats, -1), mask.expand(repeats, -1), trie, num_samples=2, temperature=3.0,
        generators=generators(*range(repeats)), pad_token_id=PAD,
    )  # fmt: skip
    seen = Counter(map(tuple, trie.leaf_sequence(beams.leaves).tolist()))
    scores = exhaustive(model, prompts[0], RAGGED, temperature=3.0)
    p = [math.exp(scores[tuple(sequence)]) for sequence in RAGGED]
    expected = {(i, j): p[i] * p[j] / (1 - p[i]) for i in range(6) for j in range(6) if i != j}
    assert sum(expected.values()) == pytest.approx(1.0, abs=1e-5)
    chi_square = sum((seen[pair] - repeats * q) ** 2 / (repeats * q) for pair, q in expected.items())
    assert chi_square < 58.3  # the 99.9 % point for 29 degrees of freedom
    assert beams.scores[0].tolist() == pytest.approx([scores[c] for c in as_dict(beams, 0)], abs=1e-5)


def test_independent_samples_follow_the_exact_distribution():
    model, trie = build("qwen2"), Trie.build(RAGGED, end_token=END)
    prompts, mask = prompt_batch(5)
    rows, group = 200, 20
    beams = sample(
        model, prompts.expand(rows, -1), mask.expand(rows, -1), trie, num_samples=group, temperature=3.0,
        generators=generators(*range(rows)), pad_token_id=PAD,
    )  # fmt: skip
    drawn = trie.leaf_sequence(beams.leaves)
    scores = exhaustive(model, prompts[0], RAGGED, temperature=3.0)
    expected = [rows * group * math.exp(scores[tuple(sequence)]) for sequence in RAGGED]
    seen = torch.bincount(drawn.flatten(), minlength=6).tolist()
    assert sum((n - e) ** 2 / e for n, e in zip(seen, expected)) < 20.5  # the 99.9 % point for 5 degrees of freedom
    p = torch.tensor(expected) / (rows * group)
    pairs = rows * group * (group - 1) / 2
    equal = sum((row[:, None] == row).triu(1).sum().item() for row in drawn)  # samples of one prompt are independent
    assert equal / pairs == pytest.approx((p**2).sum().item(), abs=0.02)


def test_as_many_distinct_samples_as_completions_are_all_of_them():
    model, trie = build("qwen2"), Trie.build(SIDS, end_token=END)
    prompts, mask = prompt_batch(5, 2)
    beams = sample_distinct(model, prompts, mask, trie, num_samples=10, generators=generators(3, 4), pad_token_id=PAD)
    assert sorted(trie.leaf_sequence(beams.leaves)[1].tolist()) == [-1, -1, *range(8)]
    assert as_dict(beams, 1) == pytest.approx(exhaustive(model, prompts[1, 3:], SIDS), abs=1e-5)


@pytest.mark.parametrize("draw", [sample, sample_distinct])
def test_noise_depends_on_the_generator_of_the_prompt_alone(draw):
    model, trie = build("qwen2"), Trie.build(SIDS, end_token=END)
    prompts, mask = prompt_batch(9, 4, 7)

    def drawn(rows, columns, *seeds):
        return draw(
            model, prompts[rows][:, columns:], mask[rows][:, columns:], trie, num_samples=5,
            generators=generators(*seeds), pad_token_id=PAD,
        )  # fmt: skip

    together, alone = drawn([0, 1, 2], 0, 7, 8, 9), drawn([1], 5, 8)
    assert together.tokens[1].tolist() == alone.tokens[0].tolist()
    torch.testing.assert_close(together.scores[1], alone.scores[0])
    other = drawn([1], 5, 10)
    assert other.tokens.tolist() != alone.tokens.tolist()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.21 asks transformers 5.23
def test_an_adapter_takes_part():
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj", "lm_head"], init_lora_weights=False)
    model = get_peft_model(build("qwen2", tie_word_embeddings=False), config).eval()
    trie = Trie.build(SIDS, end_token=END)
    prompts, mask = prompt_batch(5)
    for normalization in ("children", "vocabulary"):
        beams = search(model, prompts, mask, trie, 8, normalization=normalization)
        assert as_dict(beams, 0) == pytest.approx(exhaustive(model, prompts[0], SIDS, normalization), abs=1e-5)
        with model.disable_adapter():
            without = exhaustive(model, prompts[0], SIDS, normalization)
        assert as_dict(beams, 0) != pytest.approx(without, abs=1e-2)


def test_a_model_with_sliding_windows_is_decoded_in_single_rows_and_says_so_once(caplog):
    model = build("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    trie = Trie.build(SIDS, end_token=END)
    prompts, mask = prompt_batch(9, 5)
    with caplog.at_level(logging.INFO, beam_rows.__name__):
        first = search(model, prompts, mask, trie, 8)
        second = search(model, prompts, mask, trie, 8)
    assert len(said(caplog)) == 1
    assert as_dict(first, 0) == as_dict(second, 0) == pytest.approx(exhaustive(model, prompts[0], SIDS), abs=1e-5)
    assert as_dict(first, 1) == pytest.approx(exhaustive(model, prompts[1, 4:], SIDS), abs=1e-5)


def test_a_model_whose_packed_rows_disagree_is_found_out(caplog, monkeypatch):
    model, trie = build("qwen2"), Trie.build(SIDS, end_token=END)
    prompts, mask = prompt_batch(7)
    right = exhaustive(model, prompts[0], SIDS)
    rotary = model.model.rotary_emb.forward

    def by_place(hidden, position_ids):  # as a model does that counts places in the row by itself
        start = 0 if hidden.shape[1] == position_ids.shape[1] > 3 else int(position_ids[0, 0])
        return rotary(hidden, torch.arange(hidden.shape[1])[None] + start)

    monkeypatch.setattr(model.model.rotary_emb, "forward", by_place)
    with caplog.at_level(logging.INFO, beam_rows.__name__):
        beams = search(model, prompts, mask, trie, 8)
    assert "differ" in said(caplog)[0]
    assert as_dict(beams, 0) == pytest.approx(right, abs=1e-5)


def test_scattered_token_ids_and_bfloat16_are_served():
    sequences = [[2, 30], [2, 39], [17, 5]]
    model, trie = build("qwen2"), Trie.build(sequences, end_token=END)
    prompts, mask = prompt_batch(5)
    expected = exhaustive(model, prompts[0], sequences)
    assert as_dict(search(model, prompts, mask, trie, 3), 0) == pytest.approx(expected, abs=1e-5)
    half = as_dict(search(model.bfloat16(), prompts, mask, trie, 3), 0)
    assert half == pytest.approx(expected, abs=0.3)
