"""The decoder's arithmetic on a CPU, in C: `kernels/`, compiled by `compile.py`, called through `library.py`."""
