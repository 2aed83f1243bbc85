"""For every test: Ctrl-C means what it means at a terminal, also where the tests run in the background of a shell."""

from __future__ import annotations

import signal

# A shell starts background jobs with SIGINT ignored, and whatever they start inherits it (signal(7), POSIX sh): servers
# that these tests interrupt would never hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
