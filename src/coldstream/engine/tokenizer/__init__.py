"""Text and tokens, and messages to prompts."""
