"""How many threads compute: our kernels' OpenMP and numpy's BLAS, each of which would take the host's CPUs."""

from __future__ import annotations

import ctypes

from coldstream.backends.cpu.packed import openmp_of_this_process


def compute_with(threads: int, *, blas: bool) -> None:
    """From now on the calling thread computes with so many, itself included.

    OpenMP keeps the number for the calling thread (`nthreads-var`), BLAS one for the process. `blas` False leaves that
    alone, and unasked, which saves a search through this process's libraries.
    """
    ctypes.CDLL(openmp_of_this_process()).omp_set_num_threads(threads)
    if blas:
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads, user_api="blas")  # type: ignore[no-untyped-call]
