"""What an operator sees: logs, metrics, traces, the picture of a start."""
