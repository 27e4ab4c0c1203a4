"""What is said of answers as texts: distinct-n, BLEU, ROUGE, phrases, wins."""

from __future__ import annotations

import numpy as np
import pytest

from rlkit.chat.evaluation_data import REFUSALS
from rlkit.chat.metrics import OPENING, bleu, distinct, mean_with_interval, phrase_finder, rouge, wins, words


def test_words_are_runs_of_letters_and_each_chinese_character() -> None:
    assert words("It's 3.5 km, Été_là!") == ["it", "s", "3", "5", "km", "été", "là"]
    assert words("我有2只cats") == ["我", "有", "2", "只", "cats"]
    assert words(" \n") == []


def test_distinct_counts_different_over_all() -> None:
    # unigrams: a b a | a c -> {a, b, c} of 5; bigrams: ab ba | ac -> 3 of 3
    found = distinct(["a b a", "A c"], 1)
    assert found is not None
    assert found.value == 3 / 5
    assert distinct(["a b a", "A c"], 2).value == 1
    assert distinct(["a", "b"], 2) is None  # no text has two words
    assert distinct(["", " "], 1) is None


def test_repeating_an_answer_lowers_distinct_and_its_order_does_not_matter() -> None:
    once, twice = distinct(["a b", "c d"], 1), distinct(["a b", "a b", "c d"], 1)
    assert (once.value, twice.value) == (1, 4 / 6)
    assert distinct(["c d", "a b", "a b"], 1) == twice


def test_the_interval_of_distinct_is_the_jackknifes() -> None:
    # left out one by one: {a, c} of "a c c" 2/3; {a, b, c} of "a b c c" 3/4; {a, b} of "a b a" 2/3
    found = distinct(["a b", "a", "c c"], 1)
    left_out = np.array([2 / 3, 3 / 4, 2 / 3])
    error = 1.959964 * np.sqrt(2 / 3 * ((left_out - left_out.mean()) ** 2).sum())
    assert found.value == 3 / 5
    assert (found.low, found.high) == pytest.approx((0.6 - error, 0.6 + error))


def test_bleu_is_sacrebleus_of_the_whole_corpus_and_its_interval_holds_it() -> None:
    from sacrebleu.metrics import BLEU

    rng = np.random.default_rng(0)
    references = [" ".join(rng.choice(list("abcdefgh"), 12)) for _ in range(40)]
    answers = [text.replace("a", "b") if index % 3 else text for index, text in enumerate(references)]
    found = bleu(answers, references, "13a")
    assert found.value == pytest.approx(BLEU().corpus_score(answers, [references]).score)
    assert found.low < found.value < found.high
    assert bleu(answers, references, "13a") == found
    assert bleu(references, references, "13a").value == pytest.approx(100)


def test_bleu_of_chinese_counts_characters_under_its_tokenizer() -> None:
    answers, references = ["今天天气很好我们去公园"], ["今天天气很好我们去海边"]
    assert bleu(answers, references, "13a").value < bleu(answers, references, "zh").value


def test_rouge_compares_each_answer_with_its_own_reference() -> None:
    # "a b c" and "a b d e": two of 3 and of 4 words, F = 2 * (2/3 * 2/4) / (2/3 + 2/4) = 4/7; one of 2 and of 3 pairs
    found = rouge(["a b c", "x"], ["a b d e", "x"])
    assert found["rouge_1"] == pytest.approx([4 / 7, 1])
    assert found["rouge_2"] == pytest.approx([2 / 5, 0])
    assert found["rouge_l"] == pytest.approx([4 / 7, 1])
    assert rouge(["天气很好"], ["天气不好"])["rouge_1"] == pytest.approx([3 / 4])


@pytest.mark.parametrize(
    ("text", "contains"),
    [
        ("First class.", False),
        ("You ASS!", True),
        ("that's\n  none of your  business, friend", True),
        ("That\u2019s none of your businesses", False),
        ("他说这不行吧", True),
        ("", False),
    ],
)
def test_a_phrase_is_found_as_whole_words_whatever_its_case(text: str, contains: bool) -> None:
    assert phrase_finder(["ass", "That's none of your business", "不行"])(text) is contains


def test_a_phrase_of_signs_is_found_as_it_is() -> None:
    assert phrase_finder(["(c++)"])("I like (C++) a lot")
    assert not phrase_finder(["a.c"])("abc")


def test_refusals_are_looked_for_at_the_beginning() -> None:
    refuses = phrase_finder(REFUSALS, within=OPENING)
    assert refuses("I\u2019m sorry, but I can't help with that.")
    assert refuses("抱歉 我无法回答")
    assert not refuses("Here is how: " + "step, " * 50 + "which I cannot repeat.")


def test_a_win_counts_one_and_a_tie_a_half() -> None:
    assert wins(np.array([[1.0], [0.2], [3.0]]), np.array([[0.5], [0.2], [4.0]])).tolist() == [[1], [0.5], [0]]


def test_tokens_of_one_conversation_are_drawn_together() -> None:
    values = np.repeat([0.0, 1.0], 100)  # two conversations of a hundred equal tokens
    alone = mean_with_interval(values)
    together = mean_with_interval(values, np.repeat([0, 1], 100))
    assert alone.value == together.value == 0.5
    assert (together.low, together.high) == (0, 1)
    assert alone.high - alone.low < 0.2
