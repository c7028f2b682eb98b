"""Attention worker: owns sequences from prompt to last token."""
