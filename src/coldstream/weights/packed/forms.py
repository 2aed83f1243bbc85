"""The forms of packed copies: what they are for, and the version of how their bytes lie. Imports nothing."""

CPU_INT8 = "cpu-int8-1"
"""int8 for a CPU; the number is that of the matrices' layout, `LAYOUT_VERSION` in backends/cpu/packed.py."""
