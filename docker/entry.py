"""The images' entry point: the configuration comes in COLDSTREAM_TOML, so that a change of it builds no image.

With the variable, `coldstream serve --config` on its content; without it, `coldstream` with the arguments as they are.
Nothing is written but that one file, to memory (on Cloud Run every path is).
"""

import os
import sys


def main() -> None:
    """Become the server: the same process, so that SIGTERM reaches it."""
    arguments = sys.argv[1:]
    text = os.environ.pop("COLDSTREAM_TOML", "")
    if text:
        path = "/tmp/coldstream.toml"  # noqa: S108  the container's own, with one user in it
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        arguments = ["serve", "--config", path, "--quiet", *arguments]
    os.execv(sys.executable, [sys.executable, "-m", "coldstream", *arguments])  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main()
