"""Generative recommendation: items as semantic IDs, from data to ranked lists and their metrics."""
