"""Alarms on the history of a stage's metrics."""
