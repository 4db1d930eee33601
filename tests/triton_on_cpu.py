"""A pytest plugin (-p triton_on_cpu, under TRITON_INTERPRET=1): the Triton launchers take over the CPU key of every op that they serve,
so that the battery written for the CPU kernels runs through the GPU ones."""

from __future__ import annotations

import torch
from nearlinear import triton_kernels

_library = torch.library.Library("nearlinear", "IMPL")
triton_kernels.register(_library, "CPU", allow_override=True)
