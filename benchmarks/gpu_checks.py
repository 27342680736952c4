"""Are the Triton kernels right on this hardware? Their error against float64, beside that of PyTorch's own operations.

The oracle is our chunkwise backend in float64, itself compared with the step-by-step reference (`oracle`). What is
compared are outputs, final states and the gradients, in all inputs, of a random mixture of both, on the same rounded
inputs. The measure is ||x - exact|| / ||exact|| of each tensor, and no tensor's may be over twice what the chunkwise
backend has on the same inputs in the same precision, or what rounding alone costs, if that is more (`FLOOR`).

In float32 "twice" is in units of what a product's rounding costs. PyTorch's are exact to 2^-24; ours are three products
of tf32, whose two operands of 22 bits and lost fourth product cost 2^-22 each, 12 times as much.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from exlstm.ops import HMLSTMState, MLSTMState, SLSTMState, hmlstm, mlstm, slstm

OPERATORS: dict[str, Callable[..., Any]] = {"mlstm": mlstm, "hmlstm": hmlstm, "slstm": slstm}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
BATCH, HEADS = 2, 2
# Of the result, in half precision; in float32 of sums over a chunk of 64 steps, 2^-24 each, a quarter of which remains.
FLOOR = {"bfloat16": 2.0**-9, "float16": 2.0**-12, "float32": 4 * 64 * 2.0**-24}
# Gradients leave out what eps = 1e-6 does to a stabiliser, at most eps / denominator of the rest; where one step
# outweighs the others the smallest denominator is about one in as many as there are.
LEFT_OUT = {"trained": 0.0, "extreme": 1e-6 * BATCH * HEADS * 64}
MOST = {"bfloat16": 2.0, "float16": 2.0, "float32": 2.0 * 12}  # times the error of PyTorch's own operations
# Of losses, as in training: the gradient of a state [256, 512] or of a read near 0 is beyond float16's largest number.
LOSS_SCALE = {"float16": 2.0**-10}
LOW = ("bfloat16", "float16")
EXACT = 1e-9  # between the oracle and the reference, both float64
LONG = 9000
GATES = {"trained": (3.0, 1.5), "extreme": (0.0, 10.0)}  # mean of forget gates, deviation of all

#          DK   DV
SHAPES = ((256, 512), (64, 128), (80, 48), (24, 17), (512, 512))
WIDTHS = (64, 128, 192, 256, 24, 17)  # of sLSTM heads
#              T  state mask+reset gates
SEQUENCES = (
    (2048, False, False, "trained"),
    (257, True, True, "trained"),
    (1, True, True, "trained"),
    (17, True, True, "trained"),
    (64, False, True, "extreme"),
)


def cases(operator: str, seed: int) -> list[dict[str, Any]]:
    """All checks of an operator on a GPU, the most important first, oracles before all."""
    oracles = [_case(operator, gate, "float64", 24, 17, 130, True, True, "trained", seed) for gate in _gates(operator)]
    kernels = [
        _case(operator, gate, dtype, dk, dv, *sequence, seed)
        for sequence in SEQUENCES
        for gate in _gates(operator)
        for dtype, dk, dv in _variants(operator, gate)
        if sequence in SEQUENCES[:3] or (gate == "exp" and dtype != "float16")
    ]
    if operator == "mlstm":  # a walk that is cut into segments
        long = [_case(operator, "exp", x, 64, 128, LONG, True, True, "trained", seed) for x in ("bfloat16", "float32")]
        kernels[4:4] = long
    return oracles + kernels


def small_cases(operator: str, seed: int) -> list[dict[str, Any]]:
    """Few and tiny ones, for Triton's interpreter, which multiplies bfloat16 matrices as integers."""
    return [
        _case(
            operator,
            _gates(operator)[0],
            dtype,
            17,
            0 if operator == "slstm" else 24,
            time,
            True,
            True,
            "trained",
            seed,
        )
        for dtype, time in (("float64", 17), ("float32", 17), ("float16", 5))
    ]


def _gates(operator: str) -> tuple[str, ...]:
    return ("exp", "sigmoid") if operator == "mlstm" else ("exp",)


def _variants(operator: str, gate: str) -> Iterator[tuple[str, int, int]]:
    """Types and widths: all of them in bfloat16, the others where they differ most. Each is compiled anew."""
    shapes = [(width, 0) for width in WIDTHS] if operator == "slstm" else list(SHAPES)
    if gate == "sigmoid":  # the same kernels, with a flag
        shapes = shapes[:3]
    yield from (("bfloat16", *shape) for shape in shapes)
    if gate == "exp":
        yield from (("float16", *shape) for shape in shapes[1:3])
        yield from (("float32", *shape) for shape in (shapes[0], shapes[-2]))


def _case(
    operator: str, gate: str, dtype: str, dk: int, dv: int, time: int, state: bool, steps: bool, gates: str, seed: int
) -> dict[str, Any]:
    if operator == "slstm" and time > 512:
        time = 512  # its oracle takes every step by itself
    return {
        "operator": operator, "gate": gate, "dtype": dtype, "dk": dk, "dv": 0 if operator == "slstm" else dv,
        "time": time, "state": state, "steps": steps, "gates": gates, "seed": seed,
    }  # fmt: skip


def check(seed: int, **case: Any) -> dict[str, Any]:
    """The outcome of a check: whether it passed, and the tensor with the worst ratio, its errors and name."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if case["dtype"] == "float64":
        return _oracle(device, seed, **case)
    inputs = [rounded(x, DTYPES[case["dtype"]]) for x in _draw(device, seed, **case)]
    floor = FLOOR[case["dtype"]] + LEFT_OUT[case["gates"]]
    return judged(case["dtype"], lambda dtype, backend: _results(case, inputs, dtype, backend, seed), floor)


def _oracle(device: torch.device, seed: int, **case: Any) -> dict[str, Any]:
    inputs = _draw(device, seed, **case)
    backends = ("torch", "reference")
    found, exact = (_results(case, inputs, torch.float64, backend, seed) for backend in backends)
    error, name = max((relative(found[name], exact[name]), name) for name in exact)
    return {"tensor": name, "error": error, "bound": EXACT, "passed": error <= EXACT}


def judged(
    dtype: str, run: Callable[[torch.dtype, str], dict[str, Tensor]], floor: float | None = None
) -> dict[str, Any]:
    """The outcome of a check of `run`, which gives tensors by name, computed in a type by a backend.

    An error of `floor`, if not given that of the type, is allowed in any case.
    """
    least = (FLOOR[dtype] if floor is None else floor) / MOST[dtype]
    with _poisoned():
        ours, again = (run(DTYPES[dtype], "triton") for _ in range(2))
    same = all(torch.equal(ours[name], again[name]) for name in ours)
    exact, theirs = run(torch.float64, "torch"), run(DTYPES[dtype], "torch")
    rows = []
    for name, x in exact.items():
        error, other = relative(ours[name], x), relative(theirs[name], x)
        ratio = error / max(other, least)
        rows.append(
            {"tensor": name, "error": error, "torch": other, "ratio": ratio if ratio == ratio else float("inf")}
        )
    worst = max(rows, key=lambda row: row["ratio"])
    return {**worst, "same_bits": same, "output": rows[0], "passed": worst["ratio"] <= MOST[dtype] and same}


def relative(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||; where that is nothing, ||found||."""
    found, exact = found.double(), exact.double()
    size = float(exact.norm())
    return float((found - exact).norm()) / (size or 1.0)


@contextmanager
def _poisoned() -> Iterator[None]:
    """Let memory that PyTorch allocates hold NaN, so that what nothing wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def _draw(device: torch.device, seed: int, **case: Any) -> list[Any]:
    """Sequences in float64, then the state (None without), mask and reset (None without)."""
    generator = torch.Generator(device=device).manual_seed(seed)
    operator, time, dk, dv = case["operator"], case["time"], case["dk"], case["dv"]
    mean, deviation = GATES[case["gates"]]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.float64, generator=generator)

    def chosen(share: float) -> Tensor:
        return torch.rand(BATCH, time, device=device, generator=generator) < share

    steps = (BATCH, time, HEADS)
    if operator == "slstm":
        x = normal(BATCH, time, 4, HEADS, dk)
        x[:, :, :2] *= deviation
        x[:, :, 1] += mean
        sequences = [x, normal(4, HEADS, dk, dk) / dk**0.5]
    else:
        sequences = [normal(*steps, dk), normal(*steps, dk), normal(*steps, dv)]
        sequences += [deviation * normal(*steps), mean + deviation * normal(*steps)]
    levels = 17 if dk in (64, 256) else 5
    if operator == "hmlstm":
        sequences.append(normal(*steps, levels))
    state: Any = None
    if case["state"] and operator == "mlstm":
        state = MLSTMState(normal(BATCH, HEADS, dk, dv), normal(BATCH, HEADS, dk), normal(BATCH, HEADS))
    elif case["state"] and operator == "hmlstm":  # whose slots must fit their position
        past = 23, HEADS
        inputs = [normal(BATCH, *past, width) for width in (dk, dk, dv)]
        gates = normal(BATCH, *past), 3 + normal(BATCH, *past)
        state = hmlstm(*inputs, *gates, normal(BATCH, *past, levels), backend="torch")[1]
    elif case["state"]:
        c, n, m, h = (normal(BATCH, HEADS, dk) for _ in range(4))
        state = SLSTMState(c, 1 + n.abs(), m, h.tanh())
    marks = [chosen(0.8), chosen(0.02)] if case["steps"] else [None, None]
    return [tuple(sequences), state, *marks]


def rounded(tree: Any, dtype: torch.dtype) -> Any:
    """Sequences to `dtype`, states to float32, as they are handed over."""
    if isinstance(tree, (MLSTMState, HMLSTMState, SLSTMState)):
        return _map(lambda x: x.float() if x.is_floating_point() else x, tree)
    return _map(lambda x: x.to(dtype) if x.is_floating_point() else x, tree)


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple):
        parts = [_map(function, x) for x in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


def _mixture(case: dict[str, Any], outputs: dict[str, Tensor], seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """What is differentiated, and its random weights."""
    h, scale = outputs["h"], LOSS_SCALE.get(case["dtype"], 1.0)
    generator = torch.Generator(device=h.device).manual_seed(seed + 1000)
    weights = {
        name: (scale * torch.randn(x.shape, device=x.device, generator=generator)).to(h.dtype).to(x.dtype)
        for name, x in outputs.items()
    }
    if case["operator"] == "slstm" and case["dtype"] in LOW:
        # Which step a stabiliser is of is, now and then, a matter of how h is rounded, on which sLSTM's gates depend.
        # So that it does not matter, c, n and m are weighted such that a shift of m, c and n scaled with it, changes
        # nothing; in float32 all weights are random.
        parts = (outputs[f"{name} after"].detach() * weights[f"{name} after"] for name in "cn")
        weights["m after"] = sum(parts)  # type: ignore[assignment]
    names = [name for name, x in outputs.items() if x.requires_grad]
    return [outputs[name] for name in names], [weights[name] for name in names]


def _results(case: dict[str, Any], inputs: list[Any], dtype: torch.dtype, backend: str, seed: int) -> dict[str, Tensor]:
    """Outputs, final states and gradients by name; float64 takes states along, other types leave them float32."""

    def leaf(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return x.detach().to(torch.float64 if dtype == torch.float64 else x.dtype).clone().requires_grad_()

    sequences, state, mask, reset = _map(leaf, tuple(inputs))
    operator = case["operator"]
    options = {"input_gate": case["gate"]} if operator == "mlstm" else {}
    h, after = OPERATORS[operator](*sequences, state, mask=mask, reset=reset, backend=backend, **options)
    outputs = {"h": h} | {f"{name} after": x for name, x in after._asdict().items() if x.is_floating_point()}
    names = {"slstm": ("x", "r")}.get(operator, ("q", "k", "v", "i", "f", "level"))
    sources = dict(zip(names, sequences, strict=False))
    if state is not None:
        sources |= {f"{name} before": x for name, x in state._asdict().items() if x.is_floating_point()}
    mixed, weights = _mixture(case, outputs, seed)
    gradients = torch.autograd.grad(mixed, list(sources.values()), weights, allow_unused=True)
    found = {name: x.detach() for name, x in outputs.items()}
    if case["time"] == 1:  # a step that needs no gradient may have a kernel of its own
        with torch.no_grad():
            h, after = OPERATORS[operator](*sequences, state, mask=mask, reset=reset, backend=backend, **options)
        found |= {"step h": h} | {f"step {name}": x for name, x in after._asdict().items() if x.is_floating_point()}
    for (name, source), gradient in zip(sources.items(), gradients, strict=True):
        found[f"gradient of {name}"] = torch.zeros_like(source) if gradient is None else gradient
    return found
