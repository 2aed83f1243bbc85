"""The decoder's arithmetic on a CPU, in C: `kernels.c`, compiled by `compile.py`, called through `library.py`."""
