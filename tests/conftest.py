"""What several tests share."""

import os
import signal

# Two test processes share the cores: one thread each, set before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Started in the background, a shell's children ignore SIGINT and hand that on; the processes that
# tests interrupt must not.
signal.signal(signal.SIGINT, signal.default_int_handler)
