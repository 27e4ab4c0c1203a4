"""Recommendation data: readers, the generated demo, and what to know of a dataset."""
