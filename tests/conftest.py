"""Settings of all tests."""

import os

# Physics that factorises matrices needs a large pool of threads, and the pool is made by whichever
# test computes first (see jaxrl._startup.large_pool).
os.environ.setdefault("NPROC", "8")
