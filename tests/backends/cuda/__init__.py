"""Kernels for GPUs, run by Triton's interpreter and compiled without a GPU."""
