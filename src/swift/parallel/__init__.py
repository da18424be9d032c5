"""How one training is spread over several processes and devices."""
