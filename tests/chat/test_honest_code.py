"""Honest code runs in the sandbox as it would outside: exceptions, modules, the end of a program, the start's time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator

import pytest

from rlkit.chat.verifiers.code import CodeReward
from rlkit.chat.verifiers.sandbox.job import Checks
from rlkit.chat.verifiers.sandbox.pool import Sandbox
from rlkit.config.verifiers_code import CodeSettings
from rlkit.errors import DataError
from rlkit.policy.text_rewards import Sample
from rlkit.records import Prompt, Source


@pytest.fixture(scope="module")
def reward() -> Iterator[CodeReward]:
    found = CodeReward(CodeSettings(run_seconds=60, timeout_seconds=120, workers=2), None)
    yield found
    found.close()


def completion(text: str, **context: object) -> Sample:
    return Sample("", text, context=context)


def test_exceptions_cross_as_their_nearest_builtin_with_their_arguments(reward: CodeReward) -> None:
    tests = [
        "try:\n    f(0)\nexcept LookupError as error:\n    assert error.args == ('no', 0), error\nelse:\n    assert 0"
    ]
    code = "class Missing(KeyError): pass\ndef f(x):\n    raise {}('no', x)"
    raising = [code.format(kind) for kind in ("Missing", "KeyError", "ValueError", "SystemExit")]
    assert reward.score([completion(text, tests=tests) for text in raising]) == [1.0, 1.0, 0.0, 0.0]
    says = "class Bad(ValueError):\n    def __str__(self): return 'bad ' + self.args[0]\ndef f(x): raise Bad(x)"
    tests = ["try:\n    f('x')\nexcept ValueError as error:\n    assert str(error) == 'bad x'\nelse:\n    assert 0"]
    assert reward.score([completion(says, tests=tests)]) == [1.0]
    decoding = [
        "try:\n    f(b'\\xff')\nexcept UnicodeDecodeError as error:\n    assert error.start == 0\nelse:\n    assert 0"
    ]
    odd = completion(
        "def f(): raise ValueError(object)", tests=["try: f()\nexcept ValueError as e: assert 'obj' in str(e)"]
    )
    assert reward.score([completion("def f(x): return x.decode()", tests=decoding), odd]) == [1.0, 1.0]


def test_what_looks_for_its_module_finds_it(reward: CodeReward) -> None:
    code = (
        "from __future__ import annotations\nimport dataclasses, pickle, typing\n@dataclasses.dataclass\nclass A:\n"
        "    x: int\n    next: A | None = None\n"
    )
    used = "pickle.loads(pickle.dumps(A(7))).x + len(typing.get_type_hints(A))"
    function = completion(f"{code}def f():\n    return {used}", tests=["assert f() == 9"])
    program = completion(
        f"{code}import sys\nprint({used} + sys.modules['__main__'].A(1).x)", cases=[CASE | {"output": "10"}]
    )
    assert reward.score([function, program]) == [1.0, 1.0]
    tests = [f"{code}assert {used} == 9 and f()"]
    assert reward.score([completion("def f(): return 1", tests=tests)]) == [1.0]


CASE = {"input": "5\n", "output": "5\n"}


@pytest.mark.parametrize(
    "text",
    [
        "print(input())\nexit()",
        "print(input())\nquit(0)",
        "import sys\nif len(sys.argv) > 1: sys.stdin = open(sys.argv[1])\nprint(input())",
        "import threading, time\ndef main():\n    time.sleep(.3); print(5)\nthreading.Thread(target=main).start()",
        "from concurrent.futures import ThreadPoolExecutor\nThreadPoolExecutor(2).submit(lambda: print(input()))",
        "import atexit\natexit.register(lambda: print(input()))",
        "import io, sys\nsys.stdout = io.StringIO()\nprint(5)\nsys.__stdout__.write(sys.stdout.getvalue())",
        "import io, os, sys\nsys.stdout = io.TextIOWrapper(os.fdopen(1, 'wb', closefd=False))\nprint(5)",
        "import sys\nprint(5)\nsys.stdout.close()",
    ],
)
def test_a_program_ends_as_it_would_by_itself(reward: CodeReward, text: str) -> None:
    assert reward.run([completion(text, cases=[CASE])])[0].kind == "passed"


def test_a_function_named_check_is_the_tests_own_only_where_it_takes_the_candidate(reward: CodeReward) -> None:
    helper = "def check(got, wanted):\n    assert got == wanted"
    under_test = completion(
        "def check(n): return n == 1", tests=["assert check(1) and not check(2)"], entry_point="check"
    )
    setup = completion("def f(n): return n", setup=helper, tests=["check(f(1), 1)"], entry_point="f")
    inside = completion("def f(n): return n", tests=[f"{helper}\ncheck(f(1), 1)"], entry_point="f")
    human = completion("def check(n): return n", test="def check(c):\n    assert c(1) == 1", entry_point="check")
    assert reward.score([under_test, setup, inside, human]) == [1.0] * 4


def test_a_failing_assert_may_show_what_has_no_text(reward: CodeReward) -> None:
    sample = completion("def f(): return 10 ** 5000", tests=["assert f() == 2, f()", "assert f() == 10 ** 5000"])
    (result,) = reward.sandbox.run([(sample.completion, Checks(tuple(sample.context["tests"])))], until_failure=False)
    assert (result.kind, result.passed) == ("failed", 1)


def test_starting_the_sandbox_is_not_a_samples_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Sandbox(workers=1, timeout_seconds=1)
    alive = slow._alive

    def late():
        time.sleep(0 if slow._zygote else 1.1)
        return alive()

    monkeypatch.setattr(slow, "_alive", late)
    assert slow.run([("def f(x):\n    return x", Checks(("assert f(1) == 1",)))])[0].kind == "passed"
    slow.close()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"tests": 5}, "tests: no text, nor a list of texts, got '5'"),
        ({"tests": ["assert f(1)"], "entry_point": "f()"}, "entry_point: not the name of a function, got 'f()'"),
        ({"test_list": [None], "entry_point": 3}, "test_list: no text, nor a list of texts, got '[None]'; entry_point"),
        ({"cases": {"input": "1", "output": "2"}}, "cases: no list, got"),
        ({"cases": [{"input": "1", "output": "1"}, {"inputs": ["1"]}]}, "output, got \"{'inputs': ['1']}\""),
        ({"cases": [{"input": ["1"], "output": ["1"]}]}, "cases: one lacks a text input or output"),
    ],
)
def test_a_row_whose_tests_cannot_be_read_has_no_verdict_and_is_named(
    reward: CodeReward, row: dict[str, object], problem: str
) -> None:
    text = "def f(x):\n    return x"
    for sample in (completion(text, **row), Sample("", text, answer=json.dumps(row))):
        (found,) = reward.judge([sample])
        assert math.isnan(found.score)
        assert problem in found.error
    with pytest.raises(DataError, match=r"^tasks\.jsonl:3: ") as raised:
        reward.reference(Prompt("0", "", text, Source("tasks.jsonl", 3), context=row))
    assert problem in str(raised.value)


def test_the_imports_of_mbpp_and_those_of_the_future_stand_where_they_must(reward: CodeReward) -> None:
    mbpp = completion("def f(x): return x", test_list=["assert math.sqrt(f(4)) == 2"], test_imports=["import math"])
    row = {"prompt": 'import math\n\ndef f(x):\n    """Root."""\n', "entry_point": "f", "tests": ["assert f(4) == 2"]}
    whole = "```python\nfrom __future__ import annotations\n\ndef f(x: Number) -> float:\n    return math.sqrt(x)\n```"
    assert reward.score([mbpp, completion(whole, **row)]) == [1.0, 1.0]
