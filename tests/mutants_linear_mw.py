"""Planted bugs of the in-batch Mann-Whitney loss: (file, old text, new text, tests that must fail)."""

TESTS = "tests/test_linear_mw.py"

CPP: list[tuple[str, str, str, str]] = []  # the kernels are those of the bins
TRITON: list[tuple[str, str, str, str]] = []

PUBLIC, OP = "python/nearlinear/linear_mw.py", "python/nearlinear/ops/linear_mw.py"
PYTHON = [
    (PUBLIC, "rows * (rows * len(documents) - rows)", "rows * (rows * len(documents) - 1)", f"{TESTS} -k loop"),
    (OP, "diagonal.fill_(False)", "diagonal.fill_(True)", f"{TESTS} -k 'budget and tiles'"),
    (OP, ".diagonal(begin)", ".diagonal()", f"{TESTS} -k 'budget and tiles'"),
    (OP, "slope.t(), q, first=False", "slope.t(), q, first=True", f"{TESTS} -k 'budget and tiles'"),
    (OP, "table[:, 0].neg_()", "table[:, 1].neg_()", f"{TESTS} -k 'budget and pair'"),
    (OP, "_SLACK = 1 + 1 / 64", "_SLACK = 1 - 1 / 64", f"{TESTS} -k ends"),
    (OP, "(most + 1 / 64)", "most", f"{TESTS} -k underflow"),
    (OP, "d_document.mul_(factor)", "d_document.mul_(d_total)", f"{TESTS} -k 'budget and pair'"),
    (OP, "if not math.isfinite(most) and not", "if not math.isfinite(most) and", f"{TESTS} -k finite"),
    (OP, "torch.autograd.grad(total, leaves, d_total.view(1)", "torch.autograd.grad(total, leaves, torch.ones_like(total)",
     f"{TESTS} -k 'second and lengths'"),
]  # fmt: skip
