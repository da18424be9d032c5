"""From a folder to weights and a tokenizer."""
