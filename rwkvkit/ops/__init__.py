"""The WKV recurrences of RWKV-5, 6 and 7: a plain loop (the truth), a chunked form, and kernels."""

from rwkvkit.ops.rwkv6 import wkv5, wkv6
from rwkvkit.ops.rwkv7 import wkv7

__all__ = ["wkv5", "wkv6", "wkv7"]
