"""Makers of semantic IDs."""
