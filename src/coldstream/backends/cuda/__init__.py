"""Our kernels for NVIDIA GPUs: their Triton source, their variants, and two ways to launch them."""
