"""A model's load, without a server."""
