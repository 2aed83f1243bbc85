"""Client libraries as they come, each with its own loop, against a real server."""
