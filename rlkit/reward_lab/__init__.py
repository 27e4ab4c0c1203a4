"""Try rewards before a run: golden cases, model samples, reference answers and hostile ones."""
