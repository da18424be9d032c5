"""From tensors to a number; nothing else."""
