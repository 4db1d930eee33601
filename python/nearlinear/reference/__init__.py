"""Eager definitions of every op and loss: oracle in float64, baseline in native dtype."""

from . import cross_entropy, linear_cross_entropy, pair_loss

__all__ = ["cross_entropy", "linear_cross_entropy", "pair_loss"]
