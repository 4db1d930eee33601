"""Planted bugs of the moments and values in bins: (file, old text, new text, tests that must fail)."""

INTERPRETED = "tests/triton_bins.py"

PYTHON: list[tuple[str, str, str, str]] = []  # no lines of their own
CPP: list[tuple[str, str, str, str]] = []

LAUNCHER = "triton_kernels/pair_bins.py"
TRITON = [
    (LAUNCHER, "min(62 - count.bit_length(), 40", "min(63, 40", INTERPRETED),
    (LAUNCHER, "tl.where(label == 0, 0, bits)", "bits", INTERPRETED),
    (LAUNCHER, 'inside &= m & (tl.abs(c) < float("inf"))', "inside &= m", INTERPRETED),
    (LAUNCHER, "term = tl.where(k >= n, following, term)", "term = following", INTERPRETED),
    (LAUNCHER, "(term - quanta) * unit", "(term - quanta) * 0", INTERPRETED),
    (LAUNCHER, "m &= c != 0", "m &= c == c", INTERPRETED),
]
