"""Rewards that follow rules: format, checklist, diversity, repetition, length penalty, language consistency."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from toys import tiny_model

from rlkit.chat.verifiers.checklist import checklist
from rlkit.chat.verifiers.languages import is_in, main_scripts
from rlkit.chat.verifiers.patterns import ngrams, says, words
from rlkit.chat.verifiers.text_form import format_reward
from rlkit.chat.verifiers.text_measures import Diversity, LengthPenalty, language_consistency, overlong, repetition
from rlkit.config.rules import (
    ChecklistSettings,
    DiversitySettings,
    FormatSettings,
    LanguageConsistencySettings,
    LengthPenaltySettings,
    RepetitionSettings,
)
from rlkit.errors import RecipeError
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.text_rewards import Sample, TextReward
from rlkit.recipe import load_recipe, recipe_from_tree
from rlkit.records import Prompt, Source


def score(reward: TextReward, *texts: str, prompt: str = "") -> list[float]:
    """Return the scores of completions of one prompt."""
    return [outcome.score for outcome in reward.judge([Sample(prompt, text) for text in texts])]


def formed(text: str, prompt: str = "", **settings: Any) -> float:
    """Return what the reward format says about one completion."""
    return score(format_reward(FormatSettings(**settings), None), text, prompt=prompt)[0]


# ---- format


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer>5</answer>", 1.0),
        ("  <think>a\nb</think>\n\n<answer>5</answer>\n", 1.0),
        ("<answer>5</answer><think>a</think>", 0.0),  # the other order
        ("<think>a</think><think>b</think><answer>5</answer>", 0.0),
        ("<think>a</think>so<answer>5</answer>", 0.0),  # something outside
        ("well <think>a</think><answer>5</answer>", 0.0),
        ("<think>a</think><answer>5</answer> done", 0.0),
        ("<think>a</think><answer> </answer>", 0.0),  # empty
        ("<think>a<answer>5</answer></think>", 0.0),  # one inside the other
        ("<think>a</think><answer>5", 0.0),
        ("</think>a<think><answer>5</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_tags_stand_in_order_each_once_and_nothing_else(text: str, expected: float) -> None:
    assert formed(text, tags=("think", "answer")) == expected


def test_a_tag_that_the_prompt_opens_need_not_be_opened_again() -> None:
    assert formed("a</think><answer>5</answer>", "question\n<think>\n", tags=("think", "answer")) == 1.0
    assert formed("a</think><answer>5</answer>", "question\n", tags=("think", "answer")) == 0.0


def test_text_beside_tags_is_allowed_where_the_settings_say_so() -> None:
    assert formed("So <answer>5</answer>.", tags=("answer",), only_tags=False) == 1.0


def test_a_pattern_must_match_the_whole_text() -> None:
    assert formed(" Answer: 5\nsure \n", pattern=r"Answer: \d+.*") == 1.0
    assert formed("My Answer: 5", pattern=r"Answer: \d+.*") == 0.0


def test_a_pattern_that_explodes_is_no_match_and_does_not_hang() -> None:
    started = time.monotonic()
    assert formed("x" * 20_000, pattern=r"(?:x+x+)+y") == 0.0
    assert formed("a" * 60 + "b", pattern=r"(a|aa)+$") == 0.0
    assert time.monotonic() - started < 20


SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"n": 5}', 1.0),
        ('```json\n{"n": 5}\n```', 1.0),
        ('{"n": "5"}', 0.0),
        ('{"n": 5, "m": 1}', 0.0),
        ('{"n": 5', 0.0),
        ('Here: {"n": 5}', 0.0),
        ('{"n": NaN}', 0.0),
        ("[" * 100_000, 0.0),
        ('{"n": ' + "1" * 10_000 + "}", 0.0),
    ],
)
def test_json_must_follow_its_schema(text: str, expected: float) -> None:
    assert formed(text, json_schema=SCHEMA) == expected


def test_any_json_will_do_for_the_empty_schema_except_what_json_does_not_have() -> None:
    assert formed("[1, 2]", json_schema={}) == 1.0
    assert [formed(text, json_schema={}) for text in ("NaN", "1e999", '{"a": 1, "a": 2}')] == [0.0, 0.0, 0.0]


def test_a_schema_bounds_its_time_whatever_the_json() -> None:
    explodes = "^(a+)+$"
    long = json.dumps({"a" * 60 + "!": "a" * 60 + "!"})
    started = time.monotonic()
    assert formed(long, json_schema={"additionalProperties": {"pattern": explodes}}) == 0.0
    assert formed(long, json_schema={"patternProperties": {explodes: {"type": "integer"}}}) == 1.0, "no match"
    assert formed(long, json_schema={"patternProperties": {"^b": {}}, "additionalProperties": False}) == 0.0
    assert formed('{"ab": 1}', json_schema={"patternProperties": {"^a": {}}, "additionalProperties": False}) == 1.0
    many = [{"a": [number]} for number in range(20_000)]
    assert formed(json.dumps(many), json_schema={"uniqueItems": True}) == 1.0
    assert formed(json.dumps([*many, many[0]]), json_schema={"uniqueItems": True}) == 0.0
    assert formed("[1, true]", json_schema={"uniqueItems": True}) == 1.0
    assert formed("[1, 1.0]", json_schema={"uniqueItems": True}) == 0.0
    assert time.monotonic() - started < 20


def test_length_bands_give_their_scores_and_the_product_counts() -> None:
    bands = {"unit": "words", "bands": [{"at_least": 2, "at_most": 3}, {"at_least": 4, "at_most": 5, "score": 0.5}]}
    reward = format_reward(FormatSettings(length=bands, pattern="[a-z ]+"), None)
    texts = ("one", "one two", "one two three four", "a b c d e f", "ONE TWO", "天气")
    assert score(reward, *texts) == [0.0, 1.0, 0.5, 0.0, 0.0, 0.0]
    assert reward.score([Sample("", text) for text in texts]).parts == {
        "pattern": [1.0, 1.0, 1.0, 1.0, 0.0, 0.0],
        "length": [0.0, 1.0, 0.5, 0.0, 1.0, 1.0],
    }


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat is on the mat and it was not happy", "en"),
        ("Das ist ein Haus und es ist nicht groß", "de"),
        ("C'est la vie, et les gens sont dans la rue", "fr"),
        ("El gato es muy bonito y está en la casa", "es"),
        ("Il gatto è nella casa che non ha finestre", "it"),
        ("O gato foi para a casa com uma menina", "pt"),
        ("今天天气很好。", "zh"),
        ("我用 Python 写代码\uff0c效果真的非常好", "zh"),
        ("今日はいい天気です。", "ja"),
        ("안녕하세요", "ko"),
        ("Привет, мир", "ru"),
    ],
)
def test_languages_are_told_from_each_other(text: str, language: str) -> None:
    assert formed(text, language=language) == 1.0
    others = [other for other in ("en", "de", "fr", "es", "it", "pt", "zh", "ja", "ko", "ru") if other != language]
    assert [other for other in others if is_in(text, other)] == []


def test_code_and_formulas_are_in_no_language() -> None:
    assert formed("答案是 `print('hello world')`\uff0c即 $\\frac{1}{2}$。", language="zh") == 1.0
    assert formed("12 + 3", language="en") == 0.0


# ---- checklist


SALES: dict[str, Any] = {
    "parts": {
        "format": {"weight": 0.2, "structure": {"line_breaks": 2, "list_items": 2, "emphasis": 1, "sentences": 1}},
        "elements": {
            "weight": 0.3,
            "elements": [
                {"any": ["price", "costs", "价格"]},
                {"all": ["delivery", "days"]},
                {"pattern": r"\d+ ?%", "weight": 2},
            ],
        },
        "length": {
            "weight": 0.1,
            "length": {"bands": [{"at_least": 20, "at_most": 400}, {"at_least": 401, "score": 0.3}]},
        },
        "safety": {"weight": 0.2, "forbidden": ["guaranteed", "best ever"]},
    },
}
GOOD = """**Our lamp** costs $20.
- Now 10 % off!
- Free delivery in 3 days."""


def test_a_text_that_does_all_that_is_asked_gets_the_sum_of_the_weights() -> None:
    reward = checklist(ChecklistSettings(**SALES), None)
    assert score(reward, GOOD) == [pytest.approx(0.2 + 0.3 + 0.1 + 0.2)]


def test_parts_are_told_unweighted_and_by_name() -> None:
    reward = checklist(ChecklistSettings(**SALES), None)
    text = "The price is low. It is guaranteed to please you."
    found = reward.score([Sample("", text), Sample("", "")]).parts
    # one of four layouts (a sentence); one of four weighted elements (the price); 20 to 400 characters; a bad word
    assert found == {
        "format": [0.25, 0.0],
        "elements": [0.25, 0.0],
        "length": [1.0, 0.0],
        "safety": [0.0, 0.0],
    }
    assert score(reward, text) == [pytest.approx(0.2 * 0.25 + 0.3 * 0.25 + 0.1 * 1.0)]
    (outcome, _) = reward.judge([Sample("", text), Sample("", "")])
    assert outcome.parts["elements"] == 0.25


def test_forbidden_phrases_of_the_whole_list_make_everything_0() -> None:
    reward = checklist(ChecklistSettings(**SALES, forbidden=("idiot",)), None)
    assert score(reward, GOOD + " You idiot!", GOOD + " No idiotic words.") == [0.0, pytest.approx(0.8)]


def test_an_element_needs_all_that_it_names() -> None:
    parts = {"one": {"elements": [{"any": ["a", "b"], "all": ["c", "d"], "pattern": "^e"}]}}
    reward = checklist(ChecklistSettings(parts=parts), None)
    assert score(reward, "e a c d", "e c d", "e a c", "a c d") == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("structure", "yes", "no"),
    [
        ({"paragraphs": 2}, "a\nb\n\nc", "a\nb\nc"),
        ({"headings": 1}, "# A\nb", "#A\nb"),
        ({"list_items": 2}, "1. a\n2. b", "1. a\n2."),
        ({"list_items": 2}, "- **a**: b\n* *c*", "-5 degrees\n---"),
        ({"list_items": 2}, "1.好\n(2) b", "1.5 of it\n100.000 people"),
        ({"list_items": 2}, "- a\n* b", "**a**\n**b**"),
        ({"emphasis": 1}, "so **bold** it is", "so ** it is **"),
        ({"emphasis": 1}, "so __bold__ it is", "a__b__c"),
        ({"sentences": 2}, "One. Two!", "One.... ?!"),
        ({"sentences": 2}, "Wait... what?", "See www.example.com, 3.14 and 2.5 of it."),
        ({"sentences": 2}, "今天好。明天也好\uff01", "今天好"),
        ({"line_breaks": 1}, "a\n\n\nb", "a\n\n\n"),
        ({"ends_with_mark": True}, 'He said "yes."', "He said"),
        ({"ends_with_mark": True}, "他说\u300c好。\u300d", "他说\u300c好"),
        ({"ends_with_mark": True}, "ठीक\u0964 \U0001f600", "ठीक \U0001f600"),
    ],
)
def test_structure_is_counted(structure: dict[str, Any], yes: str, no: str) -> None:
    reward = checklist(ChecklistSettings(parts={"one": {"structure": structure}}), None)
    assert score(reward, yes, no) == [1.0, 0.0]


@pytest.mark.parametrize("text", ["**" * 50_000, "- \n" * 50_000, "." * 100_000, "a" * 200_000, "\n \n" * 50_000])
def test_hostile_texts_are_counted_quickly(text: str) -> None:
    started = time.monotonic()
    score(checklist(ChecklistSettings(**SALES), None), text)
    assert time.monotonic() - started < 5


def test_keywords_are_words_and_not_parts_of_them() -> None:
    assert says("art", "The ART of war")
    assert not says("art", "a party")
    assert says("best ever", "the best\n ever")
    assert says("优惠", "价格优惠了")
    assert says("iPhone", "新iphone价格")
    assert says("$5", "only $5!")
    assert not says("кот", "который")
    assert not says("سلام", "سلامة")
    assert says("猫", "黒猫です")
    assert says("서울", "서울에서")


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("no idea", "No\u00a0\n IDEA"),
        ("no idea", "no i\u200bdea"),  # a space without width
        ("no idea", "no id\u00adea"),  # a hyphen that is not seen
        ("no idea", "no \u0456de\u0430"),  # Cyrillic letters among Latin ones
        ("no idea", "\uff4e\uff4f \uff49\uff44\uff45\uff41"),
        ("no idea", "**no** `idea`"),
        ("can't", "I can\u2019t say"),
        ("café", "cafe\u0301"),
        ("straße", "STRASSE"),
        ("best-ever", "best\u2011ever"),
    ],
)
def test_a_forbidden_phrase_is_found_however_it_is_dressed_up(phrase: str, said: str) -> None:
    reward = checklist(ChecklistSettings(parts={"safety": {"forbidden": [phrase]}}), None)
    assert score(reward, f"Well, {said}.", "Well, nothing.") == [0.0, 1.0]


# ---- settings are refused


@pytest.mark.parametrize(
    ("settings", "values", "problem"),
    [
        (FormatSettings, {}, "nothing is asked for"),
        (FormatSettings, {"pattern": "(a"}, r"does not compile, got '\(a'"),
        (FormatSettings, {"tags": ("a", "a")}, "a tag stands twice"),
        (FormatSettings, {"tags": ("a b",)}, "tags"),
        (FormatSettings, {"json_schema": {"type": "objekt"}}, "is no JSON Schema"),
        (FormatSettings, {"json_schema": {"$ref": "https://example.org/s"}}, "must stay inside"),
        (FormatSettings, {"json_schema": {"properties": {"enum": {"$ref": "a.json"}}}}, "must stay inside"),
        (FormatSettings, {"json_schema": {"items": {"$ref": "#/$defs/x"}}}, "names nothing in the schema"),
        (FormatSettings, {"json_schema": {"$schema": "http://example.org/x"}}, "unknown kind of schema"),
        (FormatSettings, {"json_schema": {}, "tags": ("a",)}, "contradict each other"),
        (FormatSettings, {"language": "xx"}, "language"),
        (FormatSettings, {"length": {"bands": [{"at_least": 9, "at_most": 5}]}}, "lies below at_least"),
        (FormatSettings, {"length": {"bands": [{"at_most": 5}, {"at_least": 5}]}}, "bands contradict each other"),
        (FormatSettings, {"length": {"bands": [{"at_least": 3}, {"at_least": 5}]}}, "bands contradict each other"),
        (ChecklistSettings, {"parts": {}}, "parts"),
        (ChecklistSettings, {"parts": {"a": {}}}, "nothing is asked for"),
        (ChecklistSettings, {"parts": {"a": {"weight": -1, "forbidden": ["x"]}}}, "weight"),
        (ChecklistSettings, {"parts": {"a": {"weight": 0, "forbidden": ["x"]}}}, "add up to 0"),
        (ChecklistSettings, {"parts": {"a": {"elements": [{"weight": 2}]}}}, "names nothing"),
        (ChecklistSettings, {"parts": {"a": {"elements": [{"pattern": "["}]}}}, "does not compile"),
        (ChecklistSettings, {"parts": {"a": {"forbidden_patterns": ["*"]}}}, "does not compile"),
        (ChecklistSettings, {"parts": {"a": {"structure": {}}}}, "nothing is asked for"),
        (ChecklistSettings, {"parts": {"a": {"forbidden": [" \u200b"]}}}, "without a character that is seen"),
        (ChecklistSettings, {"parts": {"a": {"forbidden_patterns": [""]}}}, "is found in every text, got ''"),
        (ChecklistSettings, {"parts": {"a": {"elements": [{"pattern": "(why)?"}]}}}, "is found in every text"),
        (FormatSettings, {"length": {"bands": [{"at_most": 5, "score": 0}]}}, "every band has a score of 0"),
        (LengthPenaltySettings, {"max_tokens": 10, "soft_tokens": 11}, "soft_tokens 11"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: Any, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        settings(**values)


RECIPE = """\
name: sales
domain: {type: chat}
stages:
  grpo:
    algorithm:
      type: grpo
      rollout: {type: sample}
      rewards:
        - type: format
          pattern: "(open"
        - type: checklist
          parts:
            safety: {forbidden: [never], weight: -1}
            length:
              length: {bands: [{at_most: 9}, {at_least: 5}]}
"""


def test_a_recipe_is_refused_with_the_place_of_each_wrong_rule(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    places = [(line.split(":")[1], line.split(": ")[1]) for line in error.value.problems]
    rewards = "stages.grpo.algorithm.rewards"
    assert places == [
        ("10", f"{rewards}.0.pattern"),
        ("13", f"{rewards}.1.parts.safety.weight"),
        ("15", f"{rewards}.1.parts.length.length.bands"),
    ]


@pytest.mark.parametrize(
    ("rewards", "problem"),
    [
        ([{"type": "exact_match", "weight": -1}, {"type": "repetition", "weight": 0.5}], "the weights add up to -0.5"),
        ([{"type": "exact_match", "weight": 0}], "the weights add up to 0"),
        ([{"type": "exact_match", "gate": True}], "every part is a gate"),
    ],
)
def test_weights_that_turn_the_reward_round_are_refused(rewards: list[dict[str, Any]], problem: str) -> None:
    algorithm = {"type": "grpo", "rollout": {"type": "sample"}, "rewards": rewards}
    tree = {"name": "x", "domain": {"type": "chat"}, "stages": {"grpo": {"algorithm": algorithm}}}
    with pytest.raises(RecipeError, match=rf"stages\.grpo\.algorithm\.rewards: {problem}"):
        recipe_from_tree(tree)
    rewards.append({"type": "math", "weight": 2})
    recipe_from_tree(tree)


# ---- diversity, repetition, length


def rollouts(texts: list[list[str]], prompts: list[str], tokenizer: Any) -> Rollouts:
    """Return groups of completions as rollouts; every one ends with the end token."""
    ids = [[[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in group] for group in texts]
    width = max(len(row) for group in ids for row in group)
    completions = torch.zeros(len(ids), len(ids[0]), width, dtype=torch.long)
    mask = torch.zeros(completions.shape, dtype=torch.bool)
    for b, group in enumerate(ids):
        for g, row in enumerate(group):
            completions[b, g, : len(row)] = torch.tensor(row)
            mask[b, g, : len(row)] = True
    asked = torch.ones(len(ids), 1, dtype=torch.long)
    batch = GroupBatch(asked, asked.bool(), completions, mask)
    records = [Prompt(str(at), text, "", Source("x")) for at, text in enumerate(prompts)]
    scores = torch.zeros(mask.shape[:2])
    nothing = torch.zeros(len(ids), 0)
    return Rollouts(records, batch, scores, None, scores.bool(), nothing.long(), nothing.bool())  # fmt: skip


def test_diversity_averages_to_the_distinct_n_of_the_group() -> None:
    reward = Diversity(DiversitySettings(ngram=2), None)
    # group p: bigrams ab bc | ab bd: 3 distinct of 4; each text has one of its own and one that is said twice
    # group q: the same text alone is as diverse as can be
    samples = [Sample("p", "a b c"), Sample("q", "a b c"), Sample("p", "a b d"), Sample("r", "")]
    assert reward.score(samples) == [0.75, 1.0, 0.75, 0.0]
    texts = ["a b c a b", "a b", "c a b e", "x"]
    grams = [ngrams(words(text), 2) for text in texts]
    found = reward.score([Sample("p", text) for text in texts])
    together = [gram for one in grams for gram in one]
    mean = sum(value * len(one) for value, one in zip(found, grams)) / len(together)
    assert mean == pytest.approx(len(set(together)) / len(together))
    assert found[3] > found[2] > found[1]


def test_diversity_of_rollouts_goes_by_row_and_not_by_prompt() -> None:
    tokenizer = tiny_model().tokenizer
    reward = Diversity(DiversitySettings(ngram=1), SimpleNamespace(tokenizer=tokenizer))
    made = rollouts([["a b", "a b"], ["a b", "c d"]], ["p", "p"], tokenizer)
    made.batch.mask[1, 1] = False  # a completion that is absent
    assert torch.equal(reward(made), torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    assert [outcome.score for outcome in reward.outcomes] == [0.5, 0.5, 1.0]


def test_repetition_is_the_share_of_ngrams_said_before() -> None:
    reward = repetition(RepetitionSettings(ngram=2), None)
    # ab ba ab ba ab: 2 of 5 are new
    assert score(reward, "a b a b a b", "a b c d", "a", "") == [pytest.approx(-0.6), 0.0, 0.0, 0.0]
    assert score(reward, "ha" * 500)[0] < -0.9, "a word that repeats itself"
    assert score(reward, "好好好好好")[0] == pytest.approx(-0.75)  # 1 of 4 is new


def test_the_length_penalty_is_daposs() -> None:
    # L_max 10, L_cache 4: 0 up to 6, then (6 - n) / 4, and -1 from 10 on
    found = overlong(torch.tensor([[1, 6, 7], [8, 10, 99]]), 10, 4)
    assert torch.equal(found, torch.tensor([[0.0, 0.0, -0.25], [-0.5, -1.0, -1.0]]))


def test_the_length_penalty_counts_the_tokens_of_rollouts_and_of_rows_alike() -> None:
    tokenizer = tiny_model().tokenizer
    reward = LengthPenalty(LengthPenaltySettings(max_tokens=10, soft_tokens=4), SimpleNamespace(tokenizer=tokenizer))
    texts = ["abcde", "abcdef", "abcdefg"]  # a token per byte, and the end token: 6, 7, 8
    found = reward(rollouts([texts], ["p"], tokenizer))
    assert found.tolist() == [[0.0, -0.25, -0.5]]
    assert reward.score([Sample("p", text) for text in texts]) == [0.0, -0.25, -0.5]
    assert reward.score([Sample("p", texts[0] + "f", truncated=True)]) == [0.0], "no end token"


def test_the_length_penalty_without_a_tokenizer_says_what_to_do() -> None:
    with pytest.raises(RecipeError, match="use it in a recipe"):
        LengthPenalty(LengthPenaltySettings(), None).score([Sample("", "a")])


# ---- language


CHINESE = "<|im_start|>user\n今天天气怎么样\uff1f<|im_end|>\n<|im_start|>assistant\n"


def test_consistency_is_the_share_of_letters_in_the_prompts_script() -> None:
    reward = language_consistency(LanguageConsistencySettings(), None)
    found = score(reward, "今天很好。", "good", "很good", "42 + 1", prompt=CHINESE)
    assert found == [1.0, 0.0, pytest.approx(0.2), 1.0]
    assert score(reward, "It is good.", "很好", prompt="<|user|>How is it?<|assistant|>") == [1.0, 0.0]
    assert score(reward, "答案是 `print(1)`\uff0c即 $x$。", prompt=CHINESE) == [1.0], "code and formulas do not count"


def test_consistency_with_a_language_does_not_look_at_the_prompt() -> None:
    reward = language_consistency(LanguageConsistencySettings(language="ja"), None)
    assert score(reward, "今日はいい天気", "good", prompt="hello") == [1.0, 0.0]


def test_marks_of_chat_templates_are_not_the_prompts_language() -> None:
    assert main_scripts(CHINESE) == ("CJK",)
    assert main_scripts("<|user|>你好<|assistant|>") == ("CJK",)
    assert main_scripts("[INST] Привет [/INST]") == ("CYRILLIC",)
    assert main_scripts("1 + 1 = ?") == ()
