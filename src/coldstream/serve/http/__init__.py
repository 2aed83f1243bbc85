"""The one HTTP/1.1 parser and its limits, and the words of ASGI."""
