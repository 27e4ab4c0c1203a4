"""Rewards that check completions by rules, by running them, or by asking someone else."""
