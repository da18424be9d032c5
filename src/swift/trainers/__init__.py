"""Carry tensors from a batch to a loss."""
