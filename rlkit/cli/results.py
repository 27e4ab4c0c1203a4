"""Verbs for finished runs: ``evaluate`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (evaluate, compare):
        app.command()(verb)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/minionerec_grpo.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of its evaluate stage, such as num_beams=100."),
    ] = None,
) -> None:
    """Evaluate a finished run again."""
    from rlkit.run import evaluate_run

    folder = evaluate_run(run, overrides or ())
    typer.echo(f"written to {folder}")


def compare(
    run_a: Annotated[
        Path, typer.Argument(metavar="RUN_A", help="A run with an evaluation, or a file of answers in one.")
    ],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one, on the same rows.")],
    samples: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Chat: show N pairs of answers, the most different first."),
    ] = None,
    blind: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Chat: write a rating sheet (.csv or .html) of N random pairs, or of all."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sheet's order.")] = 0,
    ratings: Annotated[Path | None, typer.Option(metavar="FILE", help="Chat: read a filled sheet.")] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The sheet's key.", show_default="FILE.key.json")
    ] = None,
) -> None:
    """Compare two runs by a paired test.

    Both must have been evaluated on the same rows; differences are RUN_B minus RUN_A. Models of one run can be compared
    by their answers: RUN/evaluate/answers-sft.jsonl RUN.
    """
    from rlkit.report.compare import compare_runs
    from rlkit.report.tables import comparison_table, show

    if samples is None and blind is None and ratings is None:
        show(comparison_table(compare_runs(run_a, run_b)))
    else:
        _compare_answers(run_a, run_b, samples, (blind, seed), (ratings, key))


def _compare_answers(
    run_a: Path,
    run_b: Path,
    samples: int | None,
    sheet: tuple[Path | None, int],
    filled: tuple[Path | None, Path | None],
) -> None:
    from rlkit.report.compare_answers import compare_answers, most_different, read_pairs
    from rlkit.report.ratings import ratings_text, read_ratings, write_sheet
    from rlkit.report.side_by_side import show_pairs
    from rlkit.report.tables import comparison_table, show

    pairs = read_pairs(run_a, run_b)
    (blind, seed), (ratings, key) = sheet, filled
    if blind is not None:
        secret = write_sheet(pairs, blind, seed=seed, count=samples)
        typer.echo(f"{blind}: written; keep {secret} from whoever rates it")
    if ratings is not None:
        typer.echo(ratings_text(read_ratings(pairs, ratings, key)))
    if blind is None and ratings is None and samples is not None:
        show(comparison_table(compare_answers(pairs)))
        show_pairs(pairs, most_different(pairs, samples))
