"""Proofs: a run shown to be right before any weight is loaded."""
