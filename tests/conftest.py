"""What several tests share."""

import os

# Two test processes share the cores: one thread each, set before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
