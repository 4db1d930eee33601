"""Betti matching of shapes that are hard for its sweeps: exact identities at any size, and time that does not grow with the shape."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from nearlinear import ops  # noqa: F401  registers the ops

Pair = tuple[np.ndarray, np.ndarray]
SIDE = 96


def noise(seed: int, shape: tuple[int, ...] = (SIDE, SIDE)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def spiral(side: int) -> np.ndarray:
    """A corridor one pixel wide that ascends from the corner to the middle, between walls of the largest value."""
    image = np.full((side, side), 2.0 * side * side, np.float32)
    x, y, dx, dy, value = 0, 0, 0, 1, 0.0

    def open_cell(a: int, b: int) -> bool:
        return 0 <= a < side and 0 <= b < side and bool(image[a, b] == 2.0 * side * side)

    while True:
        image[x, y] = value
        value += 1
        for _ in range(2):
            ahead, beyond = (x + dx, y + dy), (x + 2 * dx, y + 2 * dy)
            inside = 0 <= beyond[0] < side and 0 <= beyond[1] < side
            if open_cell(*ahead) and (not inside or image[beyond] == 2.0 * side * side):
                break
            dx, dy = dy, -dx
        else:
            return image
        x, y = ahead


def comb(side: int) -> np.ndarray:
    """Teeth that one row joins: long chains of hooks, and a root for each tooth."""
    image = np.tile((np.arange(side) % 2).astype(np.float32), (side, 1)) + 0.01 * noise(1, (side, side))
    image[0] = 0
    return image


def shapes(side: int) -> dict[str, Pair]:
    i, j = np.indices((side, side))
    n = side * side
    return {
        "noise": (noise(2, (side, side)), noise(3, (side, side))),
        "comb": (comb(side), noise(3, (side, side))),
        "comb as target": (noise(2, (side, side)), comb(side)),
        "spiral": (spiral(side), noise(3, (side, side))),
        "two spirals": (spiral(side), np.ascontiguousarray(spiral(side)[::-1])),
        "constant input": (np.zeros((side, side), np.float32), noise(3, (side, side))),
        "late arcs everywhere": (1 + noise(2, (side, side)), noise(3, (side, side))),
        "ramps": ((i + j).astype(np.float32), -(i + j).astype(np.float32)),
        "checkerboards": (((i + j) % 2).astype(np.float32), ((i + j) % 3).astype(np.float32)),
        "two levels": (np.float32(noise(2, (side, side)) > 0.5), np.float32(noise(3, (side, side)) > 0.5)),
        "one row": (noise(2, (1, n)), noise(3, (1, n))),
        "one column": (noise(2, (n, 1)), noise(3, (n, 1))),
        "two rows": (noise(2, (2, n // 2)), noise(3, (2, n // 2))),
        "two columns": (noise(2, (n // 2, 2)), noise(3, (n // 2, 2))),
        "one pixel": (np.ones((1, 1), np.float32), np.ones((1, 1), np.float32)),
    }


def matching(pair: Pair, dims: list[int], positive: bool = False) -> tuple[torch.Tensor, ...]:
    f, g = (torch.from_numpy(x)[None] for x in pair)
    return tuple(torch.ops.nearlinear.betti_matching(f, g, dims, False, positive))


def euler_characteristic(image: np.ndarray, level: float) -> int:
    """Of the pixels at most `level`, the edges between them and the full squares."""
    v = image <= level
    edges = (v[1:] & v[:-1]).sum() + (v[:, 1:] & v[:, :-1]).sum()
    return int(v.sum() - edges + (v[1:, 1:] & v[1:, :-1] & v[:-1, 1:] & v[:-1, :-1]).sum())


def alive(image: np.ndarray, bars: np.ndarray, level: float) -> int:
    value = image.reshape(-1)[bars]
    return int(((value[:, 0] <= level) & (value[:, 1] > level)).sum())


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("name", shapes(8))
def test_bars_have_the_euler_characteristic_of_every_level(name: str, positive: bool) -> None:
    """Components less holes: a bar too many or too few in either image, matched or not, is seen at its level."""
    pair = shapes(SIDE)[name]
    matched, only_input, only_target, offsets = (t.numpy() for t in matching(pair, [0, 1], positive))
    for image, columns, alone, k in ((pair[0], slice(0, 2), only_input, 1), (pair[1], slice(2, 4), only_target, 2)):
        bars = [
            np.concatenate([matched[offsets[d, 0] : offsets[d + 1, 0], columns], alone[offsets[d, k] : offsets[d + 1, k]]])
            for d in range(2)
        ]
        for level in np.quantile(image, [0, 0.03, 0.2, 0.5, 0.8, 0.97, 1], method="nearest"):
            components, holes = (alive(image, b, level) for b in bars)
            assert 1 + components - holes == euler_characteristic(image, level)
        for b in bars:
            assert len(np.unique(b, axis=0)) == len(b)


@pytest.mark.parametrize("name", shapes(8))
def test_a_dimension_alone_gives_its_part(name: str) -> None:
    """Dimension 0 alone sweeps all critical edges, with dimension 1 only those that it leaves."""
    pair = shapes(SIDE)[name]
    *tables, offsets = matching(pair, [0, 1])
    for d in range(2):
        *alone, ends = matching(pair, [d])
        for k, (table, part) in enumerate(zip(tables, alone, strict=True)):
            assert torch.equal(part, table[offsets[d, k] : offsets[d + 1, k]])
            assert ends[-1, k] == len(part)


@pytest.mark.parametrize("name", ["noise", "comb", "two rows", "two levels"])
def test_an_image_matches_itself(name: str) -> None:
    image = shapes(SIDE)[name][0]
    for positive in (False, True):
        matched, only_input, only_target, _ = matching((image, image), [0, 1], positive)
        assert len(matched) > 0
        assert len(only_input) == len(only_target) == 0
        assert torch.equal(matched[:, :2], matched[:, 2:])


def test_memory_of_one_image_does_not_reach_the_next() -> None:
    """Images of very different numbers of basins share a worker's buffers."""
    many = [shapes(SIDE)[k] for k in ("noise", "constant input", "spiral", "two levels", "checkerboards", "comb")]
    f, g = (torch.from_numpy(np.stack(side)) for side in zip(*many, strict=True))
    *tables, offsets = torch.ops.nearlinear.betti_matching(f, g, [0, 1], False, False)
    for i, pair in enumerate(many):
        for k, part in enumerate(matching(pair, [0, 1])[:3]):
            assert torch.equal(part, tables[k][offsets[2 * i, k] : offsets[2 * i + 2, k]])


def seconds(run: Callable[[], object]) -> float:
    def once() -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    return min(once() for _ in range(5))


@pytest.mark.parametrize("name", sorted(set(shapes(8)) - {"one pixel"}))
def test_no_shape_takes_much_longer_than_noise(name: str) -> None:
    """A climb along every arc, or hooks followed without shortening them, would be quadratic here: hundreds of times as long."""
    pairs = shapes(256)
    assert seconds(lambda: matching(pairs[name], [0, 1])) < 4 * seconds(lambda: matching(pairs["noise"], [0, 1]))


def test_a_long_signal() -> None:
    f, g = (torch.from_numpy(noise(s, (1, 1_000_000))) for s in (4, 5))
    row = torch.ops.nearlinear.betti_matching(f, g, [0], False, False)
    column = torch.ops.nearlinear.betti_matching(f[..., None], g[..., None], [0], False, False)
    assert all(torch.equal(a, b) for a, b in zip(row[:3], column[:3], strict=True))
    minima = ((f[0, 1:-1] < f[0, 2:]) & (f[0, 1:-1] < f[0, :-2])).sum() + (f[0, 0] < f[0, 1]) + (f[0, -1] < f[0, -2])
    assert len(row[0]) + len(row[1]) == int(minima) - 1  # ties aside, every minimum but the smallest is born
