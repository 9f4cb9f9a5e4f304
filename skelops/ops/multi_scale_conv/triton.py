"""multi_scale_conv by the Triton kernels of its parts."""

from __future__ import annotations

from collections.abc import Callable

from skelops.ops.multi_scale_conv import composed
from skelops.ops.temporal_conv import triton as temporal_conv
from skelops.ops.temporal_max_pool import triton as temporal_max_pool


def _kernel(name: str) -> Callable[..., None]:
    return getattr(temporal_max_pool if "pool" in name else temporal_conv, name)


multi_scale_conv = composed.forward(_kernel)
multi_scale_conv_backward = composed.backward(_kernel)
