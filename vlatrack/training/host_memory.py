"""The memory allocator of the C library, which serves every tensor of a CPU."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_NEVER = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next tensor, instead of handing it back to the system.

    A training step allocates the same tensors as the one before, and the system clears each page that it hands out:
    a tenth of the time of a small model. The process takes no more memory than at its peak. Other C libraries are left
    as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    if mallopt(_M_MMAP_THRESHOLD, _NEVER):  # setting only the other one would freeze this one at its low initial value
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
