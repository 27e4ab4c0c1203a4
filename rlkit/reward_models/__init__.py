"""Reward models: learned scorers of completions."""
