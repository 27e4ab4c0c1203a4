"""What can be said of answers as texts: overlap with reference answers, diversity, phrases; and who wins.

BLEU is sacrebleu's, ROUGE is rouge-score's; distinct-n is that of Li et al. 2016 (arXiv 1510.03055, section 5).
Values are exact functions of the texts; nothing here knows a model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rlkit.ops.bootstrap import RESAMPLES, bootstrap_intervals

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
OPENING = 200
"""Characters of an answer in which a refusal is looked for."""
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
_NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def mean_with_interval(values: np.ndarray, groups: np.ndarray | None = None, seed: int = 0) -> Estimate:
    """Return the mean of values (R,), and the interval of a bootstrap over groups.

    Args:
        values: finite, (R,).
        groups: (R,) what is drawn together, such as the conversation of each token; none: every value by itself.
        seed: of the resamples.
    """
    groups = np.arange(len(values)) if groups is None else groups
    low, high = bootstrap_intervals(values[:, None], groups, seed)[0].tolist()
    return Estimate(float(values.mean()), low, high)


def words(text: str) -> list[str]:
    """Return the words in lower case: runs of letters and digits; of Chinese and Japanese each character by itself.

    On ASCII text these are the tokens of rouge-score, whose own tokenizer drops every other script.
    """
    return _WORD.findall(text.lower())


def has_cjk(text: str) -> bool:
    """Return whether a text holds Chinese or Japanese characters."""
    return re.search(f"[{_CJK}]", text) is not None


# ---- overlap with reference answers


def bleu(answers: Sequence[str], references: Sequence[str], tokenizer: str, seed: int = 0) -> Estimate:
    """Return corpus BLEU (0 to 100) with a bootstrap interval over the pairs.

    Args:
        answers: R texts.
        references: the reference answer of each.
        tokenizer: sacrebleu's name of it.
        seed: of the resamples.
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize=tokenizer, effective_order=True)  # else sacrebleu warns; the counts are the same
    scores = [metric.sentence_score(answer, [reference]) for answer, reference in zip(answers, references)]
    counted = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores])  # (R, 10)

    def of_sums(sums: np.ndarray) -> float:
        *ngrams, answer_length, reference_length = sums.tolist()
        found = BLEU.compute_bleu(ngrams[:4], ngrams[4:], answer_length, reference_length, smooth_method="exp")
        return float(found.score)

    drawn = np.random.default_rng(seed).multinomial(len(counted), np.full(len(counted), 1 / len(counted)), RESAMPLES)
    low, high = np.quantile([of_sums(sums) for sums in drawn @ counted], [0.025, 0.975]).tolist()
    return Estimate(of_sums(counted.sum(0)), low, high)


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the F-measure (R,) of ROUGE-1, ROUGE-2 and ROUGE-L of each answer with its reference, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class Words(Tokenizer):
        """Our words."""

        def tokenize(self, text: str) -> list[str]:
            return words(text)

    scorer = RougeScorer(list(ROUGE.values()), tokenizer=Words())
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references)]
    return {name: np.array([score[theirs].fmeasure for score in scores]) for name, theirs in ROUGE.items()}


# ---- diversity


def distinct(texts: Sequence[str], n: int) -> Estimate | None:
    """Return the number of different n-grams of words over the number of all of them; None where there is none.

    The interval is the jackknife's, not the bootstrap's: a resample repeats texts, and repeated texts are exactly
    what this measures.

    Args:
        texts: the answers.
        n: words of an n-gram.
    """
    grams = [Counter(zip(*(tokens[i:] for i in range(n)))) for tokens in map(words, texts)]
    totals: Counter[tuple[str, ...]] = Counter()
    for counts in grams:
        totals.update(counts)
    every = sum(totals.values())
    if not every:
        return None
    value = len(totals) / every
    left_out = [_without(counts, totals, every) for counts in grams]
    kept = np.array([rest for rest in left_out if rest is not None])
    if len(kept) < 2:
        return Estimate(value, value, value)
    error = _NORMAL_95 * np.sqrt((len(kept) - 1) / len(kept) * ((kept - kept.mean()) ** 2).sum())
    return Estimate(value, float(max(0.0, value - error)), float(min(1.0, value + error)))


def _without(counts: Counter, totals: Counter, every: int) -> float | None:
    """Return distinct-n of all texts but one; None where nothing is left."""
    rest = every - sum(counts.values())
    own = sum(totals[gram] == count for gram, count in counts.items())
    return (len(totals) - own) / rest if rest else None


# ---- phrases


def phrase_finder(phrases: Sequence[str], within: int | None = None) -> Callable[[str], bool]:
    """Return a test for whether a text contains any of some phrases as whole words, whatever their case.

    Args:
        phrases: what is looked for.
        within: look at this many characters from the beginning only; none: at all of them.
    """
    pattern = re.compile("|".join(_bounded(_plain(phrase)) for phrase in phrases))
    return lambda text: pattern.search(_plain(text.strip()[:within])) is not None


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("\u2019", "'").split())


def _bounded(phrase: str) -> str:
    """Return a pattern that ends at a word's end, where scripts have them: ``ass`` is not in ``class``."""
    before = r"(?<!\w)" if re.match(r"\w", phrase) and not has_cjk(phrase[0]) else ""
    after = r"(?!\w)" if re.search(r"\w$", phrase) and not has_cjk(phrase[-1]) else ""
    return before + re.escape(phrase) + after


# ---- who wins


def wins(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return 1 where our score is higher, 0 where it is lower, 1/2 where both are equal, NaN where one is missing."""
    found = np.where(ours == theirs, 0.5, (ours > theirs).astype(np.float64))
    return np.where(np.isnan(ours) | np.isnan(theirs), np.nan, found)
