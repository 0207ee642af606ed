"""Memory behaviour of the C library under torch on a CPU."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of returning them to the system after each step.

    A CPU training step allocates and frees hundreds of megabytes of activations; by default each is mapped anew and
    zeroed page by page. On other C libraries nothing is done: only speed is lost.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP)
        mallopt(_M_TRIM_THRESHOLD, _KEEP)
