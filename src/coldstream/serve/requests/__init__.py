"""From a parsed request to the engine and back."""
