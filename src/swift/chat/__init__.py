"""Conversations, text and tokens."""
