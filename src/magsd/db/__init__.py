"""The record of what was asked and what became of it, in SQL."""
