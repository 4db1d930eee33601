"""The generic tests. A family supplies a function, its definition, cases and op samples, and inherits every test of Battery."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from layouts import LAYOUTS
from measure import (
    DTYPES,
    Case,
    Inputs,
    by_backward,
    default_dtype,
    evaluate,
    poisoned_memory,
    random_like,
    same,
    subsets,
    threads,
    to,
    unbiased,
    within_budget,
)  # fmt: skip
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint


class Battery:
    """Inherit, name the class ``Test...``, and fill in the class variables."""

    function: ClassVar[Callable[..., Tensor]]
    definition: ClassVar[Callable[..., Tensor]]
    cases: ClassVar[tuple[Case, ...]]
    rowwise: ClassVar[Mapping[str, Any]] = {"reduction": "none"}  # options that give the finest output
    reductions: ClassVar[Sequence[str]] = ("mean", "sum")
    casts_under_autocast: ClassVar[bool] = False
    bits_of_threads: ClassVar[bool] = True  # the same for any number; not where a matrix product is torch's
    few_terms: ClassVar[bool] = False  # some gradient has a dozen elements
    common_roundings: ClassVar[int] = 1  # of numbers that are factors of every row's gradient
    compiled: ClassVar[Mapping[str, str]]  # name of case -> backend of torch.compile
    modules: ClassVar[Sequence[tuple[Callable[..., torch.nn.Module], Callable[..., Tensor], Mapping[str, Any]]]] = ()

    @classmethod
    def op_samples(cls, device: torch.device) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
        """(op, arguments, positions that may require a gradient): at least one for every op; no positions for backward ops."""
        raise NotImplementedError

    @classmethod
    def same_path(cls, view: Tensor) -> bool:
        """Whether the kernel adds in the same order for this view as for its contiguous copy."""
        return True

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            named = getattr(metafunc.function, "cases", "all")
            chosen = {
                "all": cls.cases,
                "checked": [c for c in cls.cases if c.checked],
                "compiled": [c for c in cls.cases if c.name in cls.compiled],
            }[named]
            metafunc.parametrize("case", chosen, ids=str)

    def options(self, case: Case) -> dict[str, Any]:
        return {**self.rowwise, **case.options}

    def oracle(self, case: Case, inputs: Inputs, wrt: Sequence[str] | None = None) -> tuple[Tensor, list[Tensor]]:
        wide = to(inputs, torch.float64)
        return evaluate(self.definition, wide, self.options(case), case.differentiable if wrt is None else wrt)

    def ours(self, case: Case, inputs: Inputs, upstream: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        return evaluate(self.function, inputs, self.options(case), case.differentiable, upstream)

    # ---- accuracy and derivatives

    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
    def test_error_budget(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        inputs = case.inputs(dtype, device)
        value, gradients = self.ours(case, inputs)
        oracle, oracle_gradients = self.oracle(case, inputs)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        eager, eager_gradients = evaluate(self.definition, to(inputs, wide, device), self.options(case), case.differentiable)
        assert value.dtype == wide
        within_budget(value, eager, oracle, 2, "value")
        for name, ours, base, exact in zip(case.differentiable, gradients, eager_gradients, oracle_gradients, strict=True):
            assert ours.dtype == inputs[name].dtype
            within_budget(ours, base.to(ours.dtype), exact, 3, f"gradient of {name}")
            unbiased(ours, exact, f"gradient of {name}", self.common_roundings, self.few_terms)

    def test_gradients_in_float64(self, case: Case, device: torch.device) -> None:
        inputs = case.inputs(torch.float64, device)
        for wrt in subsets(case.differentiable):
            self.check(torch.autograd.gradcheck, case, inputs, wrt)

    test_gradients_in_float64.cases = "checked"

    def test_second_derivatives(self, case: Case, device: torch.device) -> None:
        inputs = case.inputs(torch.float64, device)
        for wrt in subsets(case.differentiable):
            self.check(torch.autograd.gradgradcheck, case, inputs, wrt)

    test_second_derivatives.cases = "checked"

    def check(self, checker: Callable[..., bool], case: Case, inputs: Inputs, wrt: Sequence[str]) -> None:
        leaves = [inputs[n].clone().requires_grad_() for n in wrt]
        assert checker(
            lambda *xs: self.function(**{**inputs, **dict(zip(wrt, xs, strict=True))}, **self.options(case)),
            leaves, nondet_tol=0.0, check_batched_grad=False,
        )  # fmt: skip

    def test_reductions_follow_from_rows(self, case: Case, device: torch.device) -> None:
        """Each reduction against the definition, upstream 3 and not 1."""
        inputs = case.inputs(torch.float64, device)
        for reduction in self.reductions:
            options = {**case.options, "reduction": reduction}
            three = torch.tensor(3.0, dtype=torch.float64)
            value, gradients = evaluate(self.function, inputs, options, case.differentiable, three.to(device))
            exact, exact_gradients = evaluate(self.definition, to(inputs, torch.float64), options, case.differentiable, three)
            torch.testing.assert_close([value.cpu(), *(g.cpu() for g in gradients)], [exact, *exact_gradients], rtol=1e-10, atol=1e-13)

    # ---- registration, compile, autograd modes

    def test_opcheck(self, device: torch.device) -> None:
        for op, arguments, differentiable in self.op_samples(device):
            torch.library.opcheck(op, arguments)
            if differentiable:
                leaves = [a.clone().requires_grad_() if i in differentiable else a for i, a in enumerate(arguments)]
                torch.library.opcheck(op, tuple(leaves))

    def test_compile(self, case: Case, device: torch.device) -> None:
        torch._dynamo.reset()
        options, counter = self.options(case), CompileCounterWithBackend(self.compiled[case.name])
        compiled = torch.compile(lambda **leaves: self.function(**leaves, **options), fullgraph=True, backend=counter)
        for rows in (5, 9, 17, 33, 64):
            inputs = case.inputs(torch.float32, device, rows)
            got = evaluate(compiled, inputs, {}, case.differentiable)
            torch.testing.assert_close(got, self.ours(case, inputs), msg=lambda text, rows=rows: f"{rows} rows: {text}")
        assert counter.frame_count <= 2

    test_compile.cases = "compiled"

    def test_checkpoint_and_grad_modes(self, case: Case, device: torch.device) -> None:
        inputs = case.inputs(torch.float32, device)
        expected = self.ours(case, inputs)
        for reentrant in (False, True):
            names = list(inputs)

            def body(*tensors: Tensor, names: list[str] = names) -> Tensor:
                return self.function(**dict(zip(names, tensors, strict=True)), **self.options(case))

            def checkpointed(reentrant: bool = reentrant, body: Callable[..., Tensor] = body, **leaves: Tensor) -> Tensor:
                return checkpoint(body, *leaves.values(), use_reentrant=reentrant)

            # the reentrant form refuses autograd.grad(inputs=...)
            same(by_backward(checkpointed, inputs, case.differentiable), expected, f"checkpoint, use_reentrant={reentrant}")
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                same(self.function(**inputs, **self.options(case)), expected[0], mode.__name__)

    # ---- layouts

    def test_input_layouts(self, case: Case, device: torch.device) -> None:
        """Same bits as the contiguous copy wherever the kernel adds in the same order, else within the error budget."""
        inputs = case.inputs(torch.float32, device)
        for name in (n for n, t in inputs.items() if t.dim() and t.is_floating_point()):
            for layout, make in LAYOUTS.items():
                view = make(inputs[name])
                dense = {**inputs, name: view.clone(memory_format=torch.contiguous_format)}
                got, expected = self.ours(case, {**inputs, name: view}), self.ours(case, dense)
                if name not in case.native or self.same_path(view):
                    same(got, expected, f"{name} {layout}")
                else:
                    oracle, gradients = self.oracle(case, dense)
                    for a, b, c in zip([got[0], *got[1]], [expected[0], *expected[1]], [oracle, *gradients], strict=True):
                        within_budget(a, b, c, 2, f"{name} {layout}")

    def test_upstream_layouts(self, case: Case, device: torch.device) -> None:
        inputs = case.inputs(torch.float32, device)
        value = self.ours(case, inputs)[0]
        for layout, make in {**LAYOUTS, "zero": torch.zeros_like}.items():
            view = make(random_like(value.reshape(value.shape or 1))).view(value.shape)
            got = self.ours(case, inputs, view)[1]
            same(got, self.ours(case, inputs, view.clone(memory_format=torch.contiguous_format))[1], f"upstream {layout}")
            if layout == "zero":
                assert all((g == 0).all() for g in got)
        total = {n: t.detach().requires_grad_(n in case.differentiable) for n, t in inputs.items()}
        self.function(**total, **self.options(case)).sum().backward()  # sum() sends a stride-0 gradient
        same([total[n].grad for n in case.differentiable], self.ours(case, inputs, torch.ones_like(value))[1], "sum().backward()")

    # ---- side effects

    def test_nothing_is_overwritten(self, case: Case, device: torch.device) -> None:
        inputs = case.inputs(torch.float32, device)
        kept, versions = {n: t.clone() for n, t in inputs.items()}, {n: t._version for n, t in inputs.items()}
        upstream = random_like(self.function(**inputs, **self.options(case)))
        kept_upstream = upstream.clone()
        self.ours(case, inputs, upstream)
        same(inputs, kept, "inputs")
        same(upstream, kept_upstream, "grad_output")
        assert versions == {n: t._version for n, t in inputs.items()}

    def test_retain_graph_and_shared_use(self, case: Case, device: torch.device) -> None:
        inputs = case.inputs(torch.float32, device)
        name = case.differentiable[0]
        leaf = inputs[name].clone().requires_grad_()
        value = self.function(**{**inputs, name: leaf}, **self.options(case))
        for seed in (2, 3):
            upstream = random_like(value, seed)
            again = torch.autograd.grad(value, leaf, upstream, retain_graph=True)[0]
            same(again, self.ours(case, inputs, upstream)[1][0], "retain_graph")
        alone = self.ours(case, inputs, torch.ones_like(value))[1][0]
        with_auxiliary = torch.autograd.grad(value.sum() + (leaf**2).sum(), leaf)[0]
        torch.testing.assert_close(with_auxiliary, alone + 2 * leaf.detach())
        hidden = torch.tanh(leaf)  # tanh's backward reads its own output, which is our input
        chained = torch.autograd.grad(self.function(**{**inputs, name: hidden}, **self.options(case)).sum(), leaf)[0]
        direct = self.ours(case, {**inputs, name: hidden.detach()}, torch.ones_like(value))[1][0]
        torch.testing.assert_close(chained, direct * (1 - hidden.detach() ** 2))

    def test_same_bits(self, case: Case, device: torch.device) -> None:
        """Two runs, any number of threads, fresh memory full of NaN, another default dtype, autocast."""
        inputs = case.inputs(torch.float32, device)
        torch.set_num_threads(1)
        expected = self.ours(case, inputs)
        same(self.ours(case, inputs), expected, "second run")
        surroundings = {
            "two threads": threads(2), "memory full of NaN": poisoned_memory(), "default dtype float64": default_dtype(torch.float64),
        }  # fmt: skip
        if not self.bits_of_threads:
            del surroundings["two threads"]
        if not self.casts_under_autocast:
            surroundings["autocast"] = torch.autocast(device.type, dtype=torch.bfloat16)
        for name, context in surroundings.items():
            with context:
                same(self.ours(case, inputs), expected, name)

    def test_saved_memory(self, case: Case, device: torch.device) -> None:
        """Beyond its inputs, the graph keeps O(rows) bytes."""
        inputs = case.inputs(torch.float32, device)
        leaves = {n: t.clone().requires_grad_(n in case.differentiable) for n, t in inputs.items()}
        owned, saved = {t.untyped_storage().data_ptr() for t in leaves.values()}, {}

        def pack(t: Tensor) -> Tensor:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            rows = self.function(**leaves, **self.options(case)).numel()
        assert sum(size for address, size in saved.items() if address not in owned) <= self.saved_bytes(case, rows)

    def saved_bytes(self, case: Case, rows: int) -> int:
        return 64 * rows + 64

    # ---- modules

    def test_modules(self, device: torch.device) -> None:
        case = self.cases[0]
        inputs = case.inputs(torch.float32, device)
        for build, function, options in self.modules:
            module = build(**options)
            expected = function(**inputs, **options)
            for copied in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
                same(copied(**inputs), expected, type(module).__name__)
            fresh = build(**options)
            fresh.load_state_dict(module.state_dict())
            same(fresh(**inputs), expected, f"state_dict of {type(module).__name__}")
