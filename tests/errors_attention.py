"""Rows of test_errors.py for tensor attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nearlinear
import torch
from nearlinear.tensor_attention_checks import KERNELS, METHODS
from torch import Tensor

Q, K = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 6, 5)
V = torch.zeros(2, 3, 6, 7)
FLOATS = "must be float32, float64, bfloat16 or float16, got"
A, N, B, E = "tensor_attention: ", "tensor_attention_n: ", "tensor_attention_error_bound: ", "tensor_attention_error_estimate: "


def attend(query: Any = Q, key1: Any = K, key2: Any = K, value1: Any = V, value2: Any = V, **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.tensor_attention(query, key1, key2, value1, value2, **options)


def square(**options: Any) -> Callable[[], Any]:
    return attend(K, K, K, V, V, **options)


def many(keys: Any = (K, K, K), values: Any = (V, V, V), **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.tensor_attention_n(Q, keys, values, **options)


def bound(keys: Any = (K, K), **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.tensor_attention_error_bound(Q, keys, **options)


def estimate(keys: Any = (K, K), **options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.tensor_attention_error_estimate(Q, keys, **options)


def tree(key1b: Tensor) -> Callable[[], Any]:
    return lambda: nearlinear.tree_attention(Q, K, key1b, K, V, V)


def layer(**options: Any) -> Callable[[], Any]:
    return lambda: nearlinear.TensorAttention(12, 5, **options)


class Group:
    """Stands for a process group: refused before anybody speaks to it."""


ROWS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (attend(query=[1.0]), TypeError, A + "query must be a Tensor, got list"),
    (attend(value2=None), TypeError, A + "value2 must be a Tensor, got NoneType"),
    (attend(key1=K.long()), TypeError, A + f"key1 {FLOATS} torch.int64"),
    (
        attend(query=Q[0, 0, 0]), ValueError,
        A + "query must have shape (..., H, N, D), (H, N, D) or (N, D) with D > 0, got (5,)",
    ),
    (attend(query=Q[..., :0]), ValueError, A + "query must have shape (..., H, N, D), (H, N, D) or (N, D) with D > 0, got (2, 3, 4, 0)"),
    (attend(key2=K.double()), TypeError, A + "key2 must have the dtype of query, torch.float32, got torch.float64; convert one of them"),
    (attend(key2=K.to("meta")), ValueError, A + "key2 must be on the device of query, cpu, got meta"),
    (attend(key1=K[0]), ValueError, A + "key1 must have 4 dimensions, as query, got 3"),
    (attend(key1=K[..., :4]), ValueError, A + "key1 must have shape (*batch, Hk, N, D) = (2, 3, 6, 5), got (2, 3, 6, 4)"),
    (attend(key2=K[:, :1]), ValueError, A + "key2 must have shape (*batch, Hk, N, D) = (2, 3, 6, 5), got (2, 1, 6, 5)"),
    (
        attend(key1=K[:, :1], key2=K[:, :1], value1=V[:, :1], value2=V[:, :1]), ValueError,
        A + "key1 must have as many as query; enable_gqa=True lets several heads of query share one: heads 3, got 1",
    ),
    (
        attend(key1=K[:, :2], key2=K[:, :2], value1=V[:, :2], value2=V[:, :2], enable_gqa=True), ValueError,
        A + "key1 must have a divisor of those of query: heads 3, got 2",
    ),
    (
        attend(value1=V.double()), TypeError,
        A + "value1 must have the dtype of query, torch.float32, got torch.float64; convert one of them",
    ),
    (attend(value1=V.to("meta")), ValueError, A + "value1 must be on the device of query, cpu, got meta"),
    (
        attend(value2=V[..., :6]), ValueError,
        A + "value2 must have shape that of key2 with one width E for all values, (2, 3, 6, 7), got (2, 3, 6, 6)",
    ),
    (attend(value1=V[..., :0], value2=V[..., :0]), ValueError, A + "value1 must have channels, got shape (2, 3, 6, 0)"),
    (attend(scale=float("inf")), ValueError, A + "scale must be finite, got inf"),
    (attend(key1_padding_mask=[True]), TypeError, A + "key1_padding_mask must be a Tensor, got list"),
    (
        attend(key1_padding_mask=torch.zeros(2, 6).long()), TypeError,
        A + "key1_padding_mask must be bool (True: ignored) or floating (added to the logits), got torch.int64",
    ),
    (
        attend(key2_padding_mask=torch.zeros(2, 6, device="meta")), ValueError,
        A + "key2_padding_mask must be on the device of query, cpu, got meta",
    ),
    (
        attend(key2_padding_mask=torch.zeros(2, 4)), ValueError,
        A + "key2_padding_mask must have shape (*batch, N) or (*batch, Hk, N): (2, 6) or (2, 3, 6), got (2, 4)",
    ),
    (attend(is_causal=True), ValueError, A + "is_causal and window_size need as many keys as queries, got (4, 6, 6)"),
    (
        square(window_size=(3, 0)), ValueError,
        A + "window_size must be ((left, right), (left, right)) of whole numbers, got (3, 0)",
    ),
    (
        square(window_size=((3, 0), (-2, 0))), ValueError,
        A + "window_size must be >= 0, or -1 for any distance, got ((3, 0), (-2, 0))",
    ),
    (attend(method="moments"), ValueError, A + f"method must be one of {METHODS}, got 'moments'"),
    (attend(kernel="relu"), ValueError, A + f"kernel must be one of {KERNELS} or a sequence of coefficients, got 'relu'"),
    (
        attend(kernel="taylor", degree=3), ValueError,
        A + "degree must be even and > 0, got 3: a Taylor polynomial of odd degree is negative somewhere, and so would weights be",
    ),
    (attend(kernel="taylor", rtol=0.1), ValueError, A + "rtol must be None with kernel='taylor', which approximates nothing, got 0.1"),
    (
        attend(method="polynomial", rtol=0.1), ValueError,
        A + "rtol must be None with method='polynomial', got 0.1; method='auto' looks for it",
    ),
    (
        attend(degree=2), ValueError,
        A + "degree must be None unless method='polynomial' or kernel='taylor', got 2: softmax is never approximated unasked",
    ),
    (attend(method="exact", rtol=0.1), ValueError, A + "rtol must be None with method='exact', got 0.1"),
    (attend(rtol=-0.1), ValueError, A + "rtol must be finite and > 0, got -0.1"),
    (
        attend(kernel=torch.ones(3)), TypeError,
        A + "kernel must be a name or a list of numbers c_0, c_1, ... of sum c_m x^m, got Tensor",
    ),
    (attend(kernel=[]), ValueError, A + "kernel must have at least one coefficient, got none"),
    (attend(kernel=[1.0], degree=2), ValueError, A + "degree must be None with coefficients, which have one, got 2"),
    (attend(kernel=[1.0], rtol=0.1), ValueError, A + "rtol must be None with coefficients, which approximate nothing, got 0.1"),
    (
        square(exact_window=((1, 1), (1, 1))), ValueError,
        A + "exact_window must be None unless kernel='softmax' and method='polynomial', got method='auto'",
    ),
    (
        attend(kernel="taylor", return_error_bound=True), ValueError,
        A + "return_error_bound must be False with process_group, and with a kernel that approximates nothing",
    ),
    (
        square(kernel="taylor", method="polynomial", window_size=((1, 0), (1, 0))), NotImplementedError,
        A + "method='polynomial' with a window is not implemented, got (1, 0, 1, 0); "
        "use method='exact', or exact_window beside a polynomial",
    ),
    (
        attend(rtol=0.1, process_group=Group()), NotImplementedError,
        A + "rtol with process_group is not implemented; give method and degree",
    ),
    (
        attend(process_group=Group()), NotImplementedError,
        A + "process_group needs moments of keys: give method='polynomial', and neither is_causal nor window_size",
    ),
    (
        square(process_group=Group(), method="polynomial", is_causal=True), NotImplementedError,
        A + "process_group with is_causal is not implemented: the moments of a query are those of the keys before it",
    ),
    (many(keys=K), TypeError, N + "keys must be a list of one tensor for each set of keys, got Tensor"),
    (many(values=None), TypeError, N + "values must be a list of one tensor for each set of keys, got NoneType"),
    (many(keys=[], values=[]), ValueError, N + "keys must have at least one set, got none"),
    (many(values=[V, V]), ValueError, N + "values must have one entry for each of the 3 sets of keys, got 2"),
    (many(padding_masks=[None]), ValueError, N + "padding_masks must have one entry for each of the 3 sets of keys, got 1"),
    (many(keys=[K, K, K.long()]), TypeError, N + f"keys[2] {FLOATS} torch.int64"),
    (
        many(), NotImplementedError,
        N + "3 sets of keys without moments are not implemented; use method='polynomial', or nearlinear.reference",
    ),
    (
        bound(degree=3), ValueError,
        B + "degree must be even and > 0, got 3: a Taylor polynomial of odd degree is negative somewhere, and so would weights be",
    ),
    (bound(keys=[K], is_causal=True), NotImplementedError, B + "is_causal needs two sets of keys, got 1"),
    (estimate(samples=0), ValueError, E + "samples must be > 0, got 0"),
    (estimate(keys=[K, K[:, :, :0]]), ValueError, E + "keys must have rows to draw, got lengths [6, 0]"),
    (tree(K[:, :, :5]), ValueError, "tree_attention: key1b must have the shape of key1, (2, 3, 6, 5), got (2, 3, 5, 5)"),
    (layer(), ValueError, "TensorAttention: num_heads must divide embed_dim=12 without head_dim, got 5"),
    (layer(head_dim=2, num_kv_heads=2), ValueError, "TensorAttention: num_kv_heads must be a divisor of num_heads=5, got 2"),
    (layer(head_dim=2, method="moments"), ValueError, f"TensorAttention: method must be one of {METHODS}, got 'moments'"),
]  # fmt: skip
