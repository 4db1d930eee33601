"""Attention of every query over all pairs of keys: exact in linear memory, or linear in time with a polynomial in the place of exp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._checks import require
from .tensor_attention_checks import KeySets, check_kernel, check_sets, check_window
from .tensor_attention_paths import attend, bound_of, warn_outside
from .tensor_attention_plan import decide
from .tensor_attention_sums import softmax

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["TensorAttention", "tensor_attention", "tree_attention"]

_NAME = "tensor_attention"
Window = tuple[tuple[int, int], tuple[int, int]]


def tensor_attention(
    query: Tensor,
    key1: Tensor,
    key2: Tensor,
    value1: Tensor,
    value2: Tensor,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    window_size: Window | None = None,
    key1_padding_mask: Tensor | None = None,
    key2_padding_mask: Tensor | None = None,
    enable_gqa: bool = False,
    method: str = "auto",
    kernel: str | Sequence[float] = "softmax",
    degree: int | None = None,
    rtol: float | None = None,
    exact_window: Window | None = None,
    return_lse: bool = False,
    return_error_bound: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Third-order attention (trilinear, Kronecker, 2-simplicial): query i attends to all pairs of a row j of ``key1`` and k of ``key2``.

    .. math:: x_{ijk} = s \sum_c q_{ic}\, a_{jc}\, b_{kc}, \qquad
              \mathrm{out}_i = \frac{\sum_{jk} w(x_{ijk})\, v^1_j \odot v^2_k}{\sum_{jk} w(x_{ijk})}, \qquad w = \exp

    Args:
        query: (..., H, N, D), as for :func:`torch.nn.functional.scaled_dot_product_attention`; (H, N, D) and (N, D) too. float32, float64,
            bfloat16 or float16; sums of 16-bit inputs are float32.
        key1, key2: (..., Hk, N1, D) and (..., Hk, N2, D): their lengths are free.
        value1, value2: (..., Hk, N1, E) and (..., Hk, N2, E): the width is free.
        scale: s. **None is 1 / D** (Alman and Song 2023), with which normalised queries and keys have logits of size D^(-1/2);
            ``D ** -0.5`` (Roy et al. 2025) must be asked for.
        is_causal: j <= i and k <= i. This and ``window_size`` need N = N1 = N2.
        window_size: ((left, right), (left, right)), how far j and k may lie before and after i, inclusive; -1 is any distance.
        key1_padding_mask, key2_padding_mask: (..., N1) or (..., Hk, N1), and alike: bool, True for a key that takes no part, whatever it
            holds, or numbers added to the logits, differentiable: torch's ``key_padding_mask``.
        enable_gqa: Hk may divide H: H / Hk heads of the query share keys and values, of which no copy is made.
        method: ``"exact"`` over all pairs, ``"polynomial"`` by moments in time linear in the lengths, or ``"auto"``: exact for a softmax
            unless ``rtol`` is given; for a polynomial whichever is cheaper, as the result is the same.
        kernel: ``"softmax"``; ``"taylor"``: w is the Taylor polynomial of exp, itself an attention with positive weights for any logits; or
            the coefficients c_0, c_1, ... of another one, whose sign is yours to see to.
        degree: even, of the Taylor polynomial: 2 unless given.
        rtol: with ``method="auto"``: the smallest of the degrees 2, 4, 6 that costs less than all pairs, and whose weights are certified to
            differ by at most this in total variation from those of the softmax, in every row; if there is none, exact. Waits for the
            device; raises under ``torch.compile`` and in CUDA graphs.
        exact_window: with ``method="polynomial"``: pairs inside this window have their exact weights, all others the polynomial's.
        return_lse: also the log of the sum of the weights, (..., H, N) in float32 (float64 for float64), differentiable.
        return_error_bound: also a bound of the error as a softmax in any channel of a row, (..., H, N), float32 (float64 for float64).
        process_group: every rank holds a slice of queries and of keys, and all call together: moments are summed over ranks.

    Returns:
        out (..., H, N, E) in the dtype of ``query``; 0, with an lse of -inf, for a query that sees no pair. A tuple if more is asked for.
        With a polynomial NaN for a query whose sums lose their digits: causal or in a window with masks that lie 40 apart (float64: 300),
        or where an ``exact_window`` takes nearly all of the polynomial's weight away.

    Warns:
        NearlinearWarning: ``method="polynomial"`` stands for a softmax that it is not certified to resemble.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option that does not fit, with what was expected.
        NotImplementedError: forward-mode AD; a polynomial inside a window; ranks without moments.

    Cost: exact 4 N N1 N2 D operations forward and three times that backward, memory linear in the lengths. Polynomial of degree g with
    R = C(D + g, g) features: 2 R (E + 1) (N + N1 + N2), twice that backward, and R (E + 1) numbers for each of three states.
    Determinism: run_to_run. Double backward: by eager definitions, in their time and memory.

    Example:
        >>> import torch, nearlinear
        >>> q, a, b, v, w = (torch.randn(2, 4, 10, 8) for _ in range(5))
        >>> nearlinear.tensor_attention(q, a, b, v, w, is_causal=True).shape
        torch.Size([2, 4, 10, 8])
    """
    keys, values = {"key1": key1, "key2": key2}, {"value1": value1, "value2": value2}
    masks = {"key1_padding_mask": key1_padding_mask, "key2_padding_mask": key2_padding_mask}
    name, coefficients = check_kernel(_NAME, kernel, method, degree, rtol)
    x = check_sets(_NAME, query, keys, values, masks, scale, enable_gqa)
    near = _near(x, name, method, is_causal, exact_window)
    x = replace(x, window=check_window(_NAME, x, is_causal, window_size))
    bounded = not return_error_bound or (name == "softmax" and process_group is None)
    require(bounded, ValueError, _NAME, "return_error_bound must be False with process_group, and with a kernel that approximates nothing")
    plan = decide(_NAME, x, name, coefficients, method, rtol, process_group)
    if name == "softmax" and method == "polynomial" and process_group is None and near is None and not return_error_bound:
        warn_outside(_NAME, x, len(coefficients) - 1)
    out, lse = attend(x, plan, near, process_group)
    more = [x.restored(lse)] if return_lse else []
    if return_error_bound:
        more.append(x.restored(bound_of(x, plan)))
    return (x.restored(out), *more) if more else x.restored(out)


def _near(x: KeySets, kernel: str, method: str, is_causal: bool, exact_window: Window | None) -> tuple[int, ...] | None:
    """The window whose pairs are summed exactly."""
    if exact_window is None:
        return None
    fits = kernel == "softmax" and method == "polynomial"
    require(fits, ValueError, _NAME, f"exact_window must be None unless kernel='softmax' and method='polynomial', got method={method!r}")
    return check_window(_NAME, x, is_causal, exact_window, "exact_window")


def tree_attention(
    query: Tensor, key1: Tensor, key1b: Tensor, key2: Tensor, value1: Tensor, value2: Tensor, *, scale: float | None = None
) -> Tensor:
    r"""Attention over pairs of keys whose logits have no triple product, exactly, by two passes of ordinary attention.

    .. math:: x_{ijk} = s\, \langle q_i, a_j \rangle + s\, \langle a'_j, b_k \rangle, \qquad
              \mathrm{out}_i = \sum_{jk} \mathrm{softmax}_{jk}(x_{ijk})\, v^1_j \odot v^2_k

    The inner sum over k does not know the query: a first pass attends from a' to b, a second from q to a, with the first one's
    log-sum-exp for a bias (Liang et al. 2026, arXiv:2602.02422).

    Args:
        query: (..., H, N, D), or (N, D).
        key1, key1b: a and a', (..., H, N1, D).
        key2: b, (..., H, N2, D).
        value1, value2: (..., H, N1, E) and (..., H, N2, E).
        scale: s; None is 1 / D, as in :func:`tensor_attention`.

    Returns:
        out (..., H, N, E) in the dtype of ``query``.

    Cost: 2 (N N1 + N1 N2) (D + E) operations, memory linear in the lengths.

    Example:
        >>> import torch, nearlinear
        >>> q, a, a2, b, v, w = (torch.randn(10, 8) for _ in range(6))
        >>> nearlinear.tree_attention(q, a, a2, b, v, w).shape
        torch.Size([10, 8])
    """
    function, keys = "tree_attention", {"key1": key1, "key2": key2, "key1b": key1b}
    x = check_sets(function, query, keys, {"value1": value1, "value2": value2}, dict.fromkeys(keys), scale, False)
    require(
        key1b.shape == key1.shape, ValueError, function, f"key1b must have the shape of key1, {tuple(key1.shape)}, got {tuple(key1b.shape)}"
    )
    a, b, lower = x.keys
    inner, lse = softmax(replace(x, query=lower, keys=(b,), values=x.values[1:], biases=(None,)).paired())
    out, _ = softmax(replace(x, keys=(a,), values=(x.values[0] * inner,), biases=(lse,)).paired())
    return x.restored(out)


class TensorAttention(nn.Module):
    """Self-attention over pairs of tokens, in the manner of :class:`torch.nn.MultiheadAttention`: projections of the input to a query, two
    keys and two values, :func:`tensor_attention`, and a projection of the result.

    Args:
        embed_dim: channels of input and output.
        num_heads: H.
        head_dim: D and E; ``embed_dim // num_heads`` unless given.
        num_kv_heads: Hk, a divisor of H: heads that share keys and values.
        qk_norm: RMSNorm of query and keys over the channels of a head. With the default scale their logits have the size D^(-1/2), where
            the polynomial of degree 2 is close to a softmax for D >= 64.
        bias: of the projections.
        scale, is_causal, window_size, method, kernel, degree, rtol, exact_window: as in the function.
        device, dtype: of the parameters.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, *, head_dim: int | None = None, num_kv_heads: int | None = None, qk_norm: bool = False,
        bias: bool = True, scale: float | None = None, is_causal: bool = False, window_size: Window | None = None, method: str = "auto",
        kernel: str | Sequence[float] = "softmax", degree: int | None = None, rtol: float | None = None, exact_window: Window | None = None,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        name = type(self).__name__
        check_kernel(name, kernel, method, degree, rtol)
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        shared = kv_heads > 0 and num_heads % kv_heads == 0
        require(shared, ValueError, name, f"num_kv_heads must be a divisor of num_heads={num_heads}, got {num_kv_heads}")
        divides = head_dim is not None or embed_dim % num_heads == 0
        require(divides, ValueError, name, f"num_heads must divide embed_dim={embed_dim} without head_dim, got {num_heads}")
        self.num_heads, self.num_kv_heads = num_heads, kv_heads
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.options: dict[str, Any] = {
            "scale": scale, "is_causal": is_causal, "window_size": window_size, "method": method, "kernel": kernel, "degree": degree,
            "rtol": rtol, "exact_window": exact_window,
        }  # fmt: skip
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        wide, narrow = num_heads * self.head_dim, kv_heads * self.head_dim
        self.query = nn.Linear(embed_dim, wide, bias, **made)
        self.key1, self.key2, self.value1, self.value2 = (nn.Linear(embed_dim, narrow, bias, **made) for _ in range(4))
        self.output = nn.Linear(wide, embed_dim, bias, **made)
        norms = [nn.RMSNorm(self.head_dim, **made) if qk_norm else nn.Identity() for _ in range(3)]
        self.query_norm, self.key1_norm, self.key2_norm = norms
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch's: Xavier's uniform distribution, biases 0."""
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, input: Tensor, key1_padding_mask: Tensor | None = None, key2_padding_mask: Tensor | None = None) -> Tensor:
        """``input`` (..., N, embed_dim), masks (..., N)."""
        query = self.query_norm(self._heads(self.query(input)))
        keys = self.key1_norm(self._heads(self.key1(input))), self.key2_norm(self._heads(self.key2(input)))
        values = self._heads(self.value1(input)), self._heads(self.value2(input))
        out = tensor_attention(
            query, *keys, *values, key1_padding_mask=key1_padding_mask, key2_padding_mask=key2_padding_mask,
            enable_gqa=self.num_kv_heads != self.num_heads, **self.options,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        projected: Tensor = self.output(out.transpose(-3, -2).flatten(-2))
        return projected

    def _heads(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)

    def extra_repr(self) -> str:
        heads = {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads}
        used = {key: value for key, value in self.options.items() if value not in (None, False)}
        return ", ".join(f"{key}={value!r}" for key, value in {**heads, **used}.items())
