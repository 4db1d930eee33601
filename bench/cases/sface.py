"""SFace on a linear head. The baseline is what a torch user writes: the matrix of cosines, its angles, its weights; eager and compiled."""

from __future__ import annotations

import nearlinear
import torch
from nearlinear.reference import sface as reference

from ..registry import Baseline, Case, compiled, register
from .linear_cross_entropy import floor, flops, head, moved, products

register(
    Case(
        family="sface",
        op="sface_loss",
        name="face head",
        inputs=head,
        sizes={"cpu": [{"N": 512, "D": 512, "V": 32000}], "cuda": [{"N": 4096, "D": 512, "V": 1000000}]},
        baselines={"eager": Baseline(reference.sface_loss), "compiled": compiled(reference.sface_loss)},
        ours=nearlinear.sface_loss,
        definition=reference.sface_loss,
        tiny={"N": 14, "D": 8, "V": 33},
        bytes=floor,
        moved=moved,
        flops=flops,
        products=products,
        dtypes=(torch.float32,),
        error_rows={"N": 128, "V": 4096},
    )
)
