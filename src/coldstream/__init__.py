"""Coldstream: from `gs://bucket/model` to the first token, in the time the bytes need to cross the wire."""
