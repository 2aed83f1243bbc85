"""The backend on torch's tensors: float32 and bfloat16 anywhere, int8 on a CPU through the kernels."""
