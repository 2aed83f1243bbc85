"""What every HTTP request passes: its record, its key, its body's limits, and how errors look."""
