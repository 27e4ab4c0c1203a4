"""Find and decode the six files of a MiniOneRec dataset.

Two layouts, here for a dataset called NAME:

    NAME.train.csv[.gz]  NAME.valid.csv[.gz]  NAME.test.csv[.gz]  NAME.info.txt  NAME.index.json  NAME.item.json
    train/NAME_5_2016-10-2018-11.csv[.gz]  valid/...  test/...  info/NAME_5_...txt  index/NAME.index.json ...

Names are exact, so that ``NAME.train_recon.csv`` is never read for ``NAME.train.csv``; two files that could both play
a role are an error, never a choice. In upstream's layout every CSV file below ``train/`` could be the train split.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.errors import DataError
from rlkit.records import Source
from rlkit.recsys.data.problems import Problems, shorten

SPLITS = ("train", "valid", "test")
ROLES = {**{split: ".csv" for split in SPLITS}, "info": ".txt", "index": ".json", "item": ".json"}
"""What is looked for, with its ending."""
FOLDERS = (*SPLITS, "info", "index")
"""Folders of upstream's layout; ``index`` holds item.json too."""

_FLAT = re.compile(
    r"(?:(?P<name>.+)\.)?(?P<role>train|valid|test|info|index|item)(?P<ending>\.csv|\.csv\.gz|\.txt|\.json)"
)
_NESTED = re.compile(r"(?P<name>.+?)(?P<window>_\d+_\d{4}-\d{1,2}-\d{4}-\d{1,2})?(?P<ending>\.csv|\.csv\.gz|\.txt)")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that could play a role: the dataset it belongs to, and upstream's suffix of k-core and months."""

    path: Path
    role: str
    dataset: str
    window: str = ""


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """The one file of every role, and what the dataset is called."""

    name: str
    paths: Mapping[str, Path]


def find_files(folder: Path, dataset: str | None) -> DatasetFiles:
    """Return the one file of every role.

    Args:
        folder: where to look; its folders train, valid, test, info and index are searched too, nothing deeper.
        dataset: the dataset to take; none: the only one.

    Raises:
        DataError: a role has no file, or more than one, or the files belong to different datasets.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; name the one that holds the dataset's files")
    found = [one for one in _candidates(folder) if dataset is None or one.dataset == dataset]
    by_role = {role: [one for one in found if one.role == role] for role in ROLES}
    problems = [*_missing(folder, dataset, by_role), *_doubled(folder, by_role)]
    problems = problems or _mixed(folder, found)
    if problems:
        raise DataError(*problems)
    return DatasetFiles(
        found[0].dataset or folder.resolve().name, {role: ones[0].path for role, ones in by_role.items()}
    )


def _candidates(folder: Path) -> Iterator[Candidate]:
    for path in _listed(folder):
        place = path.parent.name if path.parent != folder else ""
        role, match = place, None
        if flat := _FLAT.fullmatch(path.name):
            role, match = flat["role"], flat
        elif place in (*SPLITS, "info"):
            match = _NESTED.fullmatch(path.name)
        if match and match["ending"].removesuffix(".gz") == ROLES[role]:
            yield Candidate(path, role, match["name"] or "", match.groupdict().get("window") or "")


def _listed(folder: Path) -> list[Path]:
    places = [folder, *(folder / name for name in FOLDERS if (folder / name).is_dir())]
    return [path for place in places for path in sorted(place.iterdir()) if path.is_file()]


def _missing(folder: Path, dataset: str | None, by_role: dict[str, list[Candidate]]) -> list[str]:
    roles = [role for role, ones in by_role.items() if not ones]
    if not roles:
        return []
    name = dataset or "NAME"
    wanted = ", ".join(_wanted(name, role) for role in roles)
    there = [str(path.relative_to(folder)) for path in _listed(folder)]
    shown = ", ".join(there[:30]) + (f" and {len(there) - 30} more" if len(there) > 30 else "")
    return [f"{folder}: no file for {', '.join(roles)}; looked for {wanted}; there is {shown or 'no file at all'}"]


def _wanted(name: str, role: str) -> str:
    ending = ROLES[role]
    flat = f"{name}.{role}{ending}{'[.gz]' if ending == '.csv' else ''}"
    upstream = f"index/{name}.{role}.json" if ending == ".json" else f"{role}/{name}_5_2016-10-2018-11{ending}"
    return f"{flat} (or {upstream})"


def _doubled(folder: Path, by_role: dict[str, list[Candidate]]) -> list[str]:
    problems = []
    for role, ones in by_role.items():
        if len(ones) > 1:
            names = ", ".join(str(one.path.relative_to(folder)) for one in ones)
            datasets = sorted({one.dataset for one in ones})
            advice = f"set dataset to one of {datasets}" if len(datasets) == len(ones) else "move all but one elsewhere"
            problems.append(f"{folder}: {len(ones)} files could be {role}: {names}; {advice}")
    return problems


def _mixed(folder: Path, found: list[Candidate]) -> list[str]:
    datasets = {one.dataset for one in found}
    windows = {one.window for one in found if one.window}
    if len(datasets) <= 1 and len(windows) <= 1:
        return []
    names = ", ".join(str(one.path.relative_to(folder)) for one in found)
    return [f"{folder}: files of different datasets: {names}; keep those of one dataset together"]


def read_text(path: Path, problems: Problems) -> str | None:
    """Return a file's text, unpacked where its name ends with ``.gz``; none where it cannot be read (noted)."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        text = data.decode("utf-8-sig")
    except (gzip.BadGzipFile, zlib.error) as error:
        problems.add(Source(str(path)), f"broken gzip: {error}; fetch the file again")
    except EOFError:
        problems.add(Source(str(path)), "broken gzip: the file ends too early; fetch it again")
    except OSError as error:
        problems.add(Source(str(path)), f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.add(Source(str(path), line), f"not UTF-8, got byte 0x{data[error.start]:02x}; save the file as UTF-8")
    else:
        if text.strip():
            return text
        problems.add(Source(str(path)), "the file is empty")
    return None


def read_json(path: Path, problems: Problems) -> dict[str, Any]:
    """Return a file's JSON object by item; empty where it is not one (noted)."""
    text = read_text(path, problems)
    if text is None:
        return {}
    repeated: list[str] = []

    def unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in members)
        repeated.extend(key for key, count in counts.items() if count > 1)
        return dict(members)

    try:
        parsed = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        problems.add(Source(str(path), error.lineno), f"not JSON at column {error.colno}: {error.msg}")
        return {}
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        problems.add(Source(str(path)), f"JSON that cannot be read: {error}")
        return {}
    if repeated:
        problems.add(Source(str(path)), f"{len(repeated)} keys stand twice, first {repeated[0]!r}; keep one of each")
    if not isinstance(parsed, dict) or not parsed:
        problems.add(Source(str(path)), f"not a JSON object by item, got {shorten(parsed)}")
        return {}
    return parsed
