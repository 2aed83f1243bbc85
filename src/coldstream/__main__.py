"""`python -m coldstream` is `coldstream`."""

from __future__ import annotations

from coldstream.cli import main

if __name__ == "__main__":
    main()
