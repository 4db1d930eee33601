"""One job of a run: a case at one dtype and one size, all implementations side by side. Returns the rows of the result file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from . import measure, roofline
from .registry import Baseline, Case, Sizes

__all__ = ["Effort", "Job"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """Least and greatest number of timed rounds, and the seconds after which no further round starts."""

    seconds: float
    rounds: tuple[int, int]


@dataclass
class Impl:
    """One contender; ``status`` leaves ``ok`` when it cannot run, and then ``reason`` says why."""

    name: str
    run: Callable[..., Tensor]
    overwrites_input: bool = False
    status: str = "ok"
    reason: str = ""
    compiles: bool = False


@dataclass(frozen=True)
class Job:
    case: Case
    dtype: torch.dtype
    sizes: Sizes
    device: torch.device

    @property
    def label(self) -> str:
        return f"{self.case.op} {self.case.name} {str(self.dtype).removeprefix('torch.')} {tuple(self.sizes.values())}"

    def row(self, name: str, which: str, **facts: Any) -> Row:
        """A row of the result file with every key; what was not measured is None."""
        empty = dict.fromkeys(
            [
                "ms",
                "cpu_ms",
                "repeats",
                "bytes",
                "bytes_moved",
                "flops",
                "gbs",
                "tflops",
                "pct_roof",
                "peak_mb",
                "host_us",
                "compile_s",
                "error",
            ]
        )
        head = {"family": self.case.family, "op": self.case.op, "case": self.case.name, "dtype": str(self.dtype).removeprefix("torch.")}
        return {**head, "sizes": dict(self.sizes), "impl": name, "pass": which, **empty, "status": "ok", "reason": "", **facts}

    def skipped(self, names: Iterable[str], status: str, reason: str) -> list[Row]:
        return [self.row(name, which, status=status, reason=reason) for name in names for which in self.case.passes]

    def measure(self, wanted: Iterable[str], effort: Effort, gemm: Callable[[torch.dtype], float]) -> list[Row]:
        """Rows of ours and the wanted baselines, both passes, and of the floors."""
        torch._dynamo.reset()  # every job compiles for its own static shapes
        torch.manual_seed(0)
        impls = [self._impl(name) for name in ("ours", *wanted)]
        errors = {impl.name: self._guard(impl, partial(self._error, impl)) for impl in impls}
        inputs = self.case.inputs(self.sizes, self.dtype, self.device)
        calls, prepare = self._calls(impls, inputs)
        runners = [(impl, which) for impl in impls for which in self.case.passes]
        compile_s = {(impl.name, which): self._warm_up(impl, calls[impl.name, which]) for impl, which in runners}
        peaks = {
            (impl.name, which): self._guard(impl, partial(measure.peak_mb, calls[impl.name, which], self.device)) for impl, which in runners
        }
        facts = self._timings(impls, calls, prepare, effort, inputs, gemm)
        hosts = {(impl.name, which): self._host(impl, which) for impl, which in runners}
        rows = [self.row(name, "floor", **found) for (name, which), found in facts.items() if which == "floor"]
        for impl, which in runners:
            key = (impl.name, which)
            if impl.status != "ok":
                rows.append(self.row(*key, status=impl.status, reason=impl.reason))
                continue
            more = {"peak_mb": peaks[key], "host_us": hosts[key], "compile_s": compile_s[key], "error": errors[impl.name]}
            rows.append(self.row(*key, **facts[key], **more))
        return rows

    def _impl(self, name: str) -> Impl:
        if name == "ours":
            return Impl(name, self.case.ours)
        baseline: Baseline = self.case.baselines[name]
        refusal = baseline.refuse(self.device, self.dtype)
        if refusal:
            return Impl(name, baseline.run, status="unsupported", reason=refusal)
        run = torch.compile(baseline.run, fullgraph=True, dynamic=False) if baseline.compile else baseline.run
        return Impl(name, run, baseline.overwrites_input, compiles=baseline.compile)

    def _guard(self, impl: Impl, action: Callable[[], Any]) -> Any:
        """Result of ``action``, or None with the failure written on ``impl``: a rival that fails is a result, ours is an error."""
        if impl.status != "ok":
            return None
        try:
            return action()
        except torch.OutOfMemoryError as error:
            impl.status, impl.reason = "oom", str(error).splitlines()[0]
            torch.cuda.empty_cache()
        except Exception as error:
            if impl.name == "ours":
                raise
            no_memory = "alloc" in str(error) and "memory" in str(error)
            impl.status, impl.reason = "oom" if no_memory else "unsupported", f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return None

    def _error(self, impl: Impl) -> dict[str, float]:
        """Relative error of the loss, and of the gradient in the Euclidean norm, against the definition in float64 on fewer rows."""
        sizes = {key: min(value, self.case.error_rows.get(key, value)) for key, value in self.sizes.items()}
        torch.manual_seed(1)
        inputs = self.case.inputs(sizes, self.dtype, self.device)
        exact = tuple(_leaf(t.double(), t.requires_grad) if t.is_floating_point() else t for t in inputs)
        loss, gradients = _full(self.case.definition, exact)
        value, found = _full(impl.run, tuple(_leaf(t.clone(), t.requires_grad) if t.is_floating_point() else t for t in inputs))
        norms = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, gradients, strict=True)]
        return {"loss": abs(float(value.double() - loss)) / abs(float(loss)), "gradient": max(norms, default=None), **sizes}

    def _calls(
        self, impls: list[Impl], inputs: tuple[Tensor, ...]
    ) -> tuple[dict[tuple[str, str], measure.Call], dict[tuple[str, str], measure.Call]]:
        """The timed call per (implementation, pass), and what must run before it, untimed."""
        calls, prepare = {}, {}
        for impl in impls:
            own = inputs
            if impl.overwrites_input and impl.status == "ok":
                own = tuple(_leaf(t.clone(), t.requires_grad) for t in inputs)
                restore = partial(_restore, own, inputs)
                prepare.update({(impl.name, which): restore for which in self.case.passes})
            calls[impl.name, "fwd"] = partial(_forward, impl.run, own)
            calls[impl.name, "full"] = partial(_full, impl.run, own)
        return calls, prepare

    def _warm_up(self, impl: Impl, call: measure.Call) -> float | None:
        """Compilation and caches, before anything is timed; seconds that the first call took beyond the second, if it compiles."""
        start = time.perf_counter()
        self._guard(impl, call)
        middle = time.perf_counter()
        self._guard(impl, call)
        return max(0.0, 2 * middle - start - time.perf_counter()) if impl.compiles else None

    def _timings(
        self,
        impls: list[Impl],
        calls: Mapping[tuple[str, str], measure.Call],
        prepare: Mapping[tuple[str, str], measure.Call],
        effort: Effort,
        inputs: tuple[Tensor, ...],
        gemm: Callable[[torch.dtype], float],
    ) -> dict[tuple[str, str], Row]:
        floors = roofline.floors(max(t.nbytes for t in inputs), self.device)
        products = self._products(inputs, gemm)
        yardsticks = {name: partial(run, *(t.detach() for t in inputs)) for name, run in self.case.yardsticks.items()}
        facts: dict[tuple[str, str], Row] = {}
        for which in self.case.passes:
            alive = {(i.name, which): calls[i.name, which] for i in impls if i.status == "ok"}
            limits = {name: call for name, (call, _) in floors.items()} | {f"products {p}": c for p, c in products.items() if p == which}
            limits |= yardsticks
            for call in limits.values():
                call()
            together = {**alive, **{(name, "floor"): call for name, call in limits.items()}}
            laps = measure.interleave(together, self.device, seconds=effort.seconds, rounds=effort.rounds, prepare=prepare)
            found = {key: _summary(values) for key, values in laps.items()}
            for name, (_, moved) in floors.items():
                found[name, "floor"].update(bytes=moved, gbs=_gbs(moved, found[name, "floor"]))
            # the strictest limit at hand: the fastest of the floors whose traffic is of the pass's kind
            peak = max(found[name, "floor"]["gbs"] for name in (("read", "copy_warm") if which == "fwd" else ("copy_warm", "copy_fresh")))
            flops = self.case.flops(self.sizes)[which]
            if which in products:
                alone = found[f"products {which}", "floor"]
                alone.update(flops=flops, tflops=flops / (alone["ms"]["p50"] * 1e9))
            tflops = alone["tflops"] if which in products else gemm(self._fastest(gemm)) if flops else 0.0
            for key in alive:
                found[key].update(self._rates(which, found[key], peak, tflops))
            facts.update(found)
        return facts

    def _products(self, inputs: tuple[Tensor, ...], gemm: Callable[[torch.dtype], float]) -> Mapping[str, Callable[[], object]]:
        """The case's matrix products alone."""
        if self.case.products is None:
            return {}
        fastest = self._fastest(gemm)
        return self.case.products(tuple(t.to(fastest) if t.is_floating_point() else t for t in inputs))

    def _fastest(self, gemm: Callable[[torch.dtype], float]) -> torch.dtype:
        """The dtype in which products of the case's inputs are fastest: a CPU may have no 16-bit products."""
        return max((self.dtype, torch.float32), key=gemm)

    def _rates(self, which: str, found: Row, peak_gbs: float, gemm_tflops: float) -> Row:
        bytes_, moved = (count(self.sizes, self.dtype.itemsize)[which] for count in (self.case.bytes, self.case.moved))
        flops = self.case.flops(self.sizes)[which]
        ms = found["ms"]["p50"]
        limit_ms = max(bytes_ / (peak_gbs * 1e6), flops / (gemm_tflops * 1e9) if flops else 0.0)
        return {
            "bytes": bytes_, "bytes_moved": moved, "flops": flops, "gbs": bytes_ / (ms * 1e6),
            "tflops": flops / (ms * 1e9) if flops else None, "pct_roof": 100 * limit_ms / ms,
        }  # fmt: skip

    def _host(self, impl: Impl, which: str) -> float | None:
        """Host time of a call so small that nothing else is left; not for a compiled rival, which would compile once more for it."""
        if impl.compiles and self.sizes != self.case.tiny:
            return None
        inputs = self.case.inputs(self.case.tiny, self.dtype, self.device)
        call = partial(_forward if which == "fwd" else _full, impl.run, inputs)

        def action() -> float:
            call()
            return measure.host_us(call, self.device)

        return self._guard(impl, action)


def _leaf(tensor: Tensor, requires_grad: bool) -> Tensor:
    return tensor.detach().requires_grad_(requires_grad)


def _restore(private: tuple[Tensor, ...], originals: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        for mine, original in zip(private, originals, strict=True):
            mine.copy_(original)


def _forward(run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return run(*inputs)


def _full(run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    loss, wanted = run(*inputs), [t for t in inputs if t.requires_grad]
    return loss.detach(), torch.autograd.grad(loss, wanted) if wanted else ()


def _summary(laps: list[measure.Lap]) -> Row:
    cpu = [lap.cpu_ms for lap in laps if lap.cpu_ms is not None]
    return {"ms": measure.quantiles([lap.wall_ms for lap in laps]), "cpu_ms": median(cpu) if cpu else None, "repeats": len(laps)}


def _gbs(moved: int, found: Row) -> float:
    return moved / (found["ms"]["p50"] * 1e6)
