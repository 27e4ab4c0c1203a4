"""The reward ``code``: which program is in a completion, which tests are in a row, and what a result is worth."""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from toys import data_folder

from rlkit.chat.verifiers.code import CodeReward, program_of, tests_of
from rlkit.chat.verifiers.sandbox import isolation
from rlkit.chat.verifiers.sandbox.job import Case, Checks
from rlkit.component import Settings
from rlkit.config.verifiers_code import CodeSettings
from rlkit.errors import RlkitError
from rlkit.plugins import load_plugins
from rlkit.policy.text_rewards import Sample

tests_of.__test__ = False  # a name that pytest would take for a test

HEAD = "import math\n\n\ndef area(r):\n"
TWO = {"tests": ["assert f(1) == 1", "assert f(2) == 4"]}


@pytest.fixture(scope="module")
def reward():
    found = CodeReward(CodeSettings(run_seconds=60, timeout_seconds=120, workers=2), None)
    yield found
    found.sandbox.close()


@pytest.fixture(scope="module")
def sharing():
    found = CodeReward(CodeSettings(run_seconds=60, timeout_seconds=120, workers=2, score="share"), None)
    yield found
    found.sandbox.close()


def completion(text: str, **context: object) -> Sample:
    return Sample("", text, context=context)


def test_a_recipe_can_name_it() -> None:
    component = load_plugins().get("reward", "code")
    assert component.settings is CodeSettings
    assert issubclass(component.settings, Settings)
    assert isinstance(component.load()(CodeSettings(workers=1), None), CodeReward)


def test_the_block_that_defines_the_function_is_the_program() -> None:
    text = (
        "Try:\n```python\ndef helper(): pass\n```\nBetter:\n```py\ndef f(x):\n    return x\n```\nRun:\n```bash\nls\n```"
    )
    assert program_of(completion(text, entry_point="f")) == "def f(x):\n    return x\n"
    assert program_of(completion(text, entry_point="helper")) == "def helper(): pass\n"
    assert program_of(completion(text)) == "def f(x):\n    return x\n"


def test_code_in_the_thinking_does_not_count() -> None:
    text = "<think>```python\ndef f(x):\n    return 1\n```</think>\n```python\ndef f(x):\n    return 2\n```"
    assert program_of(completion(text, entry_point="f")) == "def f(x):\n    return 2\n"
    assert program_of(completion("<think>\n```python\nx\n```\n</think>no code")) == "no code"


def test_a_block_that_was_cut_off_counts_as_far_as_it_goes() -> None:
    assert program_of(completion("```python\ndef f(x):\n    ret")) == "def f(x):\n    ret"


@pytest.mark.parametrize("text", ["```" + "a" * 200_000, "```" + " " * 200_000, "   ```a\n" * 25_000 + "```a"])
def test_a_fence_without_a_line_end_takes_no_time(text: str) -> None:
    program_of(completion("x"))  # compiles what is compiled once
    started = time.process_time()
    program_of(completion(text))
    assert time.process_time() - started < 1


def test_a_completion_that_is_too_long_scores_0_unread() -> None:
    short = CodeReward(CodeSettings(max_characters=40, workers=1), None)
    right = "def f(x): return x * x"
    assert [one.score for one in short.judge([completion(f"{right}{' ' * 40}", **TWO)])] == [0.0]
    assert short.run([completion(" " * 41, **TWO)])[0].reason == "41 characters, more than 40"
    assert short.judge([completion(" " * 41)])[0].error == "the row carries no tests"
    short.close()


def test_a_bare_completion_goes_on_where_the_prompt_ends() -> None:
    text = "    return math.pi * r * r\n\ndef other():\n    pass\n\nThis computes the area.\nArea!"
    program = program_of(completion(text, prompt=HEAD, entry_point="area"))
    assert program == HEAD + "    return math.pi * r * r\n\ndef other():\n    pass\n"


def test_a_whole_function_follows_the_prompt_whose_imports_it_needs() -> None:
    whole = "def area(r):\n    return math.pi * r * r\n"
    prompts = (HEAD, HEAD + '    """Area."""\n')
    for text, prompt in itertools.product((whole, f"```python\n{whole}```"), prompts):
        program = program_of(completion(text, prompt=prompt, entry_point="area"))
        names: dict = {}
        exec(program, names)
        assert names["area"](1) == math.pi


def test_a_prompt_that_is_a_question_is_no_part_of_the_program() -> None:
    for prompt in ("square", "Complete:\n```python\ndef f(x):\n```", [{"role": "user", "content": "def f(x): ..."}]):
        sample = completion("def f(x):\n    return x", prompt=prompt, entry_point="f", tests=["assert f(1)"])
        assert program_of(sample) == sample.completion
        found = tests_of(sample)
        assert found is not None
        assert found.setup == ()


def test_tests_come_from_the_context_or_as_json_from_the_answer() -> None:
    row = {"tests": ["assert f(1)"], "setup": "import math", "entry_point": "f"}
    wanted = Checks(("assert f(1)",), ("import math",), "f")
    assert tests_of(Sample("", "", context=row)) == wanted
    assert tests_of(Sample("", "", answer=json.dumps(row))) == wanted
    assert tests_of(Sample("", "", answer="assert f(1)")) == Checks(("assert f(1)",))
    cases = {"cases": [{"input": "1\n", "output": "2\n"}]}
    assert tests_of(Sample("", "", context=cases)) == Checks(cases=(Case("1\n", "2\n"),))
    assert tests_of(Sample("", "")) is None
    assert tests_of(Sample("", "", answer=json.dumps(row), context={"level": "3"})) == wanted
    assert tests_of(Sample("", "", answer="42")) is None  # runs without an error, and so would any code


def test_tests_that_never_call_the_code_say_nothing(reward: CodeReward) -> None:
    tests = ["import math", "assert 1 + 1 == 2"]
    (found,) = reward.run([completion("def f(x):\n    return x", tests=tests, entry_point="f")])
    assert (found.kind, found.reason) == ("unsupported", "the tests call no function of the code")


def test_a_time_limit_without_room_is_refused() -> None:
    with pytest.raises(ValidationError, match="set timeout_seconds to 24 or more"):
        CodeSettings(run_seconds=12)


def test_mbpp_rows_are_read() -> None:
    row = {"test_list": ["assert f(1) == 1"], "test_setup_code": "import math"}
    assert tests_of(Sample("", "", context=row)) == Checks(("assert f(1) == 1",), ("import math",))


def test_the_helpers_of_a_humaneval_prompt_are_the_tests_own(reward: CodeReward) -> None:
    """The code's version of a helper that the tests use must not be asked."""
    prompt = "def double(x):\n    return 2 * x\n\n\ndef half(x):\n"
    row = {"prompt": prompt, "entry_point": "half", "test": "def check(c):\n    assert double(c(4)) == 4\n"}
    honest = "```python\ndef half(x):\n    return x / 2\n```"
    forged = "```python\ndef double(x):\n    return 4\n\ndef half(x):\n    return 0\n```"
    assert reward.score([completion(text, **row) for text in (honest, forged)]) == [1.0, 0.0]


def test_every_test_must_pass_or_the_share_that_does_counts(reward: CodeReward, sharing: CodeReward) -> None:
    # f(1) == 1 holds for all three; f(2) == 4 for the square only; the last dies in the second test
    square, same = "def f(x):\n    return x * x", "def f(x):\n    return x"
    dies = "import os\ndef f(x):\n    return x if x == 1 else os._exit(0)"
    samples = [Sample("", text, context=TWO) for text in (square, same, dies)]
    assert reward.score(samples) == [1.0, 0.0, 0.0]
    assert sharing.score(samples) == [1.0, 0.5, 0.5]


def test_a_function_that_is_missing_fails_its_tests(reward: CodeReward, sharing: CodeReward) -> None:
    for row in (TWO, {**TWO, "entry_point": "f"}):
        missing = Sample("", "def g(x):\n    return x * x", context=row)
        assert [*reward.score([missing]), *sharing.score([missing])] == [0.0, 0.0]


def test_what_has_no_verdict_is_masked_and_says_why(reward: CodeReward, caplog: pytest.LogCaptureFixture) -> None:
    returns_object = Sample("", "def f(x):\n    return object()", context=TWO)
    calls_with_function = completion("def f(g):\n    return g(1)", tests=["assert f(abs) == 1"])
    without_tests = Sample("", "def f(x):\n    return x")
    fine = Sample("", "def f(x):\n    return x * x", context=TWO)
    broken_tests = completion("def f(x):\n    return x", tests=["assert f("], entry_point="f")
    with caplog.at_level(logging.INFO):
        found = reward.judge([returns_object, calls_with_function, without_tests, fine, broken_tests])
    assert [math.isnan(outcome.score) for outcome in found] == [True, True, True, False, True]
    assert [outcome.error for outcome in found[:4]] == [
        "f returns a value of type object",
        "f is called with a value of type builtin_function_or_method",
        "the row carries no tests",
        "",
    ]
    assert "compile" in found[4].error
    assert "1 of 5 samples have no verdict: f returns a value of type object" in caplog.text


def test_code_that_does_not_run_scores_zero(reward: CodeReward) -> None:
    broken = ["def f(x:\n    return", "raise ValueError", "", "no code at all", "def g(x):\n    return x * x"]
    row = {**TWO, "entry_point": "f"}
    assert reward.score([Sample("", text, context=row) for text in broken]) == [0.0] * 5


def test_programs_are_judged_by_what_they_print(reward: CodeReward) -> None:
    cases = [{"input": "2 3\n", "output": "5"}, {"input": "4 5", "output": "9\n"}]
    texts = ["print(sum(map(int, input().split())))", "print(5)", "import sys\nfor l in sys.stdin: print(eval(l))",
             "a, b = map(int, open(0).read().split())\nimport os\nos.write(1, str(a + b).encode())\nos._exit(0)",
             "if __name__ == '__main__':\n    print(sum(int(t) for t in input().split()), ' ')"]  # fmt: skip
    assert reward.score([completion(text, cases=cases) for text in texts]) == [1.0, 0.0, 0.0, 1.0, 1.0]


def test_values_of_every_plain_type_cross_both_ways(reward: CodeReward) -> None:
    values = (
        "None, True, -3, 2 ** 5000, -(2 ** 5000), 0.1, float('inf'), 2j, 'ä\\ud800', b'\\xff', bytearray(b'x'), "
        "[1, [2]], (1,), {1}, frozenset({2}), {(1, 2): {'a': None}}"
    )
    tests = [
        f"for value in ({values}):\n    back = f(value)\n    assert back == value and type(back) is type(value), value"
    ]
    assert reward.score([completion("def f(x):\n    return x", tests=tests)]) == [1.0]
    subclasses = "from collections import *\nimport enum\nE = enum.IntEnum('E', 'a')\nP = namedtuple('P', 'x')\n"
    subclasses += "S = enum.Enum('S', {'s': 'red'}, type=str)\n"
    code = (
        subclasses + "def f(x):\n    return Counter('aa'), OrderedDict(a=1), defaultdict(list, b=[2]), E.a, P(3), S.s"
    )
    tests = ["assert f(0) == ({'a': 2}, {'a': 1}, {'b': [2]}, 1, (3,), 'red')"]
    assert reward.score([completion(code, tests=tests)]) == [1.0]


def test_a_function_without_a_value_may_change_its_arguments(reward: CodeReward) -> None:
    tests = ["a, b, c = [3, 1], {'x': 1}, {1}\nf(a, b, c)\nassert (a, b, c) == ([1, 3], {'y': 2}, {1, 5})"]
    code = "def f(a, b, c):\n    a.sort()\n    b.clear()\n    b['y'] = 2\n    c.add(5)"
    assert reward.score([completion(code, tests=tests)]) == [1.0]
    named = ["a = [3, 1]\nf(1, b=a)\nassert a == [1, 3]"]
    assert reward.score([completion("def f(a, b):\n    b.sort()", tests=named)]) == [1.0]


def test_no_state_passes_from_sample_to_sample(reward: CodeReward) -> None:
    code = (
        "import math, os, builtins\n"
        "seen = getattr(builtins, 'seen', 0) + getattr(math, 'seen', 0) + len(os.listdir('.'))\n"
        "builtins.seen = math.seen = 1\nopen('left', 'w').close()\ndef f(x):\n    return seen"
    )
    assert reward.score([completion(code, tests=["assert f(0) == 0"])] * 6) == [1.0] * 6


def test_humaneval_reference_solutions_pass_and_wrong_ones_do_not(reward: CodeReward) -> None:
    path = data_folder("humaneval_sample") / "HumanEval_first5.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    right = [Sample(row["prompt"], row["canonical_solution"], context=row) for row in rows]
    fenced = [
        Sample("", f"Here:\n```python\n{row['prompt']}{row['canonical_solution']}```", answer=json.dumps(row))
        for row in rows
    ]
    wrong = [Sample(row["prompt"], "    return None\n", context=row) for row in rows]
    assert [result.kind for result in reward.run(right)] == ["passed"] * 5
    assert reward.score(fenced) == [1.0] * 5
    assert reward.score(wrong) == [0.0] * 5


def test_a_host_below_the_level_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    poor = isolation.Host(frozenset(), {"box": "unshare: operation not permitted"})
    monkeypatch.setattr(isolation, "detect", lambda: poor)
    with pytest.raises(
        RlkitError, match=r"'namespaces' is asked for, got 'rlimits' .*unshare: operation not permitted"
    ):
        CodeReward(CodeSettings(isolation="namespaces"), None)


def test_the_strongest_level_is_used_whatever_would_do() -> None:
    assert CodeReward(CodeSettings(isolation="rlimits"), None).sandbox.level == isolation.detect().level


def test_the_level_is_what_the_host_offers_together() -> None:
    assert isolation.Host(frozenset({"box", "filter", "landlock"}), {}).level == "namespaces"
    assert isolation.Host(frozenset({"bubblewrap", "filter"}), {}).level == "bubblewrap"
    assert isolation.Host(frozenset({"bubblewrap", "landlock"}), {}).level == "rlimits"  # its samples share namespaces
    assert isolation.Host(frozenset({"filter", "landlock"}), {}).level == "seccomp"
    assert isolation.Host(frozenset({"filter", "user"}), {}).level == "seccomp"
    assert isolation.Host(frozenset({"filter"}), {}).level == "rlimits"  # files and memory of the user lie open
    assert isolation.Host(frozenset({"landlock", "user"}), {}).level == "rlimits"


def test_a_lost_zygote_is_started_again(reward: CodeReward) -> None:
    sample = completion("def f(x):\n    return x", tests=["assert f(1) == 1"])
    assert reward.score([sample]) == [1.0]
    reward.sandbox._zygote.process.kill()
    reward.sandbox._zygote.process.wait()
    assert reward.score([sample]) == [1.0]


def test_rollouts_are_scored_through_the_domains_tokenizer(reward: CodeReward, tmp_path: Path) -> None:
    from toys import language_model_folder
    from transformers import AutoTokenizer

    from rlkit.policy.group_batch import GroupBatch
    from rlkit.policy.rollouts import Rollouts
    from rlkit.records import Prompt, Source

    tokenizer = AutoTokenizer.from_pretrained(language_model_folder(tmp_path))
    texts = ["def f(x):\n    return x * x", "def f(x):\n    return x", "def f(x):\n    return object()"]
    rows = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts]
    width = max(map(len, rows))
    completions = torch.tensor([[row + [0] * (width - len(row)) for row in rows]])
    mask = torch.arange(width) < torch.tensor([[len(row) for row in rows]])[..., None]
    one = torch.ones(1, 1, dtype=torch.long)
    batch = GroupBatch(one, one.bool(), completions, mask)
    prompt = Prompt("0", "Square.", "", Source("here"), context=TWO)
    nothing = torch.zeros(1, 3)
    rollouts = Rollouts([prompt], batch, nothing, None, nothing.bool(), one, one.bool())
    found = CodeReward(reward.settings, type("Domain", (), {"tokenizer": tokenizer}))(rollouts)
    assert found.tolist()[0][:2] == [1.0, 0.0]
    assert math.isnan(found[0, 2])
