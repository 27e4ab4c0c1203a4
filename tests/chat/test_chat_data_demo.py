"""The generated demo: what it promises about its rows."""

from __future__ import annotations

import pytest

from rlkit.chat.data.demo import CURT, POLITE, UNHELPFUL, generate_demo
from rlkit.chat.data.read import read_chat
from rlkit.chat.data.rows import SPLITS
from rlkit.config.chat import ChatDemoSettings, ChatSettings

KINDS = ("demonstrations", "preferences", "feedback", "prompts")
SETTINGS = ChatDemoSettings(conversations=1000, pairs=1000, prompts=300)


def style(prompt: str, text: str) -> str:
    """Return how a text answers a prompt: politely and right, curtly and right, not at all, or wrong."""
    item, color, size, price, question = prompt.replace(".", ",", 1).split(", ")
    value = color if "color" in question else size if ("size" in question or "big" in question) else price
    forms = {"polite": POLITE, "curt": CURT, "unhelpful": UNHELPFUL}
    for name, texts in forms.items():
        if text in [one.format(item=item, value=value) for one in texts]:
            return name
    return "wrong"


def styles(texts: list[tuple[str, str]]) -> dict[str, float]:
    """Return the share of each style."""
    found = [style(*pair) for pair in texts]
    return {name: found.count(name) / len(found) for name in ("polite", "curt", "unhelpful", "wrong")}


def test_demonstrations_mix_the_styles_by_their_shares() -> None:
    rows = generate_demo(SETTINGS, "demonstrations").splits["train"]
    shares = styles([(row.messages[0].content, row.messages[1].content) for row in rows])
    # 1,000 draws: a standard error of .015
    assert shares == {
        "polite": pytest.approx(0.3, abs=0.05),
        "curt": pytest.approx(0.35, abs=0.05),
        "unhelpful": pytest.approx(0.35, abs=0.05),
        "wrong": 0,
    }
    polite = ChatDemoSettings(conversations=1000, polite=0.8)
    rows = generate_demo(polite, "demonstrations").splits["train"]
    assert styles([(row.messages[0].content, row.messages[1].content) for row in rows])["polite"] > 0.75


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_polite_and_right_answer_is_preferred_but_for_noise(noise: float) -> None:
    settings = SETTINGS.model_copy(update={"noise": noise})
    pairs = generate_demo(settings, "preferences").splits["train"]
    chosen = styles([(row.prompt[0].content, row.chosen[0].content) for row in pairs])
    assert chosen["polite"] == pytest.approx(1 - noise, abs=0.03)
    rejected = styles([(row.prompt[0].content, row.rejected[0].content) for row in pairs])
    assert rejected["wrong"] == pytest.approx(0.05 * (1 - noise), abs=0.03)
    rated = generate_demo(settings, "feedback").splits["train"]
    wrong = [
        row for row in rated if row.desirable != (style(row.prompt[0].content, row.completion[0].content) == "polite")
    ]
    assert len(wrong) / len(rated) == pytest.approx(noise, abs=0.03)
    assert 0.4 < sum(row.desirable for row in rated) / len(rated) < 0.6


def test_prompts_carry_the_polite_answer_and_what_it_is_about() -> None:
    for row in generate_demo(SETTINGS, "prompts").splits["test"]:
        assert style(row.prompt[0].content, row.answer) == "polite"
        assert row.context["item"] in row.answer
        assert row.context["value"] in row.answer


def test_no_split_asks_for_what_another_asks_for_in_any_source() -> None:
    data = read_chat(ChatSettings())
    topics: dict[str, set[tuple[str, str]]] = {split: set() for split in SPLITS}
    for kind in KINDS:
        for split in SPLITS:
            for row in data.rows[kind][split]:
                prompt = row.prompt[0].content
                question = prompt.rpartition(". ")[2]
                about = (
                    "color" if "color" in question else "size" if "size" in question or "big" in question else "price"
                )
                topics[split].add((prompt.partition(",")[0], about))
    assert [len(topics[split]) for split in SPLITS] == [58, 7, 7]  # of 24 x 3 = 72, a tenth each
    assert not topics["train"] & topics["valid"]
    assert not (topics["train"] | topics["valid"]) & topics["test"]


def test_texts_are_short_enough_for_models_that_read_bytes() -> None:
    data = read_chat(ChatSettings())
    texts = [row.prompt[0].content for row in data.rows["prompts"]["train"]]
    texts += [one.content for row in data.rows["demonstrations"]["train"] for one in row.messages]
    assert max(len(text.encode()) for text in texts) <= 40


def test_the_seed_decides_everything() -> None:
    for kind in KINDS:
        one, same = generate_demo(SETTINGS, kind), generate_demo(SETTINGS, kind)
        assert one.splits == same.splits
        assert one.splits != generate_demo(SETTINGS.model_copy(update={"seed": 1}), kind).splits
    counts = {kind: [len(generate_demo(SETTINGS, kind).splits[split]) for split in SPLITS] for kind in KINDS}
    assert counts == {
        "demonstrations": [1000, 100, 100],
        "preferences": [1000, 100, 100],
        "feedback": [1000, 100, 100],
        "prompts": [300, 30, 30],
    }


def test_the_longer_answer_is_no_guide() -> None:
    pairs = generate_demo(SETTINGS, "preferences").splits["train"]
    longer = [len(row.chosen[0].content) > len(row.rejected[0].content) for row in pairs]
    assert 0.5 < sum(longer) / len(longer) < 0.8
