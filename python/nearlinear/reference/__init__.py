"""Eager definitions of every op and loss: oracle in float64, baseline in native dtype."""

from . import cross_entropy, distance

__all__ = ["cross_entropy", "distance"]
