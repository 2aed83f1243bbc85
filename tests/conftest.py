"""For every test: a process has one core, and Ctrl-C means what it means at a terminal, in the background too."""

from __future__ import annotations

import os
import signal

# Tests run beside one another, one a core; the models in them are too small for a second thread. Read when torch is
# imported, and by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, and whatever they start inherits it (signal(7), POSIX sh): servers
# that these tests interrupt would never hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
