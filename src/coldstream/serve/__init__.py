"""The HTTP server: /generate, the OpenAI API, start-up, limits, metrics."""
