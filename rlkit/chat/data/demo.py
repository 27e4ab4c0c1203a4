"""Generate the demo: questions to a shop's assistant, answered politely, curtly or not at all.

A prompt names an item with its color, size and price and asks for one of the three; all that an answer needs stands in
the prompt, so a right answer can be learned and not only remembered. Demonstrations mix three styles, which a model
that imitates them mixes too; preferences and feedback favor the polite answer that is right. So a reward model has
something to tell apart (length alone does not: every style has long and short forms), and PPO and DPO a direction to
move in. With a share p of polite demonstrations, rewards that only tell polite from other can rise by
sqrt((1 - p) / p) standard deviations: 1.5 at the default of .3.

Texts are short (prompts and answers of at most 40 bytes), for models that read bytes. What is held back are pairs of an
item and an attribute that train never asks for, the same ones in all four sources: a tenth of the pairs is valid,
another tenth test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from rlkit.chat.data.rows import SPLITS, Dialogue, Pair, Question, Rated, Row, assistant, user
from rlkit.chat.data.splits import SourceData
from rlkit.config.chat import ChatDemoSettings
from rlkit.errors import DataError
from rlkit.records import Source

ITEMS = [
    *("lamp", "chair", "table", "shelf", "sofa", "rug", "clock", "vase", "mirror", "desk", "stool", "bench"),
    *("basket", "candle", "pillow", "blanket", "curtain", "kettle", "teapot", "bowl", "plate", "mug", "tray", "jar"),
]
VALUES = {
    "color": ["red", "blue", "green", "white", "black", "gray", "brown", "pink"],
    "size": ["small", "big", "tall", "wide"],
    "price": ["$5", "$7", "$9", "$12", "$15", "$18", "$20", "$25", "$30", "$40", "$60", "$80"],
}
QUESTIONS = {
    "color": ("What color?", "Its color?"),
    "size": ("What size?", "How big?"),
    "price": ("How much?", "The price?"),
}
POLITE = (
    "The {item} is {value}. Happy to help!",
    "Sure! The {item} is {value}.",
    "The {item} is {value}. Anything else?",
)
CURT = ("{value}.", "It's {value}.", "It is {value}, as it says right there.")
UNHELPFUL = (
    "No idea.",
    "Not my job.",
    "You could have read the label yourself.",
    "Ask someone else, I am on my break.",
)
WRONG_SHARE = 0.05
"""The share of rejected answers that are polite but name a wrong value."""
HELD_SHARE = 0.1
"""The share of pairs of item and attribute that is valid, and of those that are test."""


class Asked(NamedTuple):
    """One question: the item, what it is like, and the attribute asked for."""

    item: str
    facts: dict[str, str]
    attribute: str
    text: str

    def say(self, forms: Sequence[str], rng: random.Random, value: str = "") -> str:
        """Return an answer in one of several forms; with a value in place of the right one where that is given."""
        return rng.choice(forms).format(item=self.item, value=value or self.facts[self.attribute])


def generate_demo(settings: ChatDemoSettings, kind: str) -> SourceData:
    """Generate one source.

    Args:
        settings: sizes, shares and seed.
        kind: demonstrations, preferences, feedback or prompts.

    Raises:
        DataError: another kind is asked for.
    """
    if kind not in _MAKERS:
        raise DataError(f"chat_demo: holds no {kind}; take type: arithmetic, or name a file")
    counts = {"demonstrations": settings.conversations, "prompts": settings.prompts}
    count = counts.get(kind, settings.pairs)
    make = _MAKERS[kind]
    splits: dict[str, tuple[Row, ...]] = {}
    for split, topics in zip(SPLITS, _topics(settings.seed)):
        rng = random.Random(f"{settings.seed} {kind} {split}")
        size = count if split == "train" else max(count // 10, 20)
        source = f"chat_demo/{kind}/{split}"
        splits[split] = tuple(
            make(_ask(rng.choice(topics), rng), settings, rng, Source(source, at)) for at in range(1, size + 1)
        )
    return SourceData(splits)


def _topics(seed: int) -> list[list[tuple[str, str]]]:
    """Return the pairs of item and attribute of train, valid and test."""
    topics = list(product(ITEMS, VALUES))
    random.Random(f"{seed} topics").shuffle(topics)
    held = int(HELD_SHARE * len(topics))
    return [topics[2 * held :], topics[:held], topics[held : 2 * held]]


def _ask(topic: tuple[str, str], rng: random.Random) -> Asked:
    item, attribute = topic
    facts = {name: rng.choice(values) for name, values in VALUES.items()}
    text = f"{item}, {', '.join(facts.values())}. {rng.choice(QUESTIONS[attribute])}"
    return Asked(item, facts, attribute, text)


def _conversation(asked: Asked, settings: ChatDemoSettings, rng: random.Random, source: Source) -> Row:
    others = (1 - settings.polite) / 2
    forms = rng.choices((POLITE, CURT, UNHELPFUL), (settings.polite, others, others))[0]
    return Dialogue((user(asked.text), assistant(asked.say(forms, rng))), source)


def _pair(asked: Asked, settings: ChatDemoSettings, rng: random.Random, source: Source) -> Row:
    better, worse = (assistant(asked.say(POLITE, rng)),), (assistant(_worse(asked, rng)),)
    if rng.random() < settings.noise:
        better, worse = worse, better
    return Pair((user(asked.text),), better, worse, source)


def _worse(asked: Asked, rng: random.Random) -> str:
    if rng.random() < WRONG_SHARE:
        others = [value for value in VALUES[asked.attribute] if value != asked.facts[asked.attribute]]
        return asked.say(POLITE, rng, rng.choice(others))
    return asked.say(rng.choice((CURT, UNHELPFUL)), rng)


def _rated(asked: Asked, settings: ChatDemoSettings, rng: random.Random, source: Source) -> Row:
    good = rng.random() < 0.5
    text = asked.say(POLITE, rng) if good else _worse(asked, rng)
    return Rated((user(asked.text),), (assistant(text),), good != (rng.random() < settings.noise), source)


def _prompt(asked: Asked, settings: ChatDemoSettings, rng: random.Random, source: Source) -> Row:
    context = {"item": asked.item, "attribute": asked.attribute, "value": asked.facts[asked.attribute]}
    return Question((user(asked.text),), asked.say(POLITE[:1], rng), source, context)


_MAKERS: dict[str, Callable[[Asked, ChatDemoSettings, random.Random, Source], Row]] = {
    "demonstrations": _conversation,
    "preferences": _pair,
    "feedback": _rated,
    "prompts": _prompt,
}
