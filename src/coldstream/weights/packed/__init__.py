"""A packed copy of a checkpoint: what a start needs, as it needs it, bound to what it was made from: docs/packed.md."""
