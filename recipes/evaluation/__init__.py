"""Scores of models and the report a person reads."""
