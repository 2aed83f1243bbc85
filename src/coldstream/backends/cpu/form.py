"""The name of what a packed copy for this backend is; imports nothing, because a start asks for it before all else."""

LAYOUT_VERSION = 1
"""Of a matrix's bytes and scales: another number means that they are ordered, rotated or rounded otherwise."""
FORM = f"cpu-int8-{LAYOUT_VERSION}"
"""What it is for, and its layout."""
