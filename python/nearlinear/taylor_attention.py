"""Attention over any number of sets of keys by moments, and how far a Taylor polynomial is from the softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ._checks import require
from .tensor_attention_bounds import certificate, sampled_distance
from .tensor_attention_checks import KeySets, check_kernel, check_sets, check_window
from .tensor_attention_paths import attend, warn_outside
from .tensor_attention_plan import decide

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["TensorAttentionErrorBound", "tensor_attention_error_bound", "tensor_attention_error_estimate", "tensor_attention_n"]


class TensorAttentionErrorBound(NamedTuple):
    """``tv_bound`` (..., H, N): total variation of a row's weights from those of the softmax, at most. ``logit_bound`` (..., H): largest
    absolute logit, at most. ``sigma`` (..., H): root mean square of the logits, biases apart. All float64."""

    tv_bound: Tensor
    logit_bound: Tensor
    sigma: Tensor


def tensor_attention_n(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    scale: float | None = None,
    kernel: str | Sequence[float] = "softmax",
    degree: int | None = None,
    method: str = "auto",
    padding_masks: Sequence[Tensor | None] | None = None,
    enable_gqa: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    r"""Attention of order M + 1: query i attends to all tuples of a row from each of M sets of keys.

    .. math:: x = s \sum_c q_{ic}\, k^1_{j_1 c} \cdots k^M_{j_M c}, \qquad
              \mathrm{out}_i \propto \sum w(x)\, v^1_{j_1} \odot \cdots \odot v^M_{j_M}

    M = 2 is :func:`tensor_attention`, M = 1 ordinary attention, with a polynomial the linear one.

    Args:
        query: (..., H, N, D), or (N, D).
        keys, values: M tensors (..., Hk, N_t, D) and (..., Hk, N_t, E).
        scale: s; **None is 1 / D** for every M.
        kernel, degree: as in :func:`tensor_attention`.
        method: ``"exact"`` exists for M <= 2. A softmax over more sets is only had as ``"polynomial"``, which must be asked for.
        padding_masks: None, or a mask (or None) for each set, as ``key1_padding_mask`` there.
        enable_gqa: Hk may divide H.
        process_group: every rank holds a slice of queries and of every set of keys.

    Returns:
        out (..., H, N, E) in the dtype of ``query``.

    Cost: 2 R (E + 1) (N + N_1 + ... + N_M) operations by moments, where all tuples are N N_1 ... N_M.

    Example:
        >>> import torch, nearlinear
        >>> q, *sets = (torch.randn(2, 4, 100, 8) for _ in range(7))
        >>> nearlinear.tensor_attention_n(q, sets[:3], sets[3:], kernel="taylor").shape
        torch.Size([2, 4, 100, 8])
    """
    function = "tensor_attention_n"
    name, coefficients = check_kernel(function, kernel, method, degree, None)
    x = _sets(function, query, keys, values, padding_masks, scale, enable_gqa)
    plan = decide(function, x, name, coefficients, method, None, process_group)
    if name == "softmax" and method == "polynomial" and process_group is None:
        warn_outside(function, x, len(coefficients) - 1)
    out, _ = attend(x, plan, None, process_group)
    return x.restored(out)


def tensor_attention_error_bound(
    query: Tensor, keys: Sequence[Tensor], *, scale: float | None = None, degree: int = 2,
    padding_masks: Sequence[Tensor | None] | None = None, is_causal: bool = False, enable_gqa: bool = False,
) -> TensorAttentionErrorBound:  # fmt: skip
    r"""Certified distance of the weights with the Taylor polynomial of exp from those of the softmax, for every row, without the pairs.

    ``|out_polynomial - out_softmax| <= 2 tv_bound max|v1_e| max|v2_e|`` in channel e, rounding apart. A bound above 1 says nothing.
    docs/taylor_attention.md has the derivation. Computed in float64 whatever the inputs; no gradient, and nothing waits for a GPU.

    Args:
        query: (..., H, N, D), or (N, D).
        keys: M tensors (..., Hk, N_t, D).
        scale: s; None is 1 / D.
        degree: even.
        padding_masks: as in :func:`tensor_attention_n`.
        is_causal: keys 0 to i for query i; two sets of keys.
        enable_gqa: Hk may divide H.

    Example:
        >>> import torch, nearlinear
        >>> q, a, b = torch.nn.functional.normalize(torch.randn(3, 256, 64), dim=-1) * 8
        >>> bool(nearlinear.tensor_attention_error_bound(q, [a, b]).tv_bound.max() < 0.05)
        True
    """
    function = "tensor_attention_error_bound"
    check_kernel(function, "taylor", "auto", degree, None)
    x = _sets(function, query, keys, keys, padding_masks, scale, enable_gqa)
    if is_causal:
        pairs = f"is_causal needs two sets of keys, got {len(x.keys)}"
        require(len(x.keys) == 2, NotImplementedError, function, pairs)
        x = KeySets(**{**vars(x), "window": check_window(function, x, is_causal, None)})
    found = certificate(x, degree)
    logit = found.logit.amax(2) if found.logit.shape[2] else found.logit.new_zeros(found.logit.shape[:2])
    sigma = found.square.mean(2).sqrt()
    return TensorAttentionErrorBound(x.restored(found.tv), x.restored(logit, rows=False), x.restored(sigma, rows=False))


def tensor_attention_error_estimate(
    query: Tensor, keys: Sequence[Tensor], *, scale: float | None = None, degree: int = 2, samples: int = 512,
    padding_masks: Sequence[Tensor | None] | None = None, enable_gqa: bool = False, generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """What :func:`tensor_attention_error_bound` bounds, estimated from tuples of keys drawn at random: **not a bound**.

    It sees the bulk of the pairs: a single pair with a large logit is missed. (..., H, N) in float64. Arguments as there, and:

    Args:
        query, keys, scale, degree, padding_masks, enable_gqa: as there.
        samples: tuples, the same for all queries of a head.
        generator: of the random numbers.

    Example:
        >>> import torch, nearlinear
        >>> q, a, b = torch.nn.functional.normalize(torch.randn(3, 256, 64), dim=-1) * 8
        >>> bool(nearlinear.tensor_attention_error_estimate(q, [a, b]).mean() < 0.002)
        True
    """
    function = "tensor_attention_error_estimate"
    check_kernel(function, "taylor", "auto", degree, None)
    x = _sets(function, query, keys, keys, padding_masks, scale, enable_gqa)
    require(samples > 0, ValueError, function, f"samples must be > 0, got {samples}")
    filled = all(key.shape[2] > 0 for key in x.keys)
    require(filled, ValueError, function, f"keys must have rows to draw, got lengths {[key.shape[2] for key in x.keys]}")
    return x.restored(sampled_distance(x, degree, samples, generator))


def _sets(
    function: str, query: Any, keys: Any, values: Any, padding_masks: Any, scale: float | None, enable_gqa: bool
) -> KeySets:  # fmt: skip
    for name, given in (("keys", keys), ("values", values), ("padding_masks", padding_masks)):
        listed = isinstance(given, (list, tuple)) or (given is None and name == "padding_masks")
        require(listed, TypeError, function, f"{name} must be a list of one tensor for each set of keys, got {type(given).__name__}")
    require(len(keys) > 0, ValueError, function, "keys must have at least one set, got none")
    masks = [None] * len(keys) if padding_masks is None else padding_masks
    for name, given in (("values", values), ("padding_masks", masks)):
        text = f"{name} must have one entry for each of the {len(keys)} sets of keys, got {len(given)}"
        require(len(given) == len(keys), ValueError, function, text)
    named_keys, named_values, named_masks = (
        {f"{name}[{t}]": tensor for t, tensor in enumerate(given)}
        for name, given in (("keys", keys), ("values", values), ("padding_masks", masks))
    )
    return check_sets(function, query, named_keys, named_values, named_masks, scale, enable_gqa)
