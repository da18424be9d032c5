"""From tokens to more tokens."""
