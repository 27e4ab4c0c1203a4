"""YAML for recipes: places, YAML 1.1's traps, and everything that is refused."""

import random
import time

import pytest

from rlkit.errors import RecipeError
from rlkit.recipe_yaml import MAX_BYTES, Mark, YamlProblem, dump, parse_document, parse_value, read_text


def refused(text):
    with pytest.raises(YamlProblem) as error:
        parse_document(text)
    return str(error.value.mark), error.value.message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("010", 10),
        ("-7", -7),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("0x1f", "0x1f"),
        ("~", None),
        ("", None),
        ("null", None),
        ("'1'", "1"),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
    ],
)
def test_scalars_are_read_without_the_traps_of_yaml_1_1(text, value):
    read = parse_document(f"key: {text}").tree["key"]
    assert read == value
    assert type(read) is type(value)


def test_keys_and_values_know_their_line_and_column():
    document = parse_document("a: 1\nb:\n  c: [x, yy]\n  d:\n    - e: 2\n")
    assert document.keys["b", "c"] == Mark(3, 3)
    assert document.values["b", "c", 1] == Mark(3, 10)
    assert document.keys["b", "d", 0, "e"] == Mark(5, 7)
    assert document.values["b", "d", 0, "e"] == Mark(5, 10)


def test_every_repeated_key_is_reported_with_both_places():
    document = parse_document("a: 1\nb: {c: 1, c: 2}\na: 2\n")
    assert document.problems == [
        (Mark(2, 11), "b.c: set twice, first in line 2; delete one"),
        (Mark(3, 1), "a: set twice, first in line 1; delete one"),
    ]


@pytest.mark.parametrize("key", ["1", "true", "null", "[a]", "{a: 1}", "1.5"])
def test_a_key_that_is_not_text_is_reported(key):
    ((mark, message),) = parse_document(f"a: 1\n? {key}\n: 2\n").problems
    assert mark == Mark(2, 3)
    assert message.startswith("a key must be text, got ")


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_a_number_that_is_not_finite_is_reported(value):
    ((mark, message),) = parse_document(f"a: {value}").problems
    assert (mark, message) == (Mark(1, 4), f"not a finite number, got {value!r}; write one")


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", "1:1", "empty"),
        ("# only a comment", "1:1", "empty"),
        ("- a", "1:1", "a recipe is a mapping like 'name: my_run', got a list"),
        ("hello", "1:1", "got a single value 'hello'"),
        (
            "a: 1\nb: !!python/object/apply:os.system [ls]",
            "2:4",
            "tags are not used here, got '!!python/object/apply:os.s",
        ),
        ("a: !secret x", "1:4", "tags are not used here, got '!secret'"),
        ("a: !!str 1", "1:4", "tags are not used here, got '!!str'"),
        ("a: &x 1", "1:4", "anchors are not used here, got '&x'"),
        ("a: 1\nb: *x", "2:4", "aliases are not used here, got '*x'"),
        ("a: 1\n---\nb: 2", "2:1", "a second document"),
        ("a: 1\n...\nb: 2", "3:1", "not part of the mapping above it"),
        ("a:\n\tb: 1", "2:1", "a tab; indent with spaces"),
        ("a: 1\n b: 2", "2:3", "a ':' where no key can stand"),
        ("a: b: c", "1:5", "a ':' where no key can stand"),
        ("a: [1, 2", "1:9", "while parsing a flow sequence begun in line 1"),
        ("a: 'x", "1:6", "while scanning a quoted scalar begun in line 1"),
        ("a: 1\nb: @x", "2:4", "cannot start any token"),
        ("a: 1\nb: \x07", "2:4", r"not allowed in YAML, got '\x07'"),
    ],
)
def test_what_is_not_plain_yaml_is_one_error_with_its_place(text, place, message):
    where, what = refused(text)
    assert where == place
    assert message in what


def test_a_bomb_of_aliases_is_refused_at_its_first_anchor():
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    started = time.perf_counter()
    assert refused("\n".join(lines)) == ("1:5", "anchors are not used here, got '&a0'; leave it out, or use quotes")
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("text", ["a: " + "[" * 50_000, "a: " + "{a: " * 50_000, "- " * 50_000])
def test_deep_nesting_is_refused_before_the_stack_overflows(text):
    assert "nested deeper than 32 levels" in refused(text)[1]


def test_nesting_of_32_levels_is_read():
    # the mapping is level 1, its lists are levels 2 to 31, the scalar is level 32
    assert parse_document("a: " + "[" * 30 + "1" + "]" * 30).tree["a"]
    assert "nested deeper" in refused("a: " + "[" * 31 + "1" + "]" * 31)[1]


def test_a_file_that_is_too_large_is_refused(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match="larger than 1,000,000 bytes"):
        read_text(path)


def test_a_missing_file_is_answered_with_its_neighbors(tmp_path):
    (tmp_path / "demo.yaml").touch()
    with pytest.raises(RecipeError, match=r"dmo\.yaml: cannot be read: no such file; there is demo\.yaml"):
        read_text(tmp_path / "dmo.yaml")
    with pytest.raises(RecipeError, match="it is a folder"):
        read_text(tmp_path)


def test_text_that_is_not_utf8_is_refused_with_its_place(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: x\n# käse".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.yaml:2:4: not UTF-8 text, got byte 0xe4"):
        read_text(path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\r\nseed: 1\r\n")
    assert parse_document(read_text(path)).tree == {"name": "x", "seed": 1}


@pytest.mark.parametrize(
    ("text", "value"), [("8", 8), ("1e-5", 1e-5), ("", None), ("[1, 2]", [1, 2]), ("{a: b}", {"a": "b"})]
)
def test_the_value_of_an_override_is_one_plain_value(text, value):
    assert parse_value(text).tree == value


@pytest.mark.parametrize("text", ["a: b", "- 1", "*x", "!t 1", "&x 1", "[1", "@x"])
def test_other_values_of_overrides_are_refused(text):
    with pytest.raises(YamlProblem):
        parse_value(text)


def test_what_is_dumped_is_read_back_the_same():
    texts = [
        "1e-6",
        "no",
        "010",
        "true",
        "null",
        "",
        "~",
        "x: y",
        "# x",
        "- x",
        "1:30",
        "<<",
        "=",
        "é\n\tä",
        "'",
        '"',
        ".5",
    ]
    generator = random.Random(0)
    alphabet = "ab1-+.eE: #'\"\n[]{},&*!|>%@`~\t="
    texts += ["".join(generator.choices(alphabet, k=generator.randint(1, 12))) for _ in range(2000)]
    tree = {
        "texts": texts,
        "numbers": [1e-6, 1e22, -0.5, 3, True, None],
        "empty": [{}, []],
        "by_key": {text: 1 for text in texts},
    }
    assert parse_document(dump(tree)).tree == tree


def test_a_list_that_stands_twice_is_written_twice():
    shared = ["a"]
    assert dump({"one": shared, "two": shared}) == "one: [a]\ntwo: [a]\n"
