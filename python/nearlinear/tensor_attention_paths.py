"""From a plan to outputs: the exact softmax, sums with a polynomial, or sums with a polynomial that is corrected inside a window."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._checks import NearlinearWarning
from .tensor_attention_bounds import certificate, output_bound
from .tensor_attention_checks import KeySets
from .tensor_attention_plan import TensorAttentionPlan
from .tensor_attention_sums import beyond_range, dense_sums, excess_sums, log_sums, polynomial_sums, quotient, shifted, softmax

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["attend", "bound_of", "warn_outside"]

_calls = itertools.count(1)


def attend(
    x: KeySets, plan: TensorAttentionPlan, exact_window: tuple[int, ...] | None = None, process_group: ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """out [B, H, N, E] in the dtype of the query and lse [B, H, N]."""
    coefficients = list(plan.coefficients)
    if not coefficients:
        return softmax(x.paired())
    x, shift = shifted(x, process_group)
    lost = beyond_range(x)
    dense = plan.method == "exact"
    sums = dense_sums(x.paired(), coefficients) if dense else polynomial_sums(x, coefficients, process_group)
    if exact_window is not None:
        corrected = sums + excess_sums(x, coefficients, exact_window)
        # what is left of the polynomial where nearly all of its weight was taken away again is rounding
        cancelled = corrected[..., -1] < torch.finfo(sums.dtype).eps ** 0.5 * sums[..., -1]
        sums, lost = corrected, cancelled if lost is None else lost | cancelled
    if lost is not None:
        sums = sums.masked_fill(lost.unsqueeze(3), torch.nan)  # not 0, which would look like an answer
    return quotient(sums, x.query.dtype), log_sums(sums, shift)


def bound_of(x: KeySets, plan: TensorAttentionPlan) -> Tensor:
    """[B, H, N]: of the error of an output of ``attend`` as a softmax. A window summed exactly only lessens it."""
    exact = plan.degree is None
    return output_bound(x, certificate(x, 2 if plan.degree is None else plan.degree), exact)


def warn_outside(function: str, x: KeySets, degree: int) -> None:
    """Says so if nothing is certified. Looks at calls number 1, 2, 4, 8, ... of the process: a certificate costs about two calls,
    and has to be read from the device."""
    unreadable = x.query.is_meta or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    if unreadable or (x.query.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    call = next(_calls)
    if call & (call - 1):
        return
    tv = certificate(x, degree).tv
    largest = float(tv.max()) if tv.numel() else 0.0
    if not largest < 1:
        text = f"{function}: with degree={degree} the total variation from softmax attention is only certified to be below {largest:.3g}"
        warnings.warn(f"{text}, where 1 says nothing; see nearlinear.tensor_attention_error_bound", NearlinearWarning, stacklevel=3)
