"""Hypothesis strategies: small problems of any shape, dtype and option set, with ties and extreme values on purpose."""

from __future__ import annotations

from typing import Any

import nearlinear
import torch
from hypothesis import strategies as st
from torch import Tensor

Problem = tuple[dict[str, Tensor], dict[str, Any], list[str]]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 2, 3, 5, 31, 32, 33, 64, 65, 130)
PIXELS = ((), (), (1,), (3,), (65,), (2, 3))


def logits(generator: torch.Generator, shape: tuple[int, ...], kind: str) -> Tensor:
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "ties":
        return values.round()
    if kind == "constant":
        return torch.full(shape, 2.5, dtype=torch.float64)
    if kind == "wide":
        return 60 * values
    if kind == "offset":
        return values.round() + 1000
    if kind == "minus_infinity":  # never a whole row: the first class stays
        masked = torch.rand(shape, generator=generator) < 0.3
        masked[:, 0] = False
        return values.masked_fill(masked, -torch.inf)
    return values


KINDS = ("normal", "ties", "constant", "wide", "offset", "minus_infinity")


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Arguments of nearlinear.cross_entropy, its options, and the inputs that carry a gradient."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows, classes, pixels = draw(st.sampled_from((1, 2, 7, 64, 66))), draw(st.sampled_from(SIZES)), draw(st.sampled_from(PIXELS))
    dtype, kind = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(KINDS))
    soft, smooth = draw(st.booleans()), draw(st.sampled_from((0.0, 0.0, 0.1, 1.0)))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if kind == "minus_infinity":  # an infinite term times a zero or with smoothing is inf or NaN: the edge tests own those rows
        soft, smooth = False, 0.0
    options: dict[str, Any] = {"reduction": draw(st.sampled_from(("none", "mean", "sum"))), "label_smoothing": smooth}
    if draw(st.booleans()):
        options["z_loss"] = draw(st.sampled_from((0.01, 1.0)))
    if kind != "minus_infinity" and draw(st.booleans()):
        options["softcap"] = draw(st.sampled_from((1.0, 30.0)))
    inputs = {"input": logits(generator, (rows, classes, *pixels), kind).to(dtype)}
    wrt = ["input"]
    if soft:
        target = torch.randn(inputs["input"].shape, generator=generator, dtype=torch.float64).softmax(1)
        inputs["target"] = target.to(dtype)
    else:
        labels = torch.randint(classes, (rows, *pixels), generator=generator)
        inputs["target"] = torch.zeros_like(labels) if kind == "minus_infinity" else labels
        options["ignore_index"] = draw(st.sampled_from((-100, -1, classes - 1)))
        if options["ignore_index"] == -1:
            inputs["target"][torch.rand(labels.shape, generator=generator) < 0.3] = -1
        if smooth == 0 and kind in ("normal", "ties", "constant"):
            options["row_loss"] = draw(st.sampled_from(sorted(nearlinear.row_losses.ROW_LOSSES)))
    if draw(st.booleans()):
        inputs["weight"] = (torch.rand(classes, generator=generator) + 0.1).to(wide)
    if draw(st.booleans()):
        inputs["sample_weight"] = (torch.rand((rows, *pixels), generator=generator) + 0.1).to(wide)
        wrt.append("sample_weight")
    return inputs, options, wrt
