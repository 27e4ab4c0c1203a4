"""People compare two models blindly: a sheet of answers whose order is shuffled, its key, and the filled sheet back.

A sheet is CSV, for a spreadsheet, or an HTML page with buttons, which saves its ratings as CSV. Pairs whose answers are
the same are not shown; they count as ties.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from rlkit.errors import RunError
from rlkit.ops.bootstrap import PairedDifference
from rlkit.report.compare_answers import REWARD, Pair, Pairs, against_even
from rlkit.report.comparison import parse, read_text
from rlkit.report.side_by_side import visible
from rlkit.report.style import STYLE
from rlkit.run_directory import content_hash, write_atomically

COLUMNS = ("row", "prompt", "first", "second", "rating")
SAVED = "-ratings.csv"
"""What a page's ratings are called, behind its own name."""
RATINGS = {"1": "first", "2": "second", "tie": "tie", "=": "tie"}
ADVICE = "rate each row 1 (the first is better), 2 (the second is better) or tie"
_SCRIPT = """
document.getElementById("save").onclick = () => {
  const rows = [...document.querySelectorAll("section[data-row]")].map(part => {
    const chosen = part.querySelector("input:checked");
    return part.dataset.row + "," + (chosen ? chosen.value : "");
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["row,rating\\n" + rows.join("\\n") + "\\n"], {type: "text/csv"}));
  link.download = NAME;
  link.click();
};
"""


@dataclass(frozen=True)
class Ratings:
    """What people found.

    Args:
        a: the first model's name.
        b: the second's.
        wins_a: rows that the first model won.
        wins_b: rows that the second won.
        ties: rows that people called a tie.
        same: pairs that were the same, ties without being shown.
        open: rows without a rating.
        share: how often the second model wins, ties half, with its interval and p against one half.
        shown_first: of the rows with a winner, the share that the answer shown first won.
        agreement: per reward the share of the rows with a winner that the reward gives the same one; its ties half.
    """

    a: str
    b: str
    wins_a: int
    wins_b: int
    ties: int
    same: int
    open: int
    share: PairedDifference
    shown_first: float | None
    agreement: dict[str, float]


# ---- writing


def write_sheet(pairs: Pairs, path: Path, *, seed: int = 0, count: int | None = None) -> Path:
    """Write a sheet for people, and its key beside it.

    Args:
        pairs: what two models said.
        path: a ``.csv`` or ``.html`` file.
        seed: of the order of the answers, and of the rows where only some are taken.
        count: rows to rate; none: all.

    Returns:
        The key's path; whoever rates must not look at it.

    Raises:
        RunError: the file is of another kind or there already, or there is nothing to rate.
    """
    if path.suffix not in (".csv", ".html"):
        raise RunError(f"--blind: must end in .csv or .html, got {str(path)!r}; choose one of them")
    if path.exists() or key_path(path).exists():
        raise RunError(f"--blind: {path} or its key is there already; choose another name")
    rng = np.random.default_rng(seed)
    taken = sorted(rng.permutation(len(pairs.rows))[:count].tolist())
    chosen = [pairs.rows[index] for index in taken]
    shown = [pair for pair in chosen if not pair.same]
    if not shown:
        raise RunError(f"--blind: all {len(chosen)} pairs of answers are the same; there is nothing to rate")
    swapped = [bool(swap) for swap in rng.integers(2, size=len(shown))]
    text = _csv(shown, swapped) if path.suffix == ".csv" else _html(shown, swapped, f"{path.name}{SAVED}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    rows = [
        {"row": place, "pair": pair.number, "swapped": swap}
        for place, (pair, swap) in enumerate(zip(shown, swapped), 1)
    ]
    key = {"a": pairs.a, "b": pairs.b, "seed": seed, "same": len(chosen) - len(shown), "answers": _hash(pairs)}
    write_atomically(key_path(path), json.dumps(key | {"rows": rows}, indent=1) + "\n")
    return key_path(path)


def key_path(sheet: Path) -> Path:
    """Return where the key of a sheet, or of the ratings that a page saved, lies."""
    return sheet.with_name(f"{sheet.name.removesuffix(SAVED)}.key.json")


def _hash(pairs: Pairs) -> str:
    return content_hash([[pair.a["completion"], pair.b["completion"]] for pair in pairs.rows])


def _answers(pair: Pair, swapped: bool) -> tuple[str, str]:
    a, b = visible(pair.a["completion"]), visible(pair.b["completion"])
    return (b, a) if swapped else (a, b)


def _csv(shown: Sequence[Pair], swapped: Sequence[bool]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for place, (pair, swap) in enumerate(zip(shown, swapped), 1):
        writer.writerow([place, *map(_cell, (visible(pair.a["prompt"]), *_answers(pair, swap))), ""])
    return "\ufeff" + file.getvalue()  # the mark by which spreadsheets know UTF-8


def _cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f" {text}" if text[:1] in ("=", "+", "-", "@") else text


def _html(shown: Sequence[Pair], swapped: Sequence[bool], name: str) -> str:
    parts = [_section(place, pair, swap) for place, (pair, swap) in enumerate(zip(shown, swapped), 1)]
    script = _SCRIPT.replace("NAME", json.dumps(name).replace("<", "\\u003c"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Which answer is better?</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Which answer is better?</h1>\n<p>{ADVICE}</p>\n"
        + "\n".join(parts)
        + f'\n<button id="save">save the ratings</button>\n</main>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def _section(place: int, pair: Pair, swap: bool) -> str:
    first, second = _answers(pair, swap)
    choices = "".join(
        f'<label><input type="radio" name="r{place}" value="{value}"> {label}</label> '
        for value, label in (("1", "the first"), ("tie", "tie"), ("2", "the second"))
    )
    texts = f"<pre>{escape(visible(pair.a['prompt']))}</pre><h3>first</h3><pre>{escape(first)}</pre>"
    texts += f"<h3>second</h3><pre>{escape(second)}</pre>"
    return f'<section data-row="{place}"><h2>{place}</h2>{texts}{choices}</section>'


# ---- reading


def read_ratings(pairs: Pairs, sheet: Path, key: Path | None = None) -> Ratings:
    """Read a filled sheet back.

    Args:
        pairs: the same two models' answers.
        sheet: the filled CSV file, or the one that the page saved.
        key: its key; none: beside the sheet.

    Raises:
        RunError: a rating is none, the key is missing or of other answers, or nothing is rated.
    """
    key = key or key_path(sheet)
    found = parse(read_key(key), str(key))
    if found.get("answers") != _hash(pairs):
        raise RunError(f"{key}: was written for other answers; name the two runs in the order of --blind")
    given = _given(sheet, {row["row"] for row in found["rows"]})
    by_number = {pair.number: pair for pair in pairs.rows}
    rated = [
        (by_number[row["pair"]], row["swapped"], given[row["row"]]) for row in found["rows"] if row["row"] in given
    ]
    if not rated:
        raise RunError(f"{sheet}: holds no rating; {ADVICE}")
    shares = np.array([_share(rating, swap) for _, swap, rating in rated] + [0.5] * found["same"])
    decided = [(pair, _share(rating, swap)) for pair, swap, rating in rated if rating != "tie"]
    firsts = [rating == "first" for _, _, rating in rated if rating != "tie"]
    return Ratings(
        pairs.a,
        pairs.b,
        wins_a=sum(share == 0 for _, share in decided),
        wins_b=sum(share == 1 for _, share in decided),
        ties=len(rated) - len(decided),
        same=found["same"],
        open=len(found["rows"]) - len(rated),
        share=against_even(shares),
        shown_first=float(np.mean(firsts)) if firsts else None,
        agreement=_agreement(decided),
    )


def read_key(path: Path) -> str:
    """Return the text of a key.

    Raises:
        RunError: there is none.
    """
    if not path.is_file():
        raise RunError(f"{path}: there is no key; name the file that --blind wrote with --key")
    return read_text(path)


def _share(rating: str, swapped: bool) -> float:
    """Return 1 where the second model won, 0 where the first did, 1/2 for a tie."""
    return 0.5 if rating == "tie" else float((rating == "second") != swapped)


def _given(sheet: Path, known: set[int]) -> dict[int, str]:
    """Return the ratings by row; rows that were left open are left out."""
    if not sheet.is_file():
        raise RunError(f"{sheet}: does not exist; name the filled sheet")
    text = sheet.read_text(encoding="utf-8-sig")
    delimiter = ";" if text.partition("\n")[0].count(";") > text.partition("\n")[0].count(",") else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    if not {"row", "rating"} <= {*(reader.fieldnames or ())}:
        raise RunError(f"{sheet}: needs the columns row and rating, got {reader.fieldnames!r}; keep the first line")
    given: dict[int, str] = {}
    problems: list[str] = []
    for entry in reader:
        problem = _add(entry, known, given)
        problems += [f"{sheet}: row {entry['row']!r}: {problem}"] if problem else []
    if problems:
        raise RunError(*problems)
    return given


def _add(entry: dict[str, Any], known: set[int], given: dict[int, str]) -> str:
    """Note one line's rating, or return what is wrong with it."""
    number, rating = str(entry["row"] or "").strip(), str(entry["rating"] or "").strip().lower()
    if not rating:
        return ""
    if not number.isdecimal() or int(number) not in known:
        return "is none of the key's rows; leave the column row as it was"
    if rating not in RATINGS:
        return f"rating: must be 1, 2 or tie, got {rating!r}; {ADVICE}"
    if int(number) in given:
        return "is rated twice; keep one of them"
    given[int(number)] = RATINGS[rating]
    return ""


def _agreement(decided: Sequence[tuple[Pair, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for pair, _ in decided for name in pair.a["metrics"] if name.startswith(REWARD))
    found = {}
    for name in names:
        gaps = [(pair.b["metrics"][name] - pair.a["metrics"][name], share) for pair, share in decided]
        agrees = [0.5 if gap == 0 else float((gap > 0) == (share == 1)) for gap, share in gaps]
        found[name.removeprefix(REWARD)] = float(np.mean(agrees))
    return found


def ratings_text(ratings: Ratings) -> str:
    """Return what people found, as lines."""
    rated = ratings.wins_a + ratings.wins_b + ratings.ties
    share = ratings.share
    lines = [
        f"{ratings.b} against {ratings.a}: {rated} rows rated, {ratings.open} open, {ratings.same} pairs were the same",
        f"wins of {ratings.b}: {ratings.wins_b}, of {ratings.a}: {ratings.wins_a}, ties: {ratings.ties}",
        f"win rate of {ratings.b}, ties and equal pairs half: {share.difference:.3f} "
        f"[{share.low:.3f},{share.high:.3f}], p {share.p:.4f}",
    ]
    if ratings.shown_first is not None:
        lines.append(f"the answer shown first won {ratings.shown_first:.3f} of the decided rows")
    lines += [f"{name} agrees with people on {value:.3f} of them" for name, value in ratings.agreement.items()]
    return "\n".join(lines)
