"""What Betti matching and barcodes return: flat tensors of pixels, image after image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["BettiMatching", "PersistenceBarcode"]


@dataclass(frozen=True, eq=False)
class BettiMatching:
    """Matched and unmatched bars of N pairs of images; a bar is given by the flat indices, inside its image, of the pixels that it is born
    and dies at.

    Attributes:
        matched: int64 (M, 4): input birth, input death, target birth, target death.
        matched_dim, matched_image: int64 (M,): homology dimension, and image, counted over the leading dims.
        unmatched_input, unmatched_target: int64 (U, 2) and (W, 2): birth, death.
        unmatched_input_dim, unmatched_input_image, unmatched_target_dim, unmatched_target_image: as for the matched ones.
        num_images: N, the product of the leading dims.

    Rows are in order of images, then dimensions. Values, for any differentiable function of them, are a gather:
    ``input.reshape(num_images, -1)[matched_image[:, None], matched[:, :2]]``.
    """

    matched: Tensor
    matched_dim: Tensor
    matched_image: Tensor
    unmatched_input: Tensor
    unmatched_input_dim: Tensor
    unmatched_input_image: Tensor
    unmatched_target: Tensor
    unmatched_target_dim: Tensor
    unmatched_target_image: Tensor
    num_images: int


@dataclass(frozen=True, eq=False)
class PersistenceBarcode:
    """Bars of N images.

    Attributes:
        pairs: int64 (P, 2): flat indices, inside the image, of the pixels that a bar is born and dies at.
        dim, image: int64 (P,): homology dimension, and image, counted over the leading dims.
        essential: int64 (N,): the pixel at which the bar of dimension 0 is born that never dies; empty unless asked for.
        num_images: N, the product of the leading dims.
    """

    pairs: Tensor
    dim: Tensor
    image: Tensor
    essential: Tensor
    num_images: int
