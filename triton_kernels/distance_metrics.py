"""Metrics of the distance kernels: twins of csrc/functors/distance.h. A new metric is a branch in each function that it needs and a row of
METRICS; its definition is in nearlinear/distances.py. Minkowski has further names where its power is products and a square root."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import float_pair


@triton.constexpr_function
def is_minkowski(metric):
    return metric.startswith("minkowski")


@triton.constexpr_function
def has_moments(metric):
    return metric.startswith("bray_curtis")


@triton.constexpr_function
def has_top(metric):
    return metric.endswith("chebyshev")


@triton.jit
def sign(d):
    """0 for 0 and for NaN."""
    return ((d > 0).to(tl.int32) - (d < 0).to(tl.int32)).to(d.dtype)


@triton.jit
def power_less_one(a, param, METRIC: tl.constexpr):
    """a^(p - 1)"""
    if METRIC == "minkowski_1.5":
        result = tl.sqrt(a)
    elif METRIC == "minkowski_2":
        result = a
    elif METRIC == "minkowski_3":
        result = a * a
    else:
        result = tl.exp((param - 1) * tl.log(a))
    return result


@triton.jit
def term(x, w, top, param, METRIC: tl.constexpr):
    """What is summed over the coordinates."""
    a = tl.abs(x - w)
    if METRIC == "smooth_chebyshev":
        a = tl.exp(param * (a - top))
    elif METRIC == "canberra":
        a = a / (tl.abs(x) + tl.abs(w) + param)
    elif is_minkowski(METRIC):
        a = a * power_less_one(a, param, METRIC)
    return a


@triton.jit
def moment(x, METRIC: tl.constexpr):
    """What is summed over the coordinates of each vector alone; Bray-Curtis only."""
    return tl.abs(x) if METRIC == "bray_curtis_abs" else x


@triton.jit
def value(total, top, moments, param, METRIC: tl.constexpr):
    if METRIC == "chebyshev":
        total = top
    elif METRIC == "smooth_chebyshev":
        total = tl.where(top == float("inf"), top, top + tl.log(total) / param)
    elif METRIC == "minkowski_2":
        total = tl.sqrt(total)
    elif is_minkowski(METRIC):
        total = tl.where(total == 0, 0, tl.exp(tl.log(total) / param))
    elif has_moments(METRIC):
        total = total / (tl.abs(moments) + param)
    return total


@triton.jit
def scale(total, top, moments, param, METRIC: tl.constexpr):
    """The factor of every slope of a pair."""
    if METRIC == "smooth_chebyshev":
        total = 1 / total
    elif is_minkowski(METRIC):
        total = tl.where(total > 0, value(total, top, moments, param, METRIC) / total, 0 * total)
    elif has_moments(METRIC):
        total = 1 / (tl.abs(moments) + param)
    else:
        total = tl.full(total.shape, 1, total.dtype)
    return total


@triton.jit
def slope(x, w, top, param, METRIC: tl.constexpr):
    """d dist / dx up to the scale, for one coordinate."""
    d = x - w
    if METRIC == "smooth_chebyshev":
        result = sign(d) * term(x, w, top, param, METRIC)
    elif METRIC == "canberra":
        inverse = 1 / (tl.abs(x) + tl.abs(w) + param)
        result = (sign(d) - tl.abs(d) * inverse * sign(x)) * inverse
    elif is_minkowski(METRIC):
        result = sign(d) * tl.where(d == 0, 0, power_less_one(tl.abs(d), param, METRIC))
    else:
        result = sign(d)
    return result


METRICS = {
    "manhattan": 0,
    "minkowski": 1,
    "chebyshev": 0,
    "smooth_chebyshev": 1,
    "canberra": 1,
    "bray_curtis": 1,
    "bray_curtis_abs": 1,
}  # fmt: skip  name -> number of parameters
PAIRLESS = ("manhattan", "canberra")  # whose slopes do not depend on the pair


def kernel_metric(metric: str, metric_params: list[float]) -> tuple[str, float, float]:
    """The kernels' name of the metric, and its parameter."""
    if metric == "minkowski":
        names = {1.0: "manhattan", 1.5: "minkowski_1.5", 2.0: "minkowski_2", 3.0: "minkowski_3"}
        metric = names.get(metric_params[0], metric)
    return metric, *float_pair(metric_params[0] if metric_params else 0.0)
