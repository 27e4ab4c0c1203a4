"""The reward ``math``: what counts as the same value, where the answer stands, and that nothing hangs it."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
from pydantic import ValidationError
from toys import data_folder

from rlkit.chat.verifiers.math_reward import math
from rlkit.chat.verifiers.math_worker import MathWorker, worker
from rlkit.config.verifiers import MathSettings
from rlkit.errors import DataError
from rlkit.policy.text_rewards import Sample

SAME = [
    # plain numbers, as people write them
    ("5", "5"),
    ("5", "The answer is 5."),
    ("-3", "It comes to -3."),
    ("-3", "\\boxed{\u22123}"),
    ("1234", "1,234"),
    ("1234567", r"\boxed{1'234'567}"),
    ("1,234", r"\boxed{1{,}234}"),
    ("1000000", "the answer is 1 000 000"),
    ("1000000", r"\boxed{10^6}"),
    ("300000000", r"\boxed{3 \times 10^{8}}"),
    ("1.5 million", "1,500,000"),
    ("$1,234.50", "1234.5"),
    ("50", r"\boxed{\$50}"),
    ("72", "#### 72 clips"),
    ("5 cm", r"\boxed{5\text{ cm}}"),
    ("25", r"\boxed{25 \text{ cm}^2}"),
    ("90", r"\boxed{90^\circ}"),
    ("0.5", ".5"),
    ("12", "012"),
    ("5", "It weighs 5kg"),
    # fractions, percents, decimals
    ("1/2", r"so \boxed{\frac{1}{2}}."),
    ("0.5", r"\boxed{\frac12}"),
    (r"\frac{1}{2}", r"\boxed{0.5}"),
    ("3/2", r"\boxed{1\frac{1}{2}}"),
    ("3/2", "The answer is 1 1/2."),
    ("1/2", "So the share is 2/4."),
    ("1/3", "0.333333"),
    ("20%", "20"),
    ("20", "20%"),
    ("0.2", r"\boxed{20\%}"),
    ("1/2", r"\boxed{½}"),
    ("2.5", "The answer is 2½."),
    ("1/6", r"\boxed{0.1\overline{6}}"),
    ("1000000", "The answer is 10⁶."),
    ("0.00012", "The answer is 1.2 × 10⁻⁴."),  # noqa: RUF001
    ("70000", "#### 70k"),
    ("18000", "it comes to 18 thousand"),
    ("-7", "The answer is negative 7."),
    ("5", "The answer is about 5."),
    # tuples, intervals, sets, lists
    ("3,4", r"\boxed{x=3 \text{ or } x=4}"),
    ("3,4", r"\boxed{3 \text{ and } 4}"),
    ("(1, 2, 3)", r"\boxed{\langle 1,2,3\rangle}"),
    ("(1,2)", "\\boxed{\uff081\uff0c2\uff09}"),
    ("(1,2)", r"\boxed{(1, 2)}"),
    ("(1,2)", "So the point is (1, 2)."),
    (r"\{1,2\}", r"\boxed{\{2,1\}}"),
    ("1, 2", r"\boxed{2, 1}"),
    ("[1,2)", r"\boxed{[1,2)}"),
    (r"(-\infty, 5]", r"\boxed{\left(-\infty,5\right]}"),
    (r"(1,2)\cup(3,4)", r"\boxed{(3,4) \cup (1,2)}"),
    # formulas
    (r"x^2+2x+1", r"\boxed{(x+1)^2}"),
    (r"2\sqrt{2}", r"\boxed{\sqrt{8}}"),
    (r"\sum_{k=1}^n k", r"\boxed{\sum_{k=1}^{n} k}"),
    (r"\frac{\pi}{2}", r"the answer is $\pi/2$."),
    ("3+4i", r"\boxed{4i+3}"),
    ("x>5", r"\boxed{5<x}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{bmatrix}1\\2\end{bmatrix}}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\boxed{\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}}"),
    (r"2\sqrt{3}", "The answer is 2√3."),
    (r"\emptyset", r"\boxed{\varnothing}"),
    # words and choices
    ("A", "The correct option is A."),
    ("A", r"\boxed{\text{(A) } 5}"),
    ("B", r"\boxed{B) vitamin C}"),
    ("yes", "Yes, because 5 > 3."),
    ("yes", "Yes"),
    ("Paris", "The answer is Paris."),
    ("B", "The answer is (B)."),
    ("(B)", r"\boxed{\text{B}}"),
    # where the answer stands
    ("18", "Final Answer: The final answer is $18$. I hope it is correct."),
    ("18", "She makes *18* dollars"),
    ("18", "On day 3, 18 apples remain."),
    ("18", "20 - $2 = $18"),
    ("18", "the cost is $18/day"),
    ("5", "The answer is 5. 3 of them are red."),
    ("18", "结果等于18。"),
    ("7", "2 + 5 = 7"),
    ("7", r"\boxed{x = 7}"),
    ("7", r"\boxed{3+4=7}"),
    ("5", r"\boxed{\boxed{5}}"),
    ("5", r"First \boxed{5}, and again \boxed{5.0}."),
    ("5", "#### Step 1\nTwo and three.\nSo it is 5"),
    ("5", "**Answer:** 5 apples"),
    ("5", "The answer is: 5 because 2 and 3 make it."),
    ("5", "The final answer is therefore $5$. I hope it is right"),
    ("5", "答案是5。"),
    ("12", "<think>perhaps the answer is 5</think>\n<answer>12</answer>"),
    ("12", "Two answers, 5 and 7, add up. <answer>The sum is 12</answer>"),
    ("He has 3 <<1+2=3>>3.\n#### 3", "3"),
]
TWO = ("\\\\", "|", r"\mid ", r"\cup ", "...", r"\sim ", r"\&", "&", r"\wedge ", r"\text{,}", "、", "或", "_")
"""What a box with two numbers may be written with."""
DIFFERENT = [
    ("5", "6"),
    ("5", "-5"),
    ("-5", "5"),
    ("5", ""),
    ("5", "five"),
    ("10000001", "10000000"),
    ("1/3", "0.33"),
    ("0.5", "0.51"),
    ("20", "0.2"),
    # several answers, and hedging
    ("5", "The answer is 5 or 6."),
    ("6", "The answer is 5 or 6."),
    ("6", "It is 5 or maybe 6"),
    ("6", "The answer is either 5 or 6."),
    ("5", r"\boxed{5} or \boxed{6}"),
    ("6", r"\boxed{5} or \boxed{6}"),
    ("6", "#### 5\n#### 6"),
    ("6", r"The answer is 5. So \boxed{6}"),
    ("6", "The answer is 5. The answer is 6."),
    ("6", "5 6"),
    ("6", "4, 5, 6"),
    ("6", "<answer>5</answer><answer>6</answer>"),
    ("7", r"\boxed{7 = 8}"),
    ("8", r"\boxed{x = 7 = 8}"),
    ("18", r"\boxed{17 \vee 18}"),
    ("18", r"\boxed{17 \to 18}"),
    ("5", "the answer is 5 ft 6 in"),
    ("5", r"\boxed{5\text{ hours and }30\text{ minutes}}"),
    ("3", "The answer is $x = 18$ and $y = 3$."),
    ("6", r"\boxed{x=5,y=6}"),
    ("(5,6)", r"\boxed{5 \text{ or } 6}"),
    *((wanted, rf"\boxed{{5{between}6}}") for wanted in ("5", "6", "x=5") for between in TWO),
    # more or less
    ("5", r"\boxed{> 5}"),
    ("5", r"\boxed{\ge 5}"),
    ("18", "it comes to less than 18"),
    ("5", "It cannot be 5."),
    ("7", "It comes to minus 7"),
    ("7", "so x=\u20137"),
    # a number that is a part of something
    ("10", "The answer is 10⁶."),
    ("10", "so the result is 2^10"),
    ("5", "So we get $2^5$"),
    ("2", "The answer is 2½."),
    ("2", "The answer is 2π."),
    ("3", "so we get 2√3"),
    ("3", r"so we get $2\sqrt{3}$"),
    ("2", r"so we get $2\pi$"),
    ("3", "so it is x+3"),
    ("3", r"so it is $\frac{x}{3}$"),
    ("18", "the sum is 17 + 18"),
    ("18", "the sum is 17 - 18"),
    ("18", r"the product is 17 \times 18"),
    ("18", "it comes to f(18)"),
    ("18", "x_{18}"),
    ("18", "it comes to 18/x"),
    ("18", "it comes to 18²"),
    ("18", "it comes to 18 squared"),
    ("18", "it comes to 18 thousand"),
    ("18", "it is 17-18"),
    ("18", "17 to 18"),
    ("18", "17:18"),
    ("5", "Die Antwort ist 1,5."),
    # not worked out
    ("7", r"\boxed{3+4}"),
    ("7", r"\boxed{14/2}"),
    ("12", r"\boxed{3 \times 4}"),
    ("8", r"\boxed{2^3}"),
    ("2", r"\boxed{\sqrt{4}}"),
    ("120", r"\boxed{5!}"),
    ("1/3", r"\boxed{\int_0^1 x^2 dx}"),
    (r"\frac{\pi}{4}", r"\boxed{\int_0^1 \frac{1}{1+x^2} dx}"),
    ("10", r"\boxed{\binom{5}{2}}"),
    # two answers in one box
    ("5", r"\boxed{5,6}"),
    ("5", r"\boxed{5\text{ or }6}"),
    ("5", r"\boxed{5 \lor 6}"),
    ("5", r"\boxed{5 | 6}"),
    ("5", r"\boxed{\pm 5}"),
    ("x=5", r"\boxed{x=5, x=6}"),
    (r"\sqrt{2}", r"\boxed{\sqrt{2}, \sqrt{3}}"),
    (r"\sqrt{2}", r"\boxed{\pm\sqrt{2}}"),
    (r"\sqrt{2}", r"\boxed{\sqrt{2} \cup \sqrt{3}}"),
    # other brackets, other order
    ("(1,2)", r"\boxed{(2, 1)}"),
    ("[1,2)", r"\boxed{(1,2)}"),
    (r"\{1,2\}", r"\boxed{\{1,2,3\}}"),
    (r"(-\infty, 5]", r"\boxed{(-\infty,5)}"),
    ("x^2+2x+1", r"\boxed{(x+2)^2}"),
    # words
    ("yes", "sey"),
    ("B", "The answer is (C)."),
    ("Paris", "The answer is not Paris."),
    ("A", "Answer: A. or B"),
    ("A", "Answer: (A), (B), (C), (D)"),
    ("A", r"\boxed{A. B. C. D.}"),
    ("A", "A) is wrong; B) is right"),
    ("yes", "Yes, or no."),
    # thoughts, and what is no digit
    ("5", "<think>The answer is 5"),
    ("6", "<think>it is 6</think> the answer is 5"),
    ("3", "\u0663"),
    ("5", "\uff15"),
    ("5", "H5"),
    ("5", "so it is 5x"),
]


def score(answer: str, completion: str, **settings: object) -> float:
    """Return the reward of one completion."""
    return math(MathSettings(**settings), None).score([Sample("", completion, answer)])[0]


@pytest.mark.parametrize(("answer", "completion"), SAME)
def test_the_same_value_scores_1(answer: str, completion: str) -> None:
    assert score(answer, completion) == 1.0


@pytest.mark.parametrize(("answer", "completion"), DIFFERENT)
def test_another_value_scores_0(answer: str, completion: str) -> None:
    assert score(answer, completion) == 0.0


def test_settings_loosen_and_tighten_it() -> None:
    assert score("6", r"\boxed{5} and \boxed{6}", strict=False) == 1.0
    assert score("5", r"\boxed{5} and \boxed{6}", strict=False) == 0.0
    assert score("5", "so it is 5", marked_only=True) == 0.0
    assert score("5", "so it is #### 5\n#### 5", marked_only=True) == 1.0
    assert score("5", "<answer>5</answer>", marked_only=True) == 1.0
    assert score("7", r"\boxed{3+4}", worked_out=False) == 1.0
    assert score("2", r"\boxed{\sqrt{4}}", worked_out=False) == 1.0
    assert score("1/3", r"\boxed{\int_0^1 x^2 dx}", worked_out=False, formula_seconds=5) == 1.0
    assert score("1/3", "0.33", tolerance=0.01) == 1.0
    assert score("5", "x" * 90 + " #### 5", max_characters=80) == 0.0
    with pytest.raises(ValidationError, match="tolerance"):
        MathSettings(tolerance=-1)


def test_an_answer_that_was_cut_off_is_wrong() -> None:
    assert math(MathSettings(), None).score([Sample("", "#### 5", "5", truncated=True)]) == [0.0]


def test_a_prompt_without_an_answer_is_an_error_and_names_it() -> None:
    with pytest.raises(DataError, match=r"1 of 2 prompts carry no answer.*'what\?'; add answers"):
        math(MathSettings(), None).score([Sample("a", "5", "5"), Sample("what?", "5", "")])


HOSTILE = {
    "tower": r"\boxed{9^{9^{9^{9}}}}",
    "long tower": r"\boxed{" + "9^" * 5000 + "9}",
    "python tower": r"\boxed{9**9**9**9}",
    "huge factorial": r"\boxed{1000000000!}",
    "factorials": r"\boxed{((99!)!)!}",
    "factorial that no filter sees": r"\boxed{(x+1)^{700}(x+2)^{700}}",
    "expansion": r"\boxed{(x+1)^{300}(x+2)^{300}}",
    "integral": r"\boxed{\int_0^{999} x^{x^x} dx}",
    "sum": r"\boxed{\sum_{n=1}^{999999999} \frac{1}{n^n}}",
    "open boxes": r"\boxed{" * 20_000,
    "open braces": "{" * 100_000 + r"\boxed{5",
    "boxes in boxes": r"\boxed{" * 20_000 + "5" + "}" * 19_999,
    "unclosed": r"\boxed{5",
    "deep": r"\boxed{" + "(" * 140 + "5" + ")" * 140 + "}",
    "open fractions": r"\boxed{" + r"\frac{" * 60 + "}",
    "200k digits": "1" * 200_000,
    "200k characters": "so it goes " * 18_200 + "#### 5",
    "spaces": " " * 149_000 + "5x",
    "announced often": "the answer is 6 " * 9_000,
    "nearly announced": "answer to " * 14_000,
    "half a tag": "<answer>" * 18_000,
    "many tags": "<answer>5</answer>" * 8_000,
    "backslashes": "\\" * 149_999,
    "hedged often": "5 or " * 29_000,
    "headings": "#### \n" * 24_000,
    "dollars": "$" * 149_000,
    "code": "import os\nos.system('true')\n",
    "boxed code": r"\boxed{__import__('os').system('true')}",
    "nan": r"\boxed{nan}",
    "inf": r"\boxed{inf}",
    "infinity": r"\boxed{\infty}",
    "1e999": r"\boxed{1e999}",
    "divided by zero": r"\boxed{1/0}",
    "null byte": "\\boxed{5\x00}",
    "half a character": "\\boxed{5\ud800}",
    "accents": "5" + "\u0301" * 100_000,
    "other digits": "\\boxed{\u0665}",
    "units": r"\boxed{6 " + "m/" * 140 + "}",
}
BOUND = 10.0
"""Seconds on the clock for two formulas at .5 s of processor time each, on a machine that may be busy."""


@pytest.fixture(scope="module")
def warm() -> None:
    """Start math-verify before something is timed."""
    assert score("x^2+2x+1", r"\boxed{(x+1)^2}") == 1.0


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.usefixtures("warm")
def test_hostile_completions_score_0_in_bounded_time(name: str) -> None:
    started = time.monotonic()
    assert score("5", HOSTILE[name], formula_seconds=0.5) == 0.0
    assert score(r"x^2+\sqrt{3}", HOSTILE[name], formula_seconds=0.5) == 0.0
    assert time.monotonic() - started < BOUND


NEVER = "9^{9^{9^{9}}}"
"""Nobody works this out; the reward does not even ask, its helper does."""


@pytest.mark.usefixtures("warm")
def test_a_killed_comparison_leaves_the_next_one_unharmed() -> None:
    helper = worker(os.getpid())
    process, started = helper.process, time.monotonic()
    assert not helper.same("5", NEVER, 0.3)
    assert time.monotonic() - started >= 0.3, "it was cut off, not refused"
    assert helper.same(r"2\sqrt{2}", r"\sqrt{8}", 5.0)
    assert helper.process is process, "its child was killed, not the helper"


@pytest.mark.usefixtures("warm")
def test_it_works_outside_the_main_thread() -> None:
    found: list[bool] = []

    def work() -> None:
        found.append(worker(os.getpid()).same(r"2\sqrt{2}", r"\sqrt{8}", 5.0))
        found.append(worker(os.getpid()).same("5", NEVER, 0.3))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == [False, False, True, True]


def test_a_helper_that_dies_is_started_again_and_ends_when_told() -> None:
    helper = MathWorker()
    assert helper.same("x+x", "2x", 5.0)
    process = helper.process
    assert process is not None
    process.kill()
    process.wait()
    assert helper.same("x+x", "2x", 5.0)
    again = helper.process
    assert again is not None
    assert again.pid != process.pid
    helper.stop()
    assert again.poll() is not None
    assert helper.process is None


def gsm8k() -> tuple[list[str], list[str]]:
    """Return the reference solutions and their answers."""
    lines = (data_folder("gsm8k") / "train.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(line)["answer"] for line in lines]
    return solutions, [solution.rpartition("####")[2].strip() for solution in solutions]


def test_gsm8k_solutions_score_1_against_their_answers_and_0_against_others() -> None:
    solutions, answers = gsm8k()
    reward = math(MathSettings(), None)
    right = reward.score([Sample("", text, answer) for text, answer in zip(solutions, answers)])
    shifted = [*answers[1:], answers[0]]
    differ = [float(one.replace(",", "")) != float(other.replace(",", "")) for one, other in zip(answers, shifted)]
    moved = [Sample("", text, answer) for text, answer, other in zip(solutions, shifted, differ) if other]
    wrong = reward.score(moved)
    assert len(right) == 7_473
    assert sum(right) / len(right) >= 0.999
    assert len(wrong) > 7_000
    assert sum(wrong) / len(wrong) <= 0.001
