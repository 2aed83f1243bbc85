"""`coldstream pack`: the packed copy of a checkpoint, written beside it."""
