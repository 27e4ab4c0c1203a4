"""Scripts and languages, told by characters and by the commonest words. Light, and good enough to see a mixture."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

SCRIPTS = {
    "zh": ("CJK",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "ko": ("HANGUL",),
    "ru": ("CYRILLIC",),
    "ar": ("ARABIC",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "th": ("THAI",),
}
"""The scripts of a language; of all others it is LATIN."""
COMMON = {
    "en": "the of and to in is that it for was on are with as his they be at this have from or by not but what all",
    "de": "der die und in den von zu das mit sich des auf ist im dem nicht ein eine als auch es an werden aus er hat",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec nous",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como mas o pero sus le ha muy",
    "it": "di e il la che in a per un del con non una su le da si come i al piu lo ma della sono gli ha nel",
    "pt": "de a o que e do da em um para com nao uma os no se na por mais as dos como mas ao ele das foi tem seu",
}
"""The commonest words of the languages in Latin script, without accents."""
WEIGHTS = {"CJK": 3, "HIRAGANA": 2, "KATAKANA": 2, "HANGUL": 2}
"""How many Latin letters a character says as much as, for telling what a text is in: PyTorch is one word in Chinese."""
ENOUGH = 0.85
"""The share of letters in its script, weighed, from which a text is in a language."""

_MARKERS = re.compile(r"<\|[^|<>\n]{1,40}\|>(?:(?:system|user|assistant|tool)\b)?|</?[a-zA-Z_][\w.-]*>|\[/?INST\]")
_NOT_LANGUAGE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\[a-zA-Z]+|https?://\S+", re.DOTALL)


def plain_text(text: str) -> str:
    """Return a text without a chat template's marks, tags, code, formulas and addresses."""
    return _NOT_LANGUAGE.sub(" ", _MARKERS.sub(" ", text))


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]


def scripts(text: str) -> Counter[str]:
    """Count the letters of a text by script, such as LATIN, CJK or CYRILLIC."""
    found: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            found[_script(character)] += count
    return found


def _weighed(counts: Counter[str]) -> Counter[str]:
    return Counter({name: count * WEIGHTS.get(name, 1) for name, count in counts.items()})


def main_scripts(text: str) -> tuple[str, ...]:
    """Return the script that most of a text is in, and what is written beside it: kana with Chinese characters."""
    counts = scripts(plain_text(text))
    weighed = _weighed(counts)
    if not weighed:
        return ()
    if any(name in counts for name in ("HIRAGANA", "KATAKANA")):
        japanese = sum(weighed[name] for name in SCRIPTS["ja"])
        if 2 * japanese > weighed.total():
            return SCRIPTS["ja"]
    return (weighed.most_common(1)[0][0],)


def share_in(text: str, wanted: tuple[str, ...]) -> float:
    """Return the share of a text's letters that are in some scripts; 1 where it has no letters."""
    counts = scripts(plain_text(text))
    return sum(counts[name] for name in wanted) / counts.total() if counts else 1.0


def scripts_of(language: str) -> tuple[str, ...]:
    """Return the scripts of a language."""
    return SCRIPTS.get(language, ("LATIN",))


def is_in(text: str, language: str) -> bool:
    """Return whether a text is in a language: its script, and in Latin script its commonest words.

    A text without letters is in no language; one of a few words in Latin script passes for any of them.
    """
    text = plain_text(text)
    weighed = _weighed(scripts(text))
    if not weighed or sum(weighed[name] for name in scripts_of(language)) < ENOUGH * weighed.total():
        return False
    if language == "ja":
        return any(name in scripts(text) for name in ("HIRAGANA", "KATAKANA"))
    return language not in COMMON or language in _by_words(text)


def _by_words(text: str) -> set[str]:
    """Return the languages in Latin script that a text may be in: those whose common words it uses most."""
    plain = unicodedata.normalize("NFD", text.lower())
    said = Counter(re.findall(r"[a-z]+", re.sub(r"[\u0300-\u036f]", "", plain)))
    counts = {name: sum(said[word] for word in listed.split()) for name, listed in COMMON.items()}
    most = max(counts.values())
    return {name for name, count in counts.items() if count >= 0.9 * most}
