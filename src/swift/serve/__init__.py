"""Serving: a model behind the protocol of OpenAI."""
