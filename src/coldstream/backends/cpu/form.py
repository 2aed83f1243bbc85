"""The name of what a packed copy for this backend is; imports nothing, because a start asks for it before all else."""

LAYOUT = 1
"""The version of the order of a matrix's bytes (kernels/matrix.h): it changes whenever that does."""
FORM = f"cpu-int8-{LAYOUT}"
"""What it is for, and its layout."""
