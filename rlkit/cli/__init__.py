"""The command line: Typer verbs, each a thin function that imports what it needs when it runs."""
