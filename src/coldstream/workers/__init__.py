"""Processes that work for this one: how one is started and spoken to, and work that is killed beyond its limits."""
