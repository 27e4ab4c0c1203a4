"""The verb ``chat``: talk to a trained model, in a terminal or through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rlkit.chat.converse import Conversation

HELP = "/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(chat)


def chat(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model's folder or hub id, a run directory, or one of its stages.")
    ],
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The system message.", show_default="that of the run's recipe")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Keep tokens that hold this much probability.")] = 0.95,
    max_tokens: Annotated[int, typer.Option(min=1, help="Where an answer is cut off.")] = 512,
    seed: Annotated[int | None, typer.Option(help="Of the noise.", show_default="another one each time")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where it computes.")] = "auto",
) -> None:
    """Talk to a model.

    Through a pipe every line is a turn, and only the answers are printed. /reset forgets the conversation, /exit or
    Ctrl-D ends it, Ctrl-C stops an answer.
    """
    interactive = sys.stdin.isatty()
    conversation = _begin(model, system, temperature, top_p, max_tokens, seed=seed, device=device, say=interactive)
    if interactive:
        _note(HELP)
    for text in _turns(interactive):
        if text == "/exit":
            return
        if text == "/reset":
            conversation.reset()
            _note("the conversation is forgotten")
        else:
            _answer(conversation, text, interactive)


def _begin(
    model: str,
    system: str | None,
    temperature: float,
    top_p: float,
    max_tokens: int,
    *,
    seed: int | None,
    device: str,
    say: bool,
) -> Conversation:
    """Load the model and begin a conversation."""
    import torch

    from rlkit.chat.chat_model import load_chat_model
    from rlkit.chat.converse import Conversation
    from rlkit.engines.local import resolve_device
    from rlkit.models.load import quiet
    from rlkit.policy.text_sampler import Truncation

    quiet()
    place = resolve_device(device)
    found = load_chat_model(model)
    found.loaded.model.to(torch.device(place)).eval()
    system = found.system if system is None else system
    if say:
        _note(f"{found.name}{'' if system is None else f', system: {system}'}")
    generator = torch.Generator()
    generator.manual_seed(seed) if seed is not None else generator.seed()
    truncation = Truncation(temperature, None, top_p) if temperature else Truncation(1.0, top_k=1)
    return Conversation(found.loaded, truncation, max_tokens, generator, system or None, _note)


def _turns(interactive: bool) -> Iterator[str]:
    """Yield what the user says; blank lines say nothing."""
    if not interactive:
        yield from (text for line in sys.stdin if (text := line.strip()))
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() its line editing and history)
    while True:
        try:
            text = input("you: ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            _note(HELP)
            continue
        if text:
            yield text


def _answer(conversation: Conversation, text: str, interactive: bool) -> None:
    """Print an answer while it is written; Ctrl-C on a terminal stops it there."""
    from rlkit.errors import DataError

    if interactive:
        print("model: ", end="", flush=True)
    try:
        with closing(conversation.answer(text)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print()
        if not interactive:
            raise
        _note("stopped")
    except DataError as error:
        if not interactive:
            raise
        print()
        _note(str(error))


def _note(text: str) -> None:
    print(f"[{text}]", file=sys.stderr, flush=True)
