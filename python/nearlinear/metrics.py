"""Metrics of a stream of batches, on one process or on several: the samples are kept, so that the result is exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._checks import require
from .roc_auc import roc_auc_score
from .roc_auc_checks import check_options, check_samples

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["RocAUC"]

_NAME = "RocAUC"


class RocAUC:
    """:func:`roc_auc_score` of everything that :meth:`update` was given, by all ranks of ``process_group`` together.

    Args:
        num_groups, max_fpr, multi_class, average, return_valid: as for :func:`roc_auc_score`.
        process_group: its ranks call :meth:`compute` together, and each gets the result over the samples of all. A rank may have none.

    It keeps copies of the scores and of the labels (a byte each), and of weights and groups where they are given, until :meth:`reset`.
    Ranks exchange them through host memory. How the samples are spread over batches and ranks does not change the result (with weights:
    but for rounding).

    Example:
        >>> import torch, nearlinear
        >>> metric = nearlinear.RocAUC()
        >>> for scores, labels in (([0.1, 0.4], [0, 0]), ([0.4, 0.8], [1, 1])):
        ...     metric.update(torch.tensor(scores), torch.tensor(labels))
        >>> metric.compute()
        tensor(0.8750, dtype=torch.float64)
    """

    def __init__(
        self,
        *,
        num_groups: int | None = None,
        max_fpr: float | None = None,
        multi_class: str | None = None,
        average: str | None = "macro",
        return_valid: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        check_options(_NAME, num_groups, max_fpr, multi_class, average)
        self.options: dict[str, Any] = {
            "num_groups": num_groups, "max_fpr": max_fpr, "multi_class": multi_class, "average": average, "return_valid": return_valid,
        }  # fmt: skip
        self.process_group = process_group
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self._batches: list[dict[str, Tensor]] = []

    def update(self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None, group: Tensor | None = None) -> None:
        """Add a batch. Weights, and groups, come with every batch or with none."""
        options = self.options
        labels, known = check_samples(_NAME, input, target, sample_weight, group, options["num_groups"], options["multi_class"])
        scores = input if known is None else input.masked_fill(~known, torch.nan)
        given = {"input": scores, "target": labels, "sample_weight": sample_weight, "group": group}
        batch = {name: value.detach().clone() for name, value in given.items() if value is not None}
        _check_names(self._batches[:1], batch)
        self._batches.append(batch)

    def merge(self, other: RocAUC) -> None:
        """Add the samples of another metric."""
        for batch in other._batches:
            _check_names(self._batches[:1], batch)
            self._batches.append(batch)

    def compute(self) -> Tensor | tuple[Tensor, Tensor]:
        """The value over all samples so far; NaN where there are none."""
        batches = self._batches
        device = batches[0]["input"].device if batches else torch.device("cpu")
        if self.process_group is not None:
            batches = self._gathered()
        if not batches:
            batches = [self._nothing()]
        samples: dict[str, Any] = {name: torch.cat([batch[name].to(device) for batch in batches]) for name in batches[0]}
        return roc_auc_score(**samples, **self.options)

    def _gathered(self) -> list[dict[str, Tensor]]:
        """The batches of all ranks, in rank order."""
        own = [{name: value.cpu() for name, value in batch.items()} for batch in self._batches]
        ranks: list[Any] = [None] * dist.get_world_size(self.process_group)
        dist.all_gather_object(ranks, own, group=self.process_group)
        return [batch for rank in ranks for batch in rank]

    def _nothing(self) -> dict[str, Tensor]:
        if self.options["multi_class"] is not None:
            return {"input": torch.zeros(0, 0), "target": torch.zeros(0, dtype=torch.int64)}
        empty = {"input": torch.zeros(0), "target": torch.zeros(0, dtype=torch.bool)}
        return empty if self.options["num_groups"] is None else {**empty, "group": torch.zeros(0, dtype=torch.int64)}


def _check_names(before: list[dict[str, Tensor]], batch: dict[str, Tensor]) -> None:
    for first in before:
        same = first.keys() == batch.keys()
        require(same, ValueError, _NAME, f"a batch must hold what the first held, {list(first)}, got {list(batch)}")
