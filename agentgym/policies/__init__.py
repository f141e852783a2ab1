"""Policies: one protocol (`base`), scripted ones, and language models decoded in process (`hf`)."""
