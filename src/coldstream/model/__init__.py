"""What a model is: its config, the names and shapes of its parameters. No arrays."""
