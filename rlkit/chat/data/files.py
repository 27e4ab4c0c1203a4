"""Files to plain values with their lines: JSONL, JSON, CSV, Parquet, plain text, all of them also gzipped.

A folder is either files named after their splits, or what ``datasets.save_to_disk`` wrote.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rlkit.chat.data.report import short

MAX_CELL = 2**31 - 1
"""Characters that a CSV cell may hold; Python's own limit is 131,072."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "eval": "valid",
    "test": "test",
}  # fmt: skip


class Unreadable(ValueError):
    """A file that cannot be read at all: ``what is wrong; what to do``."""


@dataclass
class Values:
    """What a file holds.

    Args:
        rows: (line, value); the line is where the row begins, in a binary file its number.
        blank: blank lines.
        bad: (line, problem) of rows that are not even values.
    """

    rows: list[tuple[int, Any]] = field(default_factory=list)
    blank: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)


def find_files(path: Path) -> dict[str, list[Path]]:
    """Return the files to read by split: the file itself as train, or those of a folder by their names.

    Raises:
        Unreadable: there is nothing to read.
    """
    if not path.is_dir():
        return {"train": [path]}
    if (path / "dataset_dict.json").is_file():
        return _by_split((one, sorted(one.glob("*.arrow"))) for one in sorted(path.iterdir()) if one.is_dir())
    if (path / "state.json").is_file():
        return {"train": _arrow_files(path)}
    files = [one for one in sorted(path.rglob("*")) if one.is_file() and _suffix(one) in SUFFIXES]
    files = [one for one in files if one.name not in ("dataset_info.json", "dataset_infos.json")]
    if not files:
        raise Unreadable(f"holds no data file; put files there that end with {', '.join(SUFFIXES)}")
    return _by_split((one, [one]) for one in files)


def _arrow_files(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unreadable("its state.json is damaged; save the dataset again") from error


def _by_split(found: Iterator[tuple[Path, list[Path]]]) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for name, files in found:
        words = re.split(r"[^a-z]+", name.name.lower().partition(".")[0])
        split = next((_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES), "train")
        splits.setdefault(split, []).extend(files)
    if "train" not in splits:
        raise Unreadable(f"holds no train split, got {', '.join(sorted(splits))}; name the files one by one")
    return splits


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def read_values(path: Path, max_rows: int | None = None) -> Values:
    """Read one file.

    Args:
        path: the file; its name says what it is, its first character where the name does not.
        max_rows: stop after so many rows.

    Raises:
        Unreadable: it cannot be read at all.
    """
    data = _bytes(path)
    suffix = _suffix(path)
    if suffix in (".parquet", ".arrow"):
        return _table(data, suffix, max_rows)
    text = _text(data)
    start = text.lstrip()[:1]
    if suffix == ".json" and start == "[":
        return _json_list(text, max_rows)
    if suffix in (".csv", ".tsv"):
        return _csv(text, "\t" if suffix == ".tsv" else ",", max_rows)
    if suffix in (".jsonl", ".ndjson", ".json") or (suffix != ".txt" and start == "{"):
        return _json_lines(text, max_rows)
    return _lines(text, max_rows)


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.name.endswith(".gz") else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Unreadable(f"not a whole gzip file: {str(error).lower()}; compress it again") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Unreadable(f"cannot be read: {reason}; name a data file or a folder of them") from error


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _json_lines(text: str, max_rows: int | None) -> Values:
    values = Values()
    for number, line in _full_lines(text, values, max_rows):
        try:
            values.rows.append((number, _unicode(json.loads(line), line)))
        except (ValueError, RecursionError) as error:
            values.bad.append((number, f"not valid JSON: {str(error).lower()}; write one object per line"))
    return values


def _unicode(value: Any, text: str) -> Any:
    """Return a value; half of a surrogate pair, which JSON can write and no tokenizer reads, is an error."""
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half of a surrogate pair, got {short(error.object[error.start])}") from error
    return value


def _lines(text: str, max_rows: int | None) -> Values:
    values = Values()
    values.rows += [(number, line.strip()) for number, line in _full_lines(text, values, max_rows)]
    return values


def _full_lines(text: str, values: Values, max_rows: int | None) -> Iterator[tuple[int, str]]:
    """Yield numbered lines that are not blank; the last end of line begins no further one."""
    lines = text.split("\n")  # not splitlines(): JSON strings may hold U+2028
    lines = lines[:-1] if lines[-1] == "" else lines
    full = 0
    for number, line in enumerate(lines, 1):
        if full == max_rows:
            return
        if line.strip():
            full += 1
            yield number, line
        else:
            values.blank += 1


def _json_list(text: str, max_rows: int | None) -> Values:
    """Read a list entry by entry, so that each one's line is known."""
    values, decoder = Values(), json.JSONDecoder()
    at, line, counted = text.index("[") + 1, 1, 0
    space = re.compile(r"[\s,]*")
    while len(values.rows) != max_rows:
        at = space.match(text, at).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] == "]":
            break
        try:
            value, end = decoder.raw_decode(text, at)
            _unicode(value, text[at:end])
        except (ValueError, RecursionError) as error:
            values.bad.append((line, f"not valid JSON: {str(error).lower()}; what follows was not read"))
            break
        values.rows.append((line, value))
        at = end
    return values


def _csv(text: str, delimiter: str, max_rows: int | None) -> Values:
    values = Values()
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                values.blank += 1
            elif not header:
                header = [cell.strip() for cell in cells]
            elif len(values.rows) == max_rows:
                break
            elif len(cells) != len(header):
                wrong = f"{len(cells)} cells below {len(header)} column names"
                values.bad.append((line, f"{wrong}; put texts that hold a {delimiter!r} or a line end in quotes"))
            else:
                values.rows.append((line, dict(zip(header, cells))))
            line = reader.line_num + 1
    except csv.Error as error:
        values.bad.append((line, f"not valid CSV: {str(error).lower()}; what follows was not read"))
    return values


def _table(data: bytes, suffix: str, max_rows: int | None) -> Values:
    import pyarrow
    from pyarrow import ipc, parquet

    try:
        table = parquet.read_table(io.BytesIO(data)) if suffix == ".parquet" else ipc.open_stream(data).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        reason = short(str(error).partition("\n")[0], 100)
        raise Unreadable(f"not a {suffix[1:]} file: {reason}; write it again") from error
    rows = [_without_nothing(row) for row in table.slice(0, max_rows).to_pylist()]
    return Values(list(enumerate(rows, 1)))


def _without_nothing(value: Any) -> Any:
    """Drop the keys that a table fills with nothing because another row has them."""
    if isinstance(value, dict):
        return {key: _without_nothing(entry) for key, entry in value.items() if entry is not None}
    return [_without_nothing(entry) for entry in value] if isinstance(value, list) else value


def first_values(values: Values, count: int) -> list[Any]:
    """Return the first values, for a look at what they are."""
    return [value for _, value in islice(values.rows, count)]
