"""A local bucket with real models in it, and everything above on top."""
