"""Algorithms: settings and a job in, a ``transformers.Trainer`` out; one file each."""
