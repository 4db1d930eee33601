"""The Betti matching loss through the battery, its ops through opcheck, and what torch.compile and autograd make of them."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import nearlinear
import pytest
import torch
from battery import Battery
from betti_data import definition, groups
from measure import Case, Draw, Inputs, evaluate, same, subsets
from torch import Tensor, nn

ops = torch.ops.nearlinear
BOTH = ("input", "target")
OPTIONS = {
    "filtration": "both", "pad_value": 0.3125, "push_unmatched_to": "opposite", "matched_weight": 0.5, "unmatched_input_weight": 2.0,
    "dim_weight": (0.75, 1.5), "min_persistence": 0.1, "essential": True, "image_intervals": "positive",
}  # fmt: skip


def distinct(*shape: int, channels: int = 1, mask: bool = False) -> Callable[[Draw, int], Inputs]:
    """All values of a pair of images are distinct, by more than gradcheck moves them, in every dtype."""

    def make(draw: Draw, rows: int) -> Inputs:
        count = 2 * torch.Size(shape).numel()
        values = torch.stack([torch.randperm(count, generator=draw.generator) for _ in range(rows * channels)])
        pair = (values.view(rows, channels, 2, *shape).double() + 0.5) / 128
        f, g = pair.unbind(2)
        return {"input": f, "target": g > 0.25} if mask else {"input": f, "target": g}

    return make


CASES = (
    Case("pictures", distinct(5, 6), "both dimensions of a picture", rows=3, native=BOTH, differentiable=BOTH, checked=True),
    Case("options", distinct(5, 4), "every option at once", rows=3, native=BOTH, differentiable=BOTH, checked=True, options=OPTIONS),
    Case(
        "volumes", distinct(3, 3, 4), "three dimensions, the middle one by reduction", rows=2, native=BOTH, differentiable=BOTH,
        options={"filtration": "sublevel"}, checked=True,
    ),
    Case("signals", distinct(16, channels=2, mask=True), "one dimension, against a mask; channels", rows=7),
    Case(
        "one_dimension", distinct(4, 5), "a dimension that is left out, bars of the target too", rows=3,
        options={"dim_weight": (0.0, 2.0), "include_unmatched_target": False},
    ),
)  # fmt: skip


class TestBettiMatchingLoss(Battery):
    function = staticmethod(nearlinear.betti_matching_loss)
    definition = staticmethod(definition)
    cases = CASES
    few_terms = True
    compiled: ClassVar[dict[str, str]] = {"pictures": "inductor", "options": "aot_eager", "signals": "aot_eager"}
    modules = ((nearlinear.BettiMatchingLoss, nearlinear.betti_matching_loss, {"filtration": "both", "dim_weight": (1.0, 2.0)}),)

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        x, y = (distinct(4, 5)(Draw(seed), 2)["input"][:, 0].float().to(device) for seed in (0, 1))
        return [
            (ops.betti_matching.default, (x, y, [0, 1], True, False), ()),
            (ops.betti_matching.default, (x > 0.2, y > 0.2, [1], False, True), ()),
            (ops.persistence_barcode.default, (x, [0, 1], True), ()),
            (ops.betti_matching_loss.default, (x, y, [1.0] * 6, True, False, 0.0, False, True, True, True), (0, 1)),
            (ops.betti_matching_loss.default, (x, y, [1.0] * 6, True, False, 0.0, False, True, True, False), (0,)),
        ]

    def saved_bytes(self, case: Case, rows: int) -> int:
        """The gradient images, of each filtration, and framed copies of the images."""
        pixels = case.inputs(torch.float32)["input"][0, 0].numel()
        return super().saved_bytes(case, rows) + 4 * rows * pixels * (12 if "pad_value" in case.options else len(case.differentiable))

    def test_second_derivatives(self, case: Case, device: torch.device) -> None:
        """Refused, in a gradient penalty too, where they would be silently absent."""
        inputs = case.inputs(torch.float64, device)
        for wrt in subsets(case.differentiable):
            leaves = {n: t.clone().requires_grad_(n in wrt) if t.is_floating_point() else t for n, t in inputs.items()}
            loss = self.function(**leaves, **case.options)
            first = torch.autograd.grad(loss, [leaves[n] for n in wrt], create_graph=True)
            for leaf in wrt:
                with pytest.raises(NotImplementedError, match="betti_matching_loss: double backward is not implemented"):
                    (loss + sum(d.square().sum() for d in first)).backward(inputs=[leaves[leaf]], retain_graph=True)

    test_second_derivatives.cases = "checked"


def test_eager_route_has_all_derivatives() -> None:
    """The recipe of the documentation: pixels from betti_matching, values gathered and squared."""
    inputs = distinct(5, 6)(Draw(), 2)

    def recipe(input: Tensor, target: Tensor) -> Tensor:
        found = nearlinear.betti_matching(input, target, spatial_dims=2)
        p, t = input.reshape(found.num_images, -1), target.reshape(found.num_images, -1)
        image = found.matched_image[:, None]
        matched = p[image, found.matched[:, :2]] - t[image, found.matched[:, 2:]]
        mine = p[found.unmatched_input_image[:, None], found.unmatched_input].diff()
        other = t[found.unmatched_target_image[:, None], found.unmatched_target].diff()
        return 2 * matched.square().sum() + mine.square().sum() + other.square().sum()

    value, gradients = evaluate(recipe, inputs, {}, BOTH)
    torch.testing.assert_close((value, gradients), evaluate(nearlinear.betti_matching_loss, inputs, {"reduction": "sum"}, BOTH))
    assert torch.autograd.gradgradcheck(recipe, [x.requires_grad_() for x in inputs.values()])


def test_wants_follow_the_gradients() -> None:
    x, y = (distinct(4, 5)(Draw(seed), 2)["input"][:, 0].requires_grad_() for seed in (0, 1))
    options = ([1.0] * 6, True, False, 0.0, False, False)
    for wants in ((True, False), (False, True), (False, False), (True, True)):
        loss, *stash = ops.betti_matching_loss(x, y, *options, *wants)
        assert [d.numel() > 0 for d in stash] == list(wants)
        if not all(wants):
            with pytest.raises(RuntimeError, match="must be True where"):
                loss.sum().backward()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.loss = nn.Conv2d(1, 2, 3, padding=1), nearlinear.BettiMatchingLoss(sigmoid=True, filtration="both", sphere=True)

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        return self.loss(self.conv(images), masks)


def test_compiled_training_step() -> None:
    """One graph, forward and backward; the mean of batches of any size."""
    torch.manual_seed(1)
    net = Net()
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for n in (3, 2, 5):
        images, masks = torch.randn(n, 1, 6, 7), torch.rand(n, 2, 6, 7) > 0.5
        losses = [model(images, masks) for model in (compiled, twin)]
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close([p.grad for p in net.parameters()], [p.grad for p in twin.parameters()])


def test_compiled_pairs() -> None:
    """The number of rows is known at run time only."""
    x, y = distinct(4, 5)(Draw(), 3).values()

    def total(x: Tensor, y: Tensor) -> Tensor:
        found = nearlinear.betti_matching(x, y, spatial_dims=2)
        bars = nearlinear.persistence_barcode(x, spatial_dims=2)
        values = x.reshape(found.num_images, -1)[found.matched_image[:, None], found.matched[:, :2]]
        return values.square().sum() + bars.image.sum() + found.unmatched_target_dim.sum()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, y), total(x, y))


def test_batch_places_and_neighbours() -> None:
    """An image has the same pairs, loss and gradient wherever it stands in a batch."""
    x, y = (torch.rand(6, 2, 9, 8) for _ in range(2))
    whole = evaluate(nearlinear.betti_matching_loss, {"input": x, "target": y}, {"reduction": "none"}, ("input",), torch.ones(6, 2))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = {"input": x[order], "target": y[order]}
    got = evaluate(nearlinear.betti_matching_loss, moved, {"reduction": "none"}, ("input",), torch.ones(6, 2))
    same(got, (whole[0][order], [whole[1][0][order]]), "permuted batch")
    alone = {"input": x[2:3, 1:], "target": y[2:3, 1:]}
    got = evaluate(nearlinear.betti_matching_loss, alone, {"reduction": "none"}, ("input",), torch.ones(1, 1))
    same(got, (whole[0][2:3, 1:], [whole[1][0][2:3, 1:]]), "alone")


def test_rows_and_their_places() -> None:
    x, y = (torch.rand(2, 3, 6, 5) for _ in range(2))
    found = nearlinear.betti_matching(x, y, spatial_dims=2)
    *tables, offsets = ops.betti_matching(x.flatten(0, 1), y.flatten(0, 1), [0, 1], True, False)
    assert found.num_images == 6
    for i, name in enumerate(("matched", "unmatched_input", "unmatched_target")):
        rows, dim, image = (getattr(found, name + suffix) for suffix in ("", "_dim", "_image"))
        same(rows, tables[i], name)
        assert offsets[:, i].diff().tolist() == [int(((image == k) & (dim == d)).sum()) for k in range(6) for d in range(2)]
        assert (image * 2 + dim).diff().ge(0).all()
    bars = nearlinear.persistence_barcode(x, spatial_dims=2, essential=True)
    mine = groups([torch.cat([found.matched[:, :2], found.unmatched_input])], torch.tensor([0, len(bars.pairs)]))
    assert mine == groups([bars.pairs], torch.tensor([0, len(bars.pairs)]))
    assert bars.essential.tolist() == x.reshape(6, -1).argmax(1).tolist()
    only = nearlinear.betti_matching(x, y, spatial_dims=2, dims=(1,))
    same(only.matched, found.matched[found.matched_dim == 1], "dims")
    assert (only.matched_dim == 1).all()


def test_modules_of_numbers_and_repr() -> None:
    module = nearlinear.BettiMatchingLoss(sigmoid=True, min_persistence=0.25)
    assert "min_persistence=0.25" in repr(module)
    assert pickle.loads(pickle.dumps(module)).options == module.options


def test_read_only_arrays_are_accepted() -> None:
    import numpy as np

    array = np.random.default_rng(0).random((1, 1, 6, 6), dtype=np.float32)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, about the array
        image = torch.from_numpy(array)
    assert nearlinear.betti_matching_loss(image, image) == 0
    assert len(nearlinear.betti_matching(image, image, spatial_dims=2).unmatched_input) == 0
