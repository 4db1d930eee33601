"""Pair losses: the battery on each, over one tile of scores and over several, in dot products, cosines and distances."""

from __future__ import annotations

from typing import Any, ClassVar

import nearlinear
import torch
from battery import Battery
from measure import Case, Draw, Inputs
from nearlinear import pair_forms, score_maps
from nearlinear.reference import pair_loss as reference
from torch import Tensor

ops = torch.ops.nearlinear
# 512 scores in float64, 1024 in float32: several tiles of rows and of columns
TIGHT = {"max_workspace_bytes": 4096}


def batch(classes: int, features: int, *, ball: bool = False, other: str = "") -> Any:
    """Embeddings and labels, every class in several rows where they are enough; ``other``: one more vector per class by this name."""

    def make(draw: Draw, rows: int) -> Inputs:
        made = {"input": draw.normal(rows, features)}
        if other:
            made[other] = draw.normal(classes, features)
        if ball:
            made = {name: t / (1.2 + t.norm(dim=1, keepdim=True)) for name, t in made.items()}
        made["target"] = torch.arange(rows) % classes
        return made

    return make


def mixtures(classes: int, features: int) -> Any:
    """Anchors, and keys that are mixtures of two classes, which may be the same."""

    def make(draw: Draw, rows: int) -> Inputs:
        keys = rows + 3
        return {
            "input": draw.normal(rows, features), "target": draw.labels(classes, rows), "key": draw.normal(keys, features),
            "first": draw.labels(classes, keys), "second": draw.labels(classes, keys), "share": (draw.positive(keys) - 0.25).clamp(max=1),
        }  # fmt: skip

    return make


def mixed(function: Any) -> Any:
    def call(input: Tensor, target: Tensor, key: Tensor, first: Tensor, second: Tensor, share: Tensor, **options: Any) -> Tensor:
        return function(input, target, key=key, soft_label=(first, second, share), **options)

    return call


class PairBattery(Battery):
    common_roundings = 4
    bits_of_threads = False
    compiled: ClassVar[dict[str, str]] = {}

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        return []

    @classmethod
    def same_path(cls, view: Tensor) -> bool:
        return view.is_contiguous() and view.data_ptr() % 64 == 0  # the order of a matrix product is the library's choice

    def saved_bytes(self, case: Case, rows: int) -> int:
        return 512 * case.rows + 1024


class TestSupcon(PairBattery):
    function = staticmethod(nearlinear.supcon_loss)
    definition = staticmethod(reference.supcon_loss)
    cases = (
        Case("cosine", batch(5, 9), "one tile"),
        Case("tiles", batch(7, 5), "several tiles", rows=70, options={**TIGHT, "temperature": 0.5}),
        Case("small", batch(3, 3), "gradcheck", rows=7, checked=True),
        Case("dot", batch(4, 4), "no normalisation", options={"logit_map": score_maps.Dot(nearlinear.Scale(0.3))}, rows=9, checked=True),
        Case(
            "poincare", batch(4, 3, ball=True), "hyperbolic distances; the diagonal, where they are not smooth, is left out", rows=9,
            options={"logit_map": score_maps.Poincare(1.0, 0.5), "temperature": 0.7}, checked=True,
        ),
        Case(
            "rbf_tiles", batch(6, 4), "an embedding whose two sides differ, over several tiles", rows=70,
            options={"logit_map": score_maps.RBF(3.0), "temperature": 1.0, **TIGHT},
        ),
    )  # fmt: skip
    compiled: ClassVar[dict[str, str]] = {"cosine": "inductor", "poincare": "aot_eager"}
    modules = ((nearlinear.SupconLoss, nearlinear.supcon_loss, {"temperature": 0.3, "reduction": "none"}),)

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        draw = Draw()
        x, w, tile = (draw.normal(*shape).float().to(device) for shape in ((5, 3), (7, 3), (5, 7)))
        y, key_y, other = (draw.labels(3, n).to(device) for n in (5, 7, 7))
        share, limit = draw.positive(7).float().to(device) / 2, draw.normal(2, 5).float().to(device)
        scale, dot = [-2.0, 3.0], ("soft_cap", [2.0])
        samples: list[tuple[Any, tuple[Any, ...], tuple[int, ...]]] = [
            (ops.pair_tile_stats.default, (tile, y, key_y, other, share, limit, None, *dot, scale), ()),
            (ops.pair_tile_stats.default, (tile, y, key_y, None, None, None, 1, *dot, scale), ()),
            (ops.pair_tile_extremes.default, (tile, y, key_y, 0, *dot), ()),
            (ops.pair_extremes.default, (x, None, y, None, "cosine", [1.0], None), ()),
            (ops.pair_extremes.default, (x, w, y, key_y, "rbf", [1.0], None), ()),
        ]
        rows, columns = draw.normal(3, 2, 5).float().to(device), draw.normal(3, 2, 7).float().to(device)
        samples.append((ops.pair_tile_stats_backward_.default, (tile.clone(), y, key_y, None, None, rows, columns, 1, *dot, scale), ()))
        for tensors, logit_map, leaves in (
            ((x, None, y, None, None, None, limit), ("cosine", [1.0]), (0,)),
            ((x, w, y, key_y, other, share, None), dot, (0, 1)),
        ):
            arguments = (*tensors, *logit_map, scale, None)
            lse, total, _ = ops.pair_stats(*arguments)
            samples.append((ops.pair_stats.default, arguments, leaves))
            up = torch.ones_like(lse), torch.ones_like(total)
            backward = (*up, *tensors, lse, *logit_map, scale, None, [True, 1 in leaves])
            samples.append((ops.pair_stats_backward.default, backward, ()))
        return samples


class TestMultiSimilarity(PairBattery):
    function = staticmethod(nearlinear.multi_similarity_loss)
    definition = staticmethod(reference.multi_similarity_loss)
    cases = (
        Case("plain", batch(5, 9), "one tile"),
        Case("mined_tiles", batch(7, 5), "mining over several tiles", rows=70, options={"mining_margin": 0.1, **TIGHT}),
        Case("mined", batch(3, 3), "mining", rows=9, options={"mining_margin": 0.2, "beta": 5.0}, checked=True),
        Case("cut", batch(3, 3), "the value rule", rows=9, options={"exclude_above": 0.3, "mining_margin": 0.5, "beta": 5.0}, checked=True),
        Case("dot", batch(3, 3), "no normalisation", rows=7, options={"normalize": False, "beta": 3.0}, checked=True),
    )
    compiled: ClassVar[dict[str, str]] = {"mined": "aot_eager"}
    modules = ((nearlinear.MultiSimilarityLoss, nearlinear.multi_similarity_loss, {"mining_margin": 0.1, "beta": 40.0}),)


class TestBatchHardTriplet(PairBattery):
    function = staticmethod(nearlinear.batch_hard_triplet_loss)
    definition = staticmethod(reference.batch_hard_triplet_loss)
    cases = (
        Case("unit", batch(5, 9), "one tile", options={"margin": 0.5}),
        Case("tiles", batch(7, 5), "several tiles", rows=70, options={"margin": 0.5, **TIGHT}),
        Case("euclidean", batch(3, 3), "no normalisation", rows=9, options={"normalize": False, "margin": 1.0}, checked=True),
        Case("small", batch(3, 3), "gradcheck", rows=9, options={"margin": 1.0}, checked=True),
    )
    compiled: ClassVar[dict[str, str]] = {"small": "aot_eager"}
    modules = ((nearlinear.BatchHardTripletLoss, nearlinear.batch_hard_triplet_loss, {"margin": 0.3, "normalize": False}),)

    def saved_bytes(self, case: Case, rows: int) -> int:
        return super().saved_bytes(case, rows) + 8 * case.inputs(torch.float32)["input"].nbytes


class TestProxyAnchor(PairBattery):
    function = staticmethod(nearlinear.proxy_anchor_loss)
    definition = staticmethod(reference.proxy_anchor_loss)
    cases = tuple(
        Case(
            name, batch(classes, features, other="proxies"), reason, rows=rows, native=("input", "proxies"),
            differentiable=("input", "proxies"), options=options, checked=checked,
        )
        for name, classes, features, reason, rows, options, checked in (
            ("proxies", 7, 9, "one tile", 33, {}, False),
            ("tiles", 40, 5, "several tiles; classes that the batch lacks", 31, TIGHT, False),
            ("small", 5, 3, "gradcheck; classes that the batch lacks", 4, {"alpha": 4.0}, True),
        )
    )  # fmt: skip
    compiled: ClassVar[dict[str, str]] = {"small": "aot_eager"}
    modules = ((nearlinear.ProxyAnchorLoss, nearlinear.proxy_anchor_loss, {"alpha": 16.0, "delta": 0.2}),)

    def saved_bytes(self, case: Case, rows: int) -> int:
        return 512 * rows + 1024


class TestPairLoss(PairBattery):
    function = staticmethod(nearlinear.pair_loss)
    definition = staticmethod(reference.pair_loss)
    cases = tuple(
        Case(f"{name}{suffix}", batch(classes, 4), "a record of the table", rows=rows, options={"form": form, **more}, checked=checked)
        for name, form in {
            "contrastive": pair_forms.Contrastive(0.2), "multi_similarity": pair_forms.MultiSimilarity(2.0, 6.0),
            "proxy_anchor": pair_forms.ProxyAnchor(4.0), "proxy_nca": "proxy_nca",
        }.items()
        for suffix, classes, rows, more, checked in (("", 3, 9, {}, True), ("_tiles", 7, 70, TIGHT, False))
    )  # fmt: skip
    compiled: ClassVar[dict[str, str]] = {"contrastive": "aot_eager"}
    modules = ((nearlinear.PairLoss, nearlinear.pair_loss, {"form": "proxy_nca"}),)


class TestMixtures(PairBattery):
    function = staticmethod(mixed(nearlinear.pair_loss))
    definition = staticmethod(mixed(reference.pair_loss))
    cases = tuple(
        Case(
            f"{name}{suffix}", mixtures(3, 4), "soft labels", rows=rows, options={"form": form, **more}, checked=checked,
            native=("input", "key"), differentiable=("input", "key"),
        )
        for name, form in {"contrastive": pair_forms.Contrastive(0.2), "multi_similarity": pair_forms.MultiSimilarity(2.0, 6.0)}.items()
        for suffix, rows, more, checked in (("", 7, {}, True), ("_tiles", 70, TIGHT, False))
    )  # fmt: skip
    compiled: ClassVar[dict[str, str]] = {"multi_similarity": "aot_eager"}


class TestProtoTriplet(PairBattery):
    function = staticmethod(lambda **inputs: nearlinear.proto_triplet_loss(query=inputs.pop("input"), **inputs))
    definition = staticmethod(lambda **inputs: reference.proto_triplet_loss(query=inputs.pop("input"), **inputs))
    cases = tuple(
        Case(
            name, batch(classes, 4, other="prototypes"), "distances to prototypes", rows=rows, native=("input", "prototypes"),
            differentiable=("input", "prototypes"), options=options, checked=checked,
        )
        for name, classes, rows, options, checked in (("small", 4, 9, {}, True), ("tiles", 70, 75, {"margin": 2.0, **TIGHT}, False))
    )  # fmt: skip
    compiled: ClassVar[dict[str, str]] = {"small": "aot_eager"}

    def saved_bytes(self, case: Case, rows: int) -> int:
        return super().saved_bytes(case, rows) + 8 * case.inputs(torch.float32)["input"].nbytes
