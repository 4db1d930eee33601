"""What one call of a fused linear head is given, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .linear_plan import Plan, plan
from .ops._register import stats_dtype
from .score_maps import ScoreMap


@dataclass
class Head:
    """One call's tensors and options. ``target``: a label per row, or class probabilities [N, V], which want all classes in one tile."""

    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    target: Tensor
    weight: Tensor | None
    margin: Tensor | None
    ignore_index: int
    score_map: ScoreMap
    spread: bool
    first_class: int = 0
    num_classes: int | None = None
    max_workspace_bytes: int | None = None

    def __post_init__(self) -> None:
        self.wide = stats_dtype(self.input)
        self.embedding = self.score_map.embedding
        self.embeds = not self.embedding.identity and self.embedding.metric is None
        elementwise = self.score_map.elementwise
        self.map_arguments = elementwise.name, elementwise.params
        self.on_half = self.input.dtype.itemsize == 2 and self.input.is_cuda and self.embedding.identity
        self.held = self.linear_weight.shape[0]
        self.soft = self.target.dim() == 2
        self.classes_in_all = self.held if self.num_classes is None else self.num_classes

    @property
    def weight_sum(self) -> Tensor | float:
        return float(self.held) if self.weight is None else self.weight.sum()

    @property
    def leaves_out_ignored(self) -> bool:
        """Whether no ignored row is met in a tile: on CPU they are found and left out, which saves their share of the products, and on
        CUDA would synchronise; beside class probabilities there are none."""
        return self.soft or not self.input.is_cuda

    def plan(self, num_rows: int) -> Plan:
        return plan(
            num_rows, self.held, self.input.shape[1], self.input.dtype, device_type=self.input.device.type, score_map=self.score_map,
            soft_target=self.soft, max_workspace_bytes=self.max_workspace_bytes,
        )  # fmt: skip


class Gradients:
    """Accumulators of the wanted gradients; what is not wanted is empty."""

    def __init__(self, head: Head, wants: list[bool], one_tile_of_rows: bool) -> None:
        def like(t: Tensor | None, wanted: bool, dtype: torch.dtype | None = None) -> Tensor:
            return head.input.new_empty(0) if t is None or not wanted else torch.empty_like(t, dtype=dtype)

        self.wants = wants  # of input, class vectors, bias, margin
        with_bias = head.embedding.holds_bias and wants[2]  # a part of the class vectors: their gradient is the way to the bias's
        direct = one_tile_of_rows or head.linear_weight.dtype == head.wide
        self.d_input = like(head.input, wants[0])
        self.d_weight = like(head.linear_weight, wants[1] or with_bias, None if direct else head.wide)
        self.d_bias = like(head.linear_bias, wants[2], head.wide)
        self.d_margin = like(head.margin, wants[3], head.wide)

    def results(self, head: Head) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        bias, margin = head.linear_bias, head.margin
        return (
            self.d_input,
            self.d_weight.to(head.linear_weight.dtype) if self.wants[1] else self.d_weight.new_empty(0, dtype=head.linear_weight.dtype),
            self.d_bias if bias is None else self.d_bias.to(bias.dtype),
            self.d_margin if margin is None else self.d_margin.to(margin.dtype),
        )
