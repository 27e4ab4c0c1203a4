"""Unconstrained sampling: exact distributions, kept sets, ends, and independence of the batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from toys import tiny_model

from rlkit.errors import TrainingError
from rlkit.models.load import LoadedModel
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import policy_forward
from rlkit.policy.sampler import encode_prompts
from rlkit.policy.text_sampler import Sampled, Truncation, kept_logits, sample_text
from rlkit.records import Prompt, Source

TEXTS = ("ab", "what is 2 + 3?", "x")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """Return a model whose next-token distribution is far from uniform."""
    loaded = tiny_model()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.mul_(8)
    loaded.model.eval()
    return loaded


def draw(loaded: LoadedModel, texts: tuple[str, ...] = TEXTS, **options: object) -> tuple[Sampled, Tensor, Tensor]:
    """Sample with a generator per text, keyed by the text."""
    prompts = [Prompt(text, text, "", Source("here")) for text in texts]
    ids, mask = encode_prompts(loaded.tokenizer, prompts, "cpu")
    settings: dict = {
        "group_size": 4,
        "truncation": Truncation(1.0),
        "max_tokens": 6,
        "end_token_id": loaded.tokenizer.eos_token_id,
        "pad_token_id": loaded.tokenizer.pad_token_id,
        "generators": [torch.Generator().manual_seed(sum(text.encode())) for text in texts],
    }
    return sample_text(loaded.model, ids, mask, **settings | options), ids, mask


def next_logits(loaded: LoadedModel, text: str) -> Tensor:
    """Return (V,) logits after a text, from a plain forward pass."""
    ids = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    return loaded.model(ids).logits[0, -1].detach()


@pytest.mark.parametrize(
    "truncation", [Truncation(1.0), Truncation(0.5), Truncation(1.0, top_k=5), Truncation(1, None, 0.7)]
)
def test_sampled_frequencies_are_the_exact_distribution(loaded: LoadedModel, truncation: Truncation) -> None:
    draws = 20_000
    found, _, _ = draw(loaded, ("ab",), group_size=draws, max_tokens=1, truncation=truncation)
    exact = (next_logits(loaded, "ab").double() / truncation.temperature).softmax(-1)  # (V,)
    if truncation.top_k:
        exact = exact * (exact >= exact.topk(5).values[-1])
    if truncation.top_p < 1:
        ordered = exact.sort(descending=True).values
        last = ordered[int((ordered.cumsum(0) < truncation.top_p).sum())]
        exact = exact * (exact >= last)
    exact = exact / exact.sum()
    counts = torch.bincount(found.tokens.flatten(), minlength=len(exact)).double()
    assert counts[exact == 0].sum() == 0
    expected = draws * exact[exact > 0]
    chi_square = ((counts[exact > 0] - expected).square() / expected).sum()
    freedom = len(expected) - 1
    # chi-square has mean f and standard deviation sqrt(2 f); rare tokens make its tail heavier
    assert chi_square < freedom + 6 * math.sqrt(2 * freedom)


def test_kept_sets_and_log_probs_are_those_worked_by_hand() -> None:
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    # likeliest first: .5 (id 1), .3 (id 3), .15 (id 2), .05 (id 0)
    values, ids = kept_logits(logits, Truncation(1.0, top_k=3))
    assert ids.tolist() == [[1, 3, 2]]
    torch.testing.assert_close(values.softmax(-1), torch.tensor([[0.5, 0.3, 0.15]]) / 0.95)
    # .5 + .3 = .8 reaches .79, so two stay; .81 needs the third
    assert kept_logits(logits, Truncation(1.0, top_p=0.79))[1].tolist() == [[1, 3]]
    assert kept_logits(logits, Truncation(1.0, top_p=0.81))[1].tolist() == [[1, 3, 2]]
    # top-k first: of .5 .3 .15 (/ .95) the first two are .842, so top_p .85 takes all three and .8 two
    assert kept_logits(logits, Truncation(1.0, top_k=3, top_p=0.85))[1].tolist() == [[1, 3, 2]]
    assert kept_logits(logits, Truncation(1.0, top_k=3, top_p=0.8))[1].tolist() == [[1, 3]]
    # temperature .5 squares: .25 .09 .0225 .0025, sum .365; .25 / .365 = .685 does not reach .7, with .09 it is .932
    values, ids = kept_logits(logits, Truncation(0.5, top_p=0.7))
    assert ids.tolist() == [[1, 3]]
    torch.testing.assert_close(values.softmax(-1), torch.tensor([[0.25, 0.09]]) / 0.34)


def test_rows_keep_different_numbers_of_tokens() -> None:
    logits = torch.tensor([[0.9, 0.06, 0.04], [0.4, 0.35, 0.25]]).log()
    values, ids = kept_logits(logits, Truncation(1.0, top_p=0.7))
    assert ids.shape == (2, 2)
    assert torch.isneginf(values).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("truncation", [Truncation(0.7), Truncation(1.3, top_k=7), Truncation(0.9, None, 0.8)])
@pytest.mark.parametrize("mode", ["dense", "grouped"])
def test_training_computes_the_log_probs_that_sampling_had(
    loaded: LoadedModel, truncation: Truncation, mode: str
) -> None:
    found, ids, mask = draw(loaded, truncation=truncation)
    batch = GroupBatch(ids, mask, found.tokens, found.mask, {}, found.kept)
    with torch.no_grad():
        output = policy_forward(loaded.model, batch, temperature=truncation.temperature, mode=mode)  # type: ignore[arg-type]
    assert (found.kept is not None) == truncation.active
    torch.testing.assert_close(output.logprobs, found.logprobs, atol=2e-5, rtol=1e-5)


def test_a_completion_ends_with_its_end_token_or_is_marked_as_truncated(loaded: LoadedModel) -> None:
    end = int(next_logits(loaded, "ab").topk(2).indices[1])  # likely enough to come sometimes
    found, _, _ = draw(loaded, ("ab",), group_size=64, end_token_id=end, max_tokens=5)
    for row, kept, cut, logprobs in zip(found.tokens[0], found.mask[0], found.truncated[0], found.logprobs[0]):
        tokens = row.tolist()
        length = tokens.index(end) + 1 if end in tokens else 5
        assert kept.tolist() == [place < length for place in range(5)]
        assert bool(cut) == (end not in tokens)
        assert tokens[length:] == [loaded.tokenizer.pad_token_id] * (5 - length)
        assert logprobs[length:].eq(0).all()
        assert logprobs[:length].lt(0).all()
    assert 0 < found.truncated.sum() < 64, "the test needs both kinds"


def test_sampling_stops_when_all_completions_have_ended(loaded: LoadedModel) -> None:
    likeliest = int(next_logits(loaded, "ab").argmax())
    found, _, _ = draw(loaded, ("ab",), truncation=Truncation(1.0, top_k=1), end_token_id=likeliest, max_tokens=50)
    assert found.tokens.shape == (1, 4, 1)
    assert not found.truncated.any()


def test_completions_do_not_depend_on_the_rest_of_the_batch_or_its_padding(loaded: LoadedModel) -> None:
    together, ids, _ = draw(loaded, truncation=Truncation(1.0, top_k=50, top_p=0.95))
    assert (ids[0] == loaded.tokenizer.pad_token_id).any(), "the short prompt is padded"
    for index, text in enumerate(TEXTS):
        alone, ids, _ = draw(loaded, (text,), truncation=Truncation(1.0, top_k=50, top_p=0.95))
        assert not (ids == loaded.tokenizer.pad_token_id).any()
        width = alone.tokens.shape[-1]
        assert together.tokens[index, :, :width].tolist() == alone.tokens[0].tolist()
        assert not together.mask[index, :, width:].any()
        torch.testing.assert_close(together.logprobs[index, :, :width], alone.logprobs[0], atol=2e-5, rtol=1e-5)


def test_other_noise_gives_other_completions(loaded: LoadedModel) -> None:
    first, _, _ = draw(loaded, ("ab",))
    again, _, _ = draw(loaded, ("ab",))
    other, _, _ = draw(loaded, ("ab",), generators=[torch.Generator().manual_seed(7)])
    assert first.tokens.tolist() == again.tokens.tolist()
    assert first.tokens.tolist() != other.tokens.tolist()


def test_greedy_completions_are_those_of_transformers(loaded: LoadedModel) -> None:
    found, ids, mask = draw(loaded, group_size=1, truncation=Truncation(1.0, top_k=1), max_tokens=12)
    generated = loaded.model.generate(
        input_ids=ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=12, pad_token_id=0
    )[:, ids.shape[1] :]
    assert found.tokens[:, 0].masked_fill(~found.mask[:, 0], 0).tolist() == generated.tolist()


def test_logits_that_are_not_finite_are_refused() -> None:
    loaded = tiny_model()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[100] = math.nan  # one token of the (tied) head
    for truncation in (Truncation(1.0), Truncation(1.0, top_k=3), Truncation(1.0, None, 0.5)):
        with pytest.raises(TrainingError, match="not finite"):
            draw(loaded, ("ab",), truncation=truncation)
