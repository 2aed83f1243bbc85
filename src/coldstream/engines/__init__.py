"""What turns requests into events of tokens."""
