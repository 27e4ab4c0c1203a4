"""The MiniOneRec reader: what it reads, and that every kind of damage is named by file and line."""

import csv
import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlkit.config.recommendation_data import MiniOneRecDataSettings
from rlkit.errors import DataError
from rlkit.recsys.data.minionerec import read_minionerec
from rlkit.recsys.data.minionerec_catalog import plain_text

INDUSTRIAL = Path(os.environ.get("RLKIT_DATA", Path(__file__).parents[2] / "../shared/data")) / "amazon_industrial"

TITLES = ['Drill, 1/2" Chuck', "Mover's Dolly", "Émail Bleu 50 µm", "Back\\slash \u2028 Kit", "it's 5\" wide"]
SIDS = [["<a_1>", "<b_1>"], ["<a_1>", "<b_2>"], ["<a_2>", "<b_1>", "<c_7>"], ["<a_3>"], ["<a_1>", "<b_2>"]]
HEADER = ["user_id", "history_item_title", "item_title", "history_item_id", "item_id", "history_item_sid", "item_sid"]
DENSE = (0, 1, 2, 3, 4)
SPLITS = {
    "train": [("A1", [0], 1), ("A1", [0, 1], 2), ("A2", [3, 3], 4)],
    "valid": [("A2", [3, 3, 4], 0)],
    "test": [("A1", [0, 1, 2], 3)],
}


def cells(user: str, history: list[int], target: int, keys: Sequence = DENSE) -> list[str]:
    joined = ["".join(tokens) for tokens in SIDS]
    lists = ([TITLES[i] for i in history], [keys[i] for i in history], [joined[i] for i in history])
    titles, ids, sids = map(repr, lists)
    return [user, titles, TITLES[target], ids, str(keys[target]), sids, joined[target]]


def write_csv(path: Path, rows: list[list[str]], header: list[str] = HEADER) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_catalog(folder: Path, name: str = "Toy", info: str = "Toy.info.txt", keys: Sequence = DENSE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    items = {str(key): {"title": title, "description": "['A', 'B']", "brand": "X"} for key, title in zip(keys, TITLES)}
    (folder / f"{name}.item.json").write_text(json.dumps(items, indent=1), encoding="utf-8")
    (folder / f"{name}.index.json").write_text(json.dumps(dict(zip(map(str, keys), SIDS))), encoding="utf-8")
    lines = [f"{''.join(sid)}\t{title}\t{key}\n" for sid, title, key in zip(SIDS, TITLES, keys)]
    (folder / info).parent.mkdir(parents=True, exist_ok=True)
    (folder / info).write_text("".join(lines), encoding="utf-8")


def write_folder(folder: Path, name: str = "Toy", keys: Sequence = DENSE) -> Path:
    write_catalog(folder, name, f"{name}.info.txt", keys)
    for split, rows in SPLITS.items():
        write_csv(folder / f"{name}.{split}.csv", [cells(*row, keys) for row in rows])
    return folder


def write_upstream(folder: Path, name: str = "Toy", window: str = "_5_2016-10-2018-11") -> Path:
    write_catalog(folder / "index", name, f"../info/{name}{window}.txt")
    for split, rows in SPLITS.items():
        write_csv(folder / split / f"{name}{window}.csv", [cells(*row) for row in rows])
    return folder


def read(folder: Path, dataset: str | None = None):
    return read_minionerec(MiniOneRecDataSettings(path=str(folder), dataset=dataset))


def problems(folder: Path, dataset: str | None = None) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read(folder, dataset)
    return caught.value.problems


def replace_train_row(folder: Path, column: str, cell: str) -> tuple[str, ...]:
    """Damage one cell of the second train row, which stands in line 3, and return the problems."""
    rows = [cells(*row) for row in SPLITS["train"]]
    rows[1][HEADER.index(column)] = cell
    write_csv(write_folder(folder) / "Toy.train.csv", rows)
    return problems(folder)


@pytest.mark.skipif(not INDUSTRIAL.is_dir(), reason=f"no real data at {INDUSTRIAL}")
def test_the_real_folder_loads_whole_and_agrees_with_its_compact_files():
    data = read(INDUSTRIAL)
    assert data.name == "Industrial_and_Scientific"
    assert data.semantic_ids is not None
    assert data.semantic_ids[0] == ("<a_236>", "<b_231>", "<c_226>")
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 36259, "valid": 4532, "test": 4533}
    assert [item.key for item in data.items] == [str(i) for i in range(3686)]
    assert not any("recon" in name for name in data.files)
    for split in ("train", "valid", "test"):  # the .inter files are an independent copy of the same rows
        with open(INDUSTRIAL / f"Industrial_and_Scientific.{split}.inter", encoding="utf-8") as file:
            next(file)
            for row, line in zip(data.splits[split], file, strict=True):
                user, history, target = line.rstrip("\n").split("\t")
                assert (row.user, row.target) == (f"A{user}", int(target))
                assert row.history == tuple(map(int, history.split()))


def test_rows_titles_and_semantic_ids_of_any_length_are_read(tmp_path):
    data = read(write_folder(tmp_path))
    assert data.name == "Toy"
    assert [item.title for item in data.items] == TITLES
    assert data.items[0].description == "A B"
    assert data.semantic_ids == tuple(map(tuple, SIDS))
    rows = {split: [(row.user, list(row.history), row.target) for row in rows] for split, rows in data.splits.items()}
    assert rows == SPLITS
    assert str(data.splits["train"][2].source) == f"{tmp_path / 'Toy.train.csv'}:4"
    assert len(data.files) == 6


def test_upstreams_folders_are_read(tmp_path):
    data = read(write_upstream(tmp_path))
    assert (data.name, len(data.splits["train"]), len(data.items)) == ("Toy", 3, 5)


def test_a_folder_of_two_datasets_names_both_and_takes_the_one_that_is_named(tmp_path):
    write_upstream(write_upstream(tmp_path, "Toy"), "Office")
    shown = problems(tmp_path)
    assert len(shown) == 6
    assert "train/Office_5_2016-10-2018-11.csv, train/Toy_5_2016-10-2018-11.csv" in shown[0]
    assert "set dataset to one of ['Office', 'Toy']" in shown[0]
    assert read(tmp_path, "Office").name == "Office"


def test_a_plain_and_a_packed_train_file_are_an_error_that_names_both(tmp_path):
    write_csv(write_folder(tmp_path) / "Toy.train.csv.gz", [cells(*SPLITS["train"][0])])
    (shown,) = problems(tmp_path)
    assert "2 files could be train: Toy.train.csv, Toy.train.csv.gz" in shown


def test_train_recon_is_no_train_file_beside_train_and_never_stands_in_for_it(tmp_path):
    recon = write_folder(tmp_path) / "Toy.train_recon.csv"
    write_csv(recon, [cells(*SPLITS["train"][0])])
    assert len(read(tmp_path).splits["train"]) == 3
    (tmp_path / "Toy.train.csv").unlink()
    (shown,) = problems(tmp_path)
    assert "no file for train; looked for NAME.train.csv[.gz]" in shown
    assert "Toy.train_recon.csv" in shown


def test_two_files_in_the_train_folder_are_an_error_that_names_both(tmp_path):
    write_csv(write_upstream(tmp_path) / "train" / "Toy_5_2016-10-2018-11_recon.csv", [cells(*SPLITS["train"][0])])
    (shown,) = problems(tmp_path)
    assert "train/Toy_5_2016-10-2018-11.csv, train/Toy_5_2016-10-2018-11_recon.csv" in shown
    assert len(read(tmp_path, "Toy").splits["train"]) == 3


def test_files_of_different_windows_are_refused(tmp_path):
    folder = write_upstream(tmp_path)
    (folder / "valid" / "Toy_5_2016-10-2018-11.csv").rename(folder / "valid" / "Toy_5_2017-10-2018-11.csv")
    (shown,) = problems(tmp_path)
    assert "files of different datasets" in shown


def test_all_missing_roles_are_one_error(tmp_path):
    (tmp_path / "notes.txt").touch()
    (shown,) = problems(tmp_path)
    assert "no file for train, valid, test, info, index, item" in shown
    assert shown.endswith("there is notes.txt")
    assert "not a folder" in problems(tmp_path / "absent")[0]


@pytest.mark.parametrize("column", ["history_item_title", "history_item_id", "history_item_sid"])
def test_a_broken_list_in_row_1234_is_named_by_its_line(tmp_path, column):
    rows = [cells("A1", [0, 1], 2) for _ in range(1300)]
    rows[1233][HEADER.index(column)] = "['never closed"
    (write_folder(tmp_path) / "Toy.train.csv").unlink()
    write_csv(tmp_path / "Toy.train.csv.gz", rows)
    (shown,) = problems(tmp_path)
    assert f"train.csv.gz:1235: {column}: not a Python list" in shown
    assert shown.endswith("""got "['never closed"; write it like ['a', 'b']""")


def test_a_title_that_spans_lines_does_not_shift_line_numbers(tmp_path):
    rows = [cells(*row) for row in SPLITS["train"]]
    rows[0][2] = "two\nlines"
    rows[2][3] = "[99, 3]"
    write_csv(write_folder(tmp_path) / "Toy.train.csv", rows)
    (shown,) = problems(tmp_path)
    assert "Toy.train.csv:5: history_item_id: unknown item, got 99" in shown  # header 1, row 1 in lines 2 and 3


def test_an_unclosed_quote_is_reported_where_it_opens(tmp_path):
    path = write_folder(tmp_path) / "Toy.train.csv"
    path.write_text(path.read_text(encoding="utf-8") + "A3,\"['x'],y,[0],1,z,z\n" + "A,b\n" * 9, encoding="utf-8")
    assert "Toy.train.csv:5: broken CSV in the record that begins here" in problems(tmp_path)[0]


def test_code_in_a_cell_is_never_run(tmp_path):
    marker = tmp_path / "ran"
    code = f"[__import__('pathlib').Path({str(marker)!r}).touch()]"
    (shown,) = replace_train_row(tmp_path / "data", "history_item_id", code)
    assert "Toy.train.csv:3: history_item_id: not a Python list (more than literals)" in shown
    assert not marker.exists()


@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [
        ("user_id", "", "user_id: the cell is empty"),
        ("history_item_id", "[]", "history_item_id: the history is empty"),
        ("history_item_id", "[0, 77]", "history_item_id: unknown item, got 77"),
        ("history_item_id", "[0, True]", "history_item_id: unknown item, got True"),
        ("history_item_id", "[0]", "history_item_title: 2 texts for a history of 1 items"),
        ("history_item_id", "(0, 1)", "history_item_id: not a Python list (a tuple)"),
        ("item_id", "2.0", "item_id: unknown item, got '2.0'"),
        ("history_item_title", "['a', 2]", "history_item_title: a list of texts is needed"),
        ("history_item_title", "[5or 6]", "history_item_title: not a Python list"),
        (
            "history_item_sid",
            "['<a_1><b_1>', '<a_9><b_2>']",
            "item '1' is '<a_1><b_2>' in index.json, got '<a_9><b_2>'",
        ),
        ("item_sid", "<a_2>", "item_sid: item '2' is '<a_2><b_1><c_7>' in index.json, got '<a_2>'"),
    ],
)
def test_a_wrong_cell_is_named_by_line_and_column(tmp_path, column, cell, expected):
    shown = replace_train_row(tmp_path, column, cell)
    assert shown[0].startswith(f"{tmp_path / 'Toy.train.csv'}:3: ")
    assert expected in shown[0]


def test_lists_written_another_way_and_shortened_titles_are_accepted(tmp_path):
    rows = [cells(*row) for row in SPLITS["train"]]
    rows[1][1], rows[1][3], rows[1][5] = '["Drill", "Dolly"]', "[0,1]", '["<a_1><b_1>","<a_1><b_2>"]'
    write_csv(write_folder(tmp_path) / "Toy.train.csv", rows)
    assert read(tmp_path).splits["train"][1].history == (0, 1)


def test_ids_may_have_gaps_or_be_names(tmp_path):
    gaps = read(write_folder(tmp_path / "gaps", keys=[40, 7, 500, 12, 9]))
    assert [item.key for item in gaps.items] == ["7", "9", "12", "40", "500"]
    assert gaps.splits["train"][1].history == (3, 0)  # ids 40 and 7
    assert gaps.semantic_ids is not None
    assert gaps.semantic_ids[4] == tuple(SIDS[2])  # id 500
    names = read(write_folder(tmp_path / "names", keys=["B0", "A'1", "007", "c", "d"]))
    assert [item.key for item in names.items] == ["B0", "A'1", "007", "c", "d"]
    assert names.splits["train"][1].history == (0, 1)


def test_an_index_without_one_item_names_the_item_and_the_first_row_that_needs_it(tmp_path):
    (write_folder(tmp_path) / "Toy.index.json").write_text(json.dumps({str(i): SIDS[i] for i in (0, 1, 2, 4)}))
    (shown,) = problems(tmp_path)
    assert shown.startswith(f"{tmp_path / 'Toy.index.json'}: item '3' has no semantic ID, but Toy.item.json has it")
    assert f"{tmp_path / 'Toy.train.csv'}:4 needs it" in shown


def test_an_item_file_without_one_item_names_it(tmp_path):
    path = write_folder(tmp_path) / "Toy.item.json"
    items = json.loads(path.read_text(encoding="utf-8"))
    del items["2"]
    path.write_text(json.dumps(items))
    (shown,) = problems(tmp_path)
    assert "Toy.item.json: item '2' has no title, but Toy.index.json has it" in shown
    assert "Toy.train.csv:3 needs it" in shown


def test_an_info_file_of_another_catalog_is_one_error(tmp_path):
    (write_folder(tmp_path) / "Toy.info.txt").write_text("".join(f"<a_{i}>\tOther {i}\t{i}\n" for i in range(4000)))
    (shown,) = problems(tmp_path)
    assert shown.startswith(f"{tmp_path / 'Toy.info.txt'}:1: this is the info file of another catalog: 4,000 of 4,000")


def test_an_info_file_with_one_other_title_or_an_item_less_is_one_error(tmp_path):
    path = write_folder(tmp_path) / "Toy.info.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join([*lines[:1], "<a_1><b_2>\tOther\t1", *lines[2:]]), encoding="utf-8")
    (shown,) = problems(tmp_path)
    assert "Toy.info.txt:2: not what the catalog says: 1 of 5 lines" in shown
    path.write_text("\n".join(lines[1:]), encoding="utf-8")
    (shown,) = problems(tmp_path)
    assert "1 of 5 items are missing, first '0'" in shown


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], "needs a list of 1 to 8 tokens, got []"),
        (["<a_1>"] * 9, "needs a list of 1 to 8 tokens"),
        ("<a_1><b_2>", "needs a list of 1 to 8 tokens, got '<a_1><b_2>'"),
        (["<a_1>", "b_2"], "has a malformed token, got 'b_2'"),
        (["<a_1><b_2>"], "has a malformed token, got '<a_1><b_2>'"),
        (["<a_1>", 3], "has a malformed token, got 3"),
    ],
)
def test_a_malformed_semantic_id_is_one_error(tmp_path, tokens, expected):
    path = write_folder(tmp_path) / "Toy.index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "3": tokens}))
    (shown,) = problems(tmp_path)
    assert shown.startswith(f"{path}: item '3' ")
    assert expected in shown


def test_an_item_without_a_title_is_an_error(tmp_path):
    path = write_folder(tmp_path) / "Toy.item.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "3": {"brand": "X"}}))
    (shown,) = problems(tmp_path)
    assert "Toy.item.json: item '3' has no title" in shown


def test_files_that_cannot_be_decoded_are_all_reported_at_once(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "Toy.item.json").write_text('{"0": {"title": "a"},\n "1": }')
    (tmp_path / "Toy.index.json").write_text('{"0": ["<a_1>"], "0": ["<a_2>"]}')
    packed = gzip.compress((tmp_path / "Toy.train.csv").read_bytes())
    (tmp_path / "Toy.train.csv").unlink()
    (tmp_path / "Toy.train.csv.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "Toy.valid.csv").write_text("")
    (tmp_path / "Toy.test.csv").write_bytes(b"user_id\nMot\xf6r\n")
    (tmp_path / "Toy.info.txt").write_text("\n \n")
    assert [problem.removeprefix(f"{tmp_path}/") for problem in problems(tmp_path)] == [
        "Toy.item.json:2: not JSON at column 7: Expecting value",
        "Toy.index.json: 1 keys stand twice, first '0'; keep one of each",
        "Toy.train.csv.gz: broken gzip: the file ends too early; fetch it again",
        "Toy.valid.csv: the file is empty",
        "Toy.test.csv:2: not UTF-8, got byte 0xf6; save the file as UTF-8",
        "Toy.info.txt: the file is empty",
    ]


@pytest.mark.parametrize("text", ["[" * 100_000, "[1, 2]", "{}", '{"0": ' + "9" * 5_000 + "}"])
def test_json_that_is_no_object_by_item_is_one_error(tmp_path, text):
    (write_folder(tmp_path) / "Toy.index.json").write_text(text)
    (shown,) = problems(tmp_path)
    assert shown.startswith(f"{tmp_path / 'Toy.index.json'}")


def test_damaged_and_mistaken_gzip_are_named(tmp_path):
    packed = bytearray(gzip.compress((write_folder(tmp_path) / "Toy.train.csv").read_bytes() * 20))
    packed[40:60] = b"\xff" * 20
    (tmp_path / "Toy.train.csv").unlink()
    path = tmp_path / "Toy.train.csv.gz"
    for content in (bytes(packed), b"user_id,item_id\n"):
        path.write_bytes(content)
        assert f"{path}: broken gzip: " in problems(tmp_path)[0]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ([*HEADER[:-1], "sid"], "no column item_sid; the header is 'user_id,"),
        ([*HEADER[:-1], "item_id"], "two columns are called 'item_id'"),
    ],
)
def test_a_wrong_header_is_reported_at_line_1(tmp_path, header, expected):
    path = write_folder(tmp_path) / "Toy.valid.csv"
    write_csv(path, [cells(*SPLITS["valid"][0])], header)
    shown = problems(tmp_path)
    assert all(problem.startswith(f"{path}:1: ") for problem in shown)
    assert any(expected in problem for problem in shown)


def test_other_columns_and_another_order_are_accepted(tmp_path):
    row = cells(*SPLITS["valid"][0])
    write_csv(write_folder(tmp_path) / "Toy.valid.csv", [["0", *reversed(row)]], ["", *reversed(HEADER)])
    assert read(tmp_path).splits["valid"][0].history == (3, 3, 4)


def test_a_row_with_a_cell_too_few_and_a_split_without_rows_are_errors(tmp_path):
    write_csv(write_folder(tmp_path) / "Toy.train.csv", [cells(*SPLITS["train"][0]), ["A1", "x"]])
    write_csv(tmp_path / "Toy.test.csv", [])
    shown = problems(tmp_path)
    assert "Toy.train.csv:3: 2 cells, but the header has 7" in shown[0]
    assert "Toy.test.csv: the file has no rows" in shown[1]


def test_a_flood_of_problems_is_cut_and_counted(tmp_path):
    rows = [cells("A1", [0], 1) for _ in range(500)]
    for row in rows:
        row[6] = "<a_0>"
    rows[400][3] = "oops"
    write_csv(write_folder(tmp_path) / "Toy.train.csv", rows)
    shown = problems(tmp_path)
    assert len(shown) == 5  # three of item_sid, the one broken list, and the count of the rest
    assert "Toy.train.csv:402: history_item_id: not a Python list" in shown[3]
    assert shown[-1] == f"and 497 more problems: 497 in {tmp_path / 'Toy.train.csv'}, column item_sid"


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    for path in write_folder(tmp_path).iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(read(tmp_path).splits["train"]) == 3


def test_descriptions_lose_their_list_even_where_it_is_no_literal():
    assert plain_text("['One \\n two', '', 'three']") == "One two three"
    assert plain_text("['it's long', 'and \\nstrong']") == "it's long and strong"
    assert plain_text('["Dolly 18" X 12""]') == 'Dolly 18" X 12'
    assert plain_text("[not a list") == "[not a list"
    assert plain_text(["a", " b"]) == "a b"


def test_the_settings_check_reads_the_files(tmp_path):
    MiniOneRecDataSettings(path=str(write_folder(tmp_path))).check()
    (tmp_path / "Toy.train.csv").unlink()
    with pytest.raises(DataError, match="no file for train"):
        MiniOneRecDataSettings(path=str(tmp_path)).check()
