"""One thread per test process, before anything imports torch: two processes of two threads are slower than one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
