"""The chat domain: one turn, a prompt and its answer."""
