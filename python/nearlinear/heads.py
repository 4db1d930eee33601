"""Heads of face recognition and of distances: thin forms of :func:`nearlinear.linear_cross_entropy`, one score map each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from . import _checks
from .distances import DistanceMetric
from .linear_cross_entropy import linear_cross_entropy
from .row_losses import RowLoss
from .score_maps import ArcMargin, CosineHarmonic, CosMargin, Harmonic, MetricHarmonic, ScoreMap

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "ArcFaceLoss", "CosFaceLoss", "ElasticArcFaceLoss", "ElasticCosFaceLoss", "HarmonicLoss", "UNPGLoss", "arcface_loss", "cosface_loss",
    "elastic_arcface_loss", "elastic_cosface_loss", "harmonic_loss", "unpg_loss",
]  # fmt: skip


class Options(TypedDict, total=False):
    """Keyword arguments that every loss of this module hands on; see :func:`nearlinear.linear_cross_entropy`."""

    weight: Tensor | None
    ignore_index: int
    reduction: str
    label_smoothing: float
    z_loss: float
    sample_weight: Tensor | None
    normalizer: float | Tensor | None
    row_loss: str | RowLoss
    extra_lse: Tensor | None
    max_workspace_bytes: int | None
    process_group: ProcessGroup | None
    check_targets: bool


def arcface_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    margin: float | Tensor = 0.5,
    scale: float = 64.0,
    monotone: bool = False,
    **options: Unpack[Options],
) -> Tensor:
    """Cross-entropy of ``scale * cos(theta)``, the target's angle enlarged by ``margin`` radians: ArcFace (arXiv:1801.07698, eq. 3).

    ``margin``: a number, or a tensor of the shape of ``target``, differentiable. ``monotone``: see
    :class:`~nearlinear.score_maps.ArcMargin`, whose ``multiplier`` and ``offset`` give the combined margins. Shapes, options, errors and
    cost are those of :func:`linear_cross_entropy`.
    """
    number, rows = _margin(margin)
    return linear_cross_entropy(
        input, linear_weight, target, logit_map=ArcMargin(scale, number, monotone=monotone), margin=rows, **options
    )  # fmt: skip


def cosface_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    margin: float | Tensor = 0.35,
    scale: float = 64.0,
    **options: Unpack[Options],
) -> Tensor:
    """Cross-entropy of ``scale * cos(theta)``, the target's cosine lowered by ``margin``: CosFace (arXiv:1801.09414, eq. 4).

    ``margin``: a number, or a tensor of the shape of ``target``, differentiable. Otherwise as :func:`linear_cross_entropy`.
    """
    number, rows = _margin(margin)
    return linear_cross_entropy(input, linear_weight, target, logit_map=CosMargin(scale, number), margin=rows, **options)


def elastic_arcface_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    margin: float = 0.5,
    std: float = 0.05,
    plus: bool = False,
    scale: float = 64.0,
    generator: torch.Generator | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """ArcFace with a margin per row drawn from Normal(``margin``, ``std``): ElasticFace-Arc (arXiv:2109.09416, eq. 5; ``plus`` its
    section 3.3, published with ``std=0.0175``).

    ``plus`` hands out the drawn margins by difficulty: the row whose cosine to its class is largest gets the smallest margin. (The public
    code gathers where this needs a scatter, so its margins do not follow the cosines.) Otherwise as :func:`linear_cross_entropy`.
    """
    rows = _elastic("elastic_arcface_loss", input, linear_weight, target, margin, std, plus, generator, options)
    return arcface_loss(input, linear_weight, target, margin=rows, scale=scale, **options)


def elastic_cosface_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    margin: float = 0.35,
    std: float = 0.05,
    plus: bool = False,
    scale: float = 64.0,
    generator: torch.Generator | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """CosFace with a margin per row drawn from Normal(``margin``, ``std``): ElasticFace-Cos (arXiv:2109.09416, eq. 6; ``plus`` published
    with ``std=0.02``). Otherwise as :func:`elastic_arcface_loss`."""
    rows = _elastic("elastic_cosface_loss", input, linear_weight, target, margin, std, plus, generator, options)
    return cosface_loss(input, linear_weight, target, margin=rows, scale=scale, **options)


def harmonic_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    exponent: float,
    metric: str | DistanceMetric = "euclidean",
    eps: float = 1e-4,
    transform: Tensor | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """Negative log of ``p_y`` with ``p_j`` proportional to ``(d_j + eps)^-exponent`` (arXiv:2502.01628; metrics arXiv:2603.10225).

    ``d_j`` is a distance between the feature and class vector j: ``"euclidean"`` the squared distance, ``"cosine"`` 1 - cos,
    ``"mahalanobis"`` the squared distance after both sides are multiplied by ``transform`` (D, K), whose product with its own transpose is
    the matrix M; differentiable; or a record of :mod:`nearlinear.distances` (Manhattan, Minkowski, Chebyshev, Canberra, Bray-Curtis),
    whose tiles come from a kernel of their own in O(N V D) scalar steps, no (N, V) tensor stored either. Published variants: GPT-2 uses
    the euclidean metric with exponent n = D and the row loss :class:`~nearlinear.row_losses.Floored`; dividing by the row's smallest
    distance, as public code does, cancels in the softmax.

    Distances are computed in float32 under autocast too: one bfloat16 product moves these logits by units. Otherwise as
    :func:`linear_cross_entropy`.
    """
    function = "harmonic_loss"
    one_of = f"metric must be a DistanceMetric or one of {sorted(_METRICS)}, got {metric!r}"
    _checks.require(isinstance(metric, DistanceMetric) or metric in _METRICS, ValueError, function, one_of)
    needs = "a tensor (D, K) with metric='mahalanobis', None with others"
    _checks.require((transform is not None) == (metric == "mahalanobis"), ValueError, function, f"transform must be {needs}")
    if transform is not None:
        with torch.autocast(input.device.type, enabled=False):
            wide = torch.promote_types(input.dtype, torch.float32)
            input, linear_weight = (t.to(wide) @ transform.to(wide) for t in (input, linear_weight))
    by_metric = MetricHarmonic(exponent, metric, eps) if isinstance(metric, DistanceMetric) else _METRICS[metric](exponent, eps)
    return linear_cross_entropy(input, linear_weight, target, logit_map=by_metric, **options)


_METRICS: dict[str, Any] = {"euclidean": Harmonic, "mahalanobis": Harmonic, "cosine": CosineHarmonic}


def unpg_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    logit_map: ScoreMap | None = None,
    whisker: float = 1.5,
    **options: Unpack[Options],
) -> Tensor:
    """A cosine head whose softmax also holds the batch's own negative pairs, outliers left out: UNPG (arXiv:2203.11593, eq. 7).

    The cosines of all pairs i < j with different labels are sorted; those within ``[Q1 - whisker IQR, Q3 + whisker IQR]`` are kept, the
    quartiles being the entries at ``int(l / 4)`` and ``int(3 l / 4)``. Their log-sum-exp, scaled as the head, is shared by all rows;
    gradients flow through the kept cosines. A batch without negative pairs is the plain head.

    ``logit_map``: :class:`~nearlinear.score_maps.CosMargin` (64, 0.5) unless given; its ``scale`` scales the pairs. Costs N^2 / 2 cosines
    of the batch, which are stored. Otherwise as :func:`linear_cross_entropy`; ``extra_lse`` is taken.
    """
    head = CosMargin(64.0, 0.5) if logit_map is None else logit_map
    scale = getattr(head, "scale", None)
    _checks.require(scale is not None, ValueError, "unpg_loss", f"logit_map must be a cosine map, got {head}")
    x, label = input.flatten(0, -2), target.flatten()
    unit = nn.functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)
    kept = label != options.get("ignore_index", -100)
    negative = (label.unsqueeze(1) != label) & kept.unsqueeze(1) & kept
    negative = negative.triu(1)
    cosines = unit @ unit.T
    # by masks, so that shapes are fixed and CUDA need not wait for a count
    ordered = cosines.detach().masked_fill(~negative, math.inf).flatten().sort().values
    count = negative.sum()
    first, third = ordered[count // 4], ordered[3 * count // 4]
    reach = whisker * (third - first)
    kept_pairs = negative & (cosines.detach() >= first - reach) & (cosines.detach() <= third + reach)
    extra = torch.logsumexp((scale * cosines).masked_fill(~kept_pairs, -math.inf).flatten(), 0)  # type: ignore[operator]
    given = options.get("extra_lse")
    extra = extra if given is None else torch.logaddexp(given.to(extra.dtype), extra)
    options["extra_lse"] = extra
    return linear_cross_entropy(input, linear_weight, target, logit_map=head, **options)


def _margin(margin: float | Tensor) -> tuple[float, Tensor | None]:
    return (0.0, margin) if isinstance(margin, Tensor) else (margin, None)


def _elastic(
    function: str, input: Tensor, linear_weight: Tensor, target: Tensor, mean: float, std: float, plus: bool,
    generator: torch.Generator | None, options: Options,
) -> Tensor:  # fmt: skip
    """Margins of the shape of target."""
    _checks.require(std >= 0, ValueError, function, f"std must be >= 0, got {std}")
    dtype = torch.promote_types(input.dtype, torch.float32)
    drawn = torch.empty(target.shape, dtype=dtype, device=input.device).normal_(mean, std, generator=generator)
    if not plus:
        return drawn
    no_group = "plus must be False with process_group: the cosines of other ranks' classes are not here"
    _checks.require(options.get("process_group") is None, ValueError, function, no_group)
    with torch.no_grad():
        place = target.flatten().clamp(0, len(linear_weight) - 1)
        x, w = input.flatten(0, -2).to(dtype), linear_weight[place].to(dtype)
        cosine = nn.functional.cosine_similarity(x, w, dim=1)
        ignored = target.flatten() == options.get("ignore_index", -100)
        order = cosine.masked_fill(ignored, -math.inf).argsort(descending=True, stable=True)
        # the margins of the rows kept, smallest first; ignored rows come last in both orders
        ranked = drawn.flatten().masked_fill(ignored, math.inf).sort().values
        return torch.empty_like(ranked).scatter(0, order, ranked).masked_fill(ignored, mean).view(target.shape)


class _Head(nn.Module):
    """Options at construction, tensors that change every step in the call."""

    function: Any

    def __init__(self, weight: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        if "reduction" in options:
            _checks.check_reduction(type(self).__name__, options["reduction"])
        self.options = options

    def forward(self, input: Tensor, linear_weight: Tensor, target: Tensor, **tensors: Any) -> Tensor:
        loss: Tensor = type(self).function(input, linear_weight, target, weight=self.weight, **self.options, **tensors)
        return loss

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.options.items())


class ArcFaceLoss(_Head):
    """Module form of :func:`arcface_loss`; a tensor ``margin`` goes into the call."""

    function = staticmethod(arcface_loss)


class CosFaceLoss(_Head):
    """Module form of :func:`cosface_loss`; a tensor ``margin`` goes into the call."""

    function = staticmethod(cosface_loss)


class ElasticArcFaceLoss(_Head):
    """Module form of :func:`elastic_arcface_loss`."""

    function = staticmethod(elastic_arcface_loss)


class ElasticCosFaceLoss(_Head):
    """Module form of :func:`elastic_cosface_loss`."""

    function = staticmethod(elastic_cosface_loss)


class HarmonicLoss(_Head):
    """Module form of :func:`harmonic_loss`; ``transform`` goes into the call."""

    function = staticmethod(harmonic_loss)


class UNPGLoss(_Head):
    """Module form of :func:`unpg_loss`."""

    function = staticmethod(unpg_loss)
