"""Metrics and feature spaces, the judging of samples and of edits, tables."""
