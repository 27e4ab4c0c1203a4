"""Perplexity, KL and general ability, against logits of whole forwards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import tiny_model

from rlkit.chat import likelihood
from rlkit.chat.ability import ability_hits, chance, option_rows
from rlkit.chat.evaluation_data import AbilityItem, own_items, read_ability, read_phrases
from rlkit.chat.likelihood import ScoredRow, cut_row, demonstration_rows, token_kl, token_logprobs
from rlkit.errors import DataError
from rlkit.records import Demonstration, Source

HERE = Source("here", 1)
TALK = Demonstration("<|user|>b?<|assistant|>", "yes", HERE, earlier=(("<|user|>a?<|assistant|>", "no<|end|>"),))
LINE = Demonstration("<|user|>longer than the other?<|assistant|>", "ok", HERE)


def logprobs_by_hand(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Return (T - 1, V) log-probs of what follows each token, from one unpadded forward."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)


def test_all_turns_of_the_assistant_count_with_their_ends_and_nothing_else_does() -> None:
    tokenizer = tiny_model().tokenizer
    (row,) = demonstration_rows(tokenizer, [TALK], None)
    assert tokenizer.decode(row.ids) == "<|user|>a?<|assistant|>no<|end|><|user|>b?<|assistant|>yes<|end|>"
    counted = [index for index, counts in zip(row.ids, row.scored) if counts]
    assert tokenizer.decode(counted) == "no<|end|>yes<|end|>"


def test_log_probs_are_those_of_whole_forwards_whatever_shares_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model()
    model = loaded.model.eval()
    rows = demonstration_rows(loaded.tokenizer, [TALK, LINE], None)
    by_hand = []
    for row in rows:
        full = logprobs_by_hand(model, row.ids)
        places = [place for place, counts in enumerate(row.scored) if counts]
        by_hand.append(np.array([float(full[place - 1, row.ids[place]]) for place in places]))
    for batch_size in (1, 2):
        found = token_logprobs(model, rows, batch_size=batch_size, device="cpu")
        for ours, theirs in zip(found, by_hand):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 1)  # a token at a time
    np.testing.assert_allclose(token_logprobs(model, rows, batch_size=2, device="cpu")[0], by_hand[0], atol=1e-5)


def test_kl_is_the_sum_over_the_vocabulary_of_every_scored_place() -> None:
    one, other = tiny_model(seed=0), tiny_model(seed=1)
    rows = demonstration_rows(one.tokenizer, [TALK, LINE], None)
    found = token_kl(one.model.eval(), other.model.eval(), rows, batch_size=2, device="cpu")
    for row, values in zip(rows, found):
        ours, theirs = logprobs_by_hand(one.model, row.ids), logprobs_by_hand(other.model, row.ids)
        places = [place - 1 for place, counts in enumerate(row.scored) if counts]
        by_hand = [sum(float(p.exp() * (p - q)) for p, q in zip(ours[place], theirs[place])) for place in places]
        np.testing.assert_allclose(values, by_hand, rtol=1e-3, atol=1e-6)
    same = token_kl(one.model, one.model, rows, batch_size=2, device="cpu")
    assert max(values.max() for values in same) < 1e-6
    back = token_kl(other.model, one.model, rows, batch_size=2, device="cpu")
    assert not np.allclose(back[0], found[0], rtol=1e-3), "KL has a direction"


def test_a_row_that_is_too_long_loses_its_beginning_and_never_scores_its_first_token() -> None:
    row = ScoredRow([1, 2, 3, 4], [False, True, False, True])
    assert cut_row(row, 3) == ScoredRow([2, 3, 4], [False, False, True])
    assert cut_row(row, 9) == row == cut_row(row, None)
    assert cut_row(row, 1) == ScoredRow([4], [False])


def test_a_row_with_nothing_to_score_gives_nothing() -> None:
    found = token_logprobs(tiny_model().model.eval(), [ScoredRow([4], [False])], batch_size=2, device="cpu")
    assert found[0].shape == (0,)


# ---- general ability


def test_the_option_with_the_highest_log_prob_per_byte_is_chosen() -> None:
    loaded = tiny_model()
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    options = (" a", " bcd", " zz")
    scores = []
    for option in options:
        ids = tokenizer("x y" + option).input_ids
        full = logprobs_by_hand(model, ids)
        start = len(tokenizer("x y").input_ids)
        scores.append(sum(float(full[place - 1, ids[place]]) for place in range(start, len(ids))) / len(option))
    best = int(np.argmax(scores))
    items = [AbilityItem("x y", options, answer) for answer in range(3)]
    hits = ability_hits(model, tokenizer, items, limit=None, batch_size=4, device="cpu")
    assert hits.tolist() == [float(answer == best) for answer in range(3)]
    assert chance(items) == pytest.approx(1 / 3)


def test_options_are_scored_from_where_their_tokens_part_from_the_prompts() -> None:
    tokenizer = tiny_model().tokenizer
    rows = option_rows(tokenizer, AbilityItem("x", (" ab", " c"), 0))
    texts = [tokenizer.decode([index for index, counts in zip(row.ids, row.scored) if counts]) for row in rows]
    assert texts == [" ab", " c"]


def test_the_fixed_set_has_one_right_answer_an_item_and_no_favorite_place() -> None:
    items = own_items()
    assert len(items) == 60
    assert all(len(set(item.options)) == 4 for item in items)
    assert len({item.prompt for item in items}) == 60
    assert [sum(item.answer == place for item in items) for place in range(4)] == [15, 15, 15, 15]
    france = next(item for item in items if "France" in item.prompt)
    assert france.options[france.answer] == " Paris"


def test_an_own_set_names_answers_by_text_or_place(tmp_path: Path) -> None:
    rows = [
        {"prompt": "one, two,", "options": ["three", "nine"], "answer": "nine"},
        {"prompt": "a ", "options": ["b", "c"], "answer": 0},
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    assert read_ability(str(path)) == [
        AbilityItem("one, two,", (" three", " nine"), 1),
        AbilityItem("a", (" b", " c"), 0),
    ]


def test_every_bad_item_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    bad = [
        "{",
        json.dumps({"prompt": "a"}),
        json.dumps({"prompt": "a", "options": ["b"], "answer": 0}),
        json.dumps({"prompt": "a", "options": ["b", "b"], "answer": 0}),
        json.dumps({"prompt": "a", "options": ["b", "c"], "answer": 2}),
        json.dumps({"prompt": "a", "options": ["b", "c"], "answer": True}),
        json.dumps({"prompt": " ", "options": ["b", "c"], "answer": 0}),
        json.dumps({"prompt": "a", "options": ["b", 3], "answer": 0}),
    ]
    path.write_text("\n".join(bad))
    with pytest.raises(DataError) as error:
        read_ability(str(path))
    assert [problem.removeprefix(f"{path}:").split(":")[0] for problem in error.value.problems] == list("12345678")
    assert all("; " in problem for problem in error.value.problems)


def test_files_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(DataError, match="holds no phrase"):
        read_phrases(str(empty))
    with pytest.raises(DataError, match="holds no item"):
        read_ability(str(empty))
    with pytest.raises(DataError, match="cannot be read: no such file"):
        read_phrases(str(tmp_path / "none.txt"))
    empty.write_text("bad word\n\nworse one\n")
    assert read_phrases(str(empty)) == ["bad word", "worse one"]
