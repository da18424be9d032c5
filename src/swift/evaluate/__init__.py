"""Benchmarks: how they are run, and how their questions reach a model."""
