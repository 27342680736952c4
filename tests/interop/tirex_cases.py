"""A checkpoint in TiRex's layout with random weights, and its forward as plain loops in float64.

Both follow the published names, shapes and formulas alone, and share no code with exlstm.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


class Sizes(NamedTuple):
    width: int = 24
    blocks: int = 2
    heads: int = 3
    hidden: int = 20
    up: int = 64  # 2.667 times the width, rounded up to a multiple of 64
    patch: int = 4
    context: int = 32


SMALL = Sizes()
PUBLISHED = Sizes(width=512, blocks=12, heads=4, hidden=2048, up=1408, patch=32, context=2048)


def hyper_parameters(s: Sizes) -> dict[str, Any]:
    return {
        "input_patch_size": s.patch,
        "output_patch_size": s.patch,
        "quantiles": LEVELS,
        "block_kwargs": {"embedding_dim": s.width, "num_blocks": s.blocks, "num_heads": s.heads},
        "input_ff_dim": s.hidden,
        "train_ctx_len": s.context,
    }


def shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the state_dict."""
    d, found = s.width // s.heads, {}
    for name, inputs, outputs in (
        ("input_patch_embedding", 2 * s.patch, s.width),
        ("output_patch_embedding", s.width, 9 * s.patch),
    ):
        for layer, i, o in (
            ("hidden_layer", inputs, s.hidden),
            ("output_layer", s.hidden, outputs),
            ("residual_layer", inputs, outputs),
        ):
            found |= {f"{name}.{layer}.weight": (o, i), f"{name}.{layer}.bias": (o,)}
    for n in range(s.blocks):
        at = f"block_stack.blocks.{n}."
        found |= {f"{at}slstm_layer.{gate}gate.weight": (s.heads, d, d) for gate in "fizo"}
        found |= {
            f"{at}norm_slstm.weight": (s.width,),
            f"{at}slstm_layer.slstm_cell._recurrent_kernel_": (s.heads, d, 4 * d),
            f"{at}slstm_layer.slstm_cell._bias_": (4 * s.width,),
            f"{at}slstm_layer.group_norm.weight": (s.width,),
            f"{at}norm_ffn.weight": (s.width,),
            f"{at}ffn.proj_up_gate.weight": (s.up, s.width),
            f"{at}ffn.proj_up.weight": (s.up, s.width),
            f"{at}ffn.proj_down.weight": (s.width, s.up),
        }
    return found | {"block_stack.out_norm.weight": (s.width,)}


def random_weights(s: Sizes) -> dict[str, torch.Tensor]:
    """Weights that keep signals of about their size; biases that take half of the forget gates over 15."""
    weights = {}
    for name, shape in shapes(s).items():
        deviation = shape[-1] ** -0.5 if len(shape) > 1 else 0.3
        weights[name] = deviation * torch.randn(shape)
        if name.endswith("norm_slstm.weight") or "norm_ffn" in name or "out_norm" in name:
            weights[name] += 1
        if name.endswith("group_norm.weight"):
            weights[name] = (1024 * weights[name]).round() / 1024  # 1 + w is exact in float32
        if name.endswith("_bias_"):  # [head, gate, width]
            weights[name].view(s.heads, 4, -1)[:, 1] += torch.tensor([3.0, 18.0]).repeat(s.width // s.heads // 2)
    return weights


def write(path: Path, s: Sizes = SMALL, **changes: Any) -> Path:
    """A model.ckpt; `changes` replace its parts."""
    torch.save({"hyper_parameters": hyper_parameters(s), "state_dict": random_weights(s)} | changes, path)
    return path


def forward(weights: dict[str, torch.Tensor], s: Sizes, series: np.ndarray, h: int) -> np.ndarray:
    """Quantiles [h, 9] after one series (NaN where missing), from the definition."""
    w = {name.removeprefix("block_stack."): value.double().numpy() for name, value in weights.items()}
    context = np.full(s.context, np.nan)
    tail = np.asarray(series, dtype=np.float64)[-s.context :]
    if len(tail):
        context[-len(tail) :] = tail
    observed = [value for value in context if not np.isnan(value)]
    mean = sum(observed) / len(observed)
    deviation = (sum((value - mean) ** 2 for value in observed) / len(observed)) ** 0.5
    ahead = -(-h // s.patch)
    tokens = []
    for n in range(s.context // s.patch + ahead - 1):
        patch = context[n * s.patch : (n + 1) * s.patch] if n < s.context // s.patch else [np.nan] * s.patch
        values = [0.0 if np.isnan(value) else (value - mean) / deviation for value in patch]
        mask = [0.0 if np.isnan(value) else 1.0 for value in patch]
        tokens.append(_residual_mlp(w, "input_patch_embedding", np.array(values + mask)))
    for n in range(s.blocks):
        at = f"blocks.{n}."
        mixed = _slstm(w, at + "slstm_layer.", s, [_rms_norm(x, w[f"{at}norm_slstm.weight"]) for x in tokens])
        tokens = [x + y for x, y in zip(tokens, mixed, strict=True)]
        tokens = [x + _swiglu(w, at + "ffn.", _rms_norm(x, w[f"{at}norm_ffn.weight"])) for x in tokens]
    forecasts = []
    for x in tokens[-ahead:]:
        out = _residual_mlp(w, "output_patch_embedding", _rms_norm(x, w["out_norm.weight"])).reshape(9, s.patch)
        forecasts += [mean + deviation * out[:, step] for step in range(s.patch)]
    return np.array(forecasts[:h])


def _residual_mlp(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    hidden = np.maximum(w[f"{name}.hidden_layer.weight"] @ x + w[f"{name}.hidden_layer.bias"], 0)
    out = w[f"{name}.output_layer.weight"] @ hidden + w[f"{name}.output_layer.bias"]
    return out + w[f"{name}.residual_layer.weight"] @ x + w[f"{name}.residual_layer.bias"]


def _rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x) + 1e-6) * weight


def _swiglu(w: dict[str, np.ndarray], at: str, x: np.ndarray) -> np.ndarray:
    gate = w[f"{at}proj_up_gate.weight"] @ x
    return w[f"{at}proj_down.weight"] @ (gate * _sigmoid(gate) * (w[f"{at}proj_up.weight"] @ x))


def _slstm(w: dict[str, np.ndarray], at: str, s: Sizes, inputs: list[np.ndarray]) -> list[np.ndarray]:
    d = s.width // s.heads
    kernel, bias = w[f"{at}slstm_cell._recurrent_kernel_"], w[f"{at}slstm_cell._bias_"]
    c, n, m, h = (np.zeros((s.heads, d)) for _ in range(4))
    outputs = []
    for t, x in enumerate(inputs):
        normed = []
        for head in range(s.heads):
            part = x[head * d : (head + 1) * d]
            pre = []
            for place, name in enumerate("fizo"):  # into the gates i, f, z, o: the swap
                from_input = w[f"{at}{name}gate.weight"][head] @ part
                from_past = h[head] @ kernel[head][:, place * d : (place + 1) * d]
                first = (head * 4 + place) * d
                pre.append(from_input + from_past + bias[first : first + d])
            i, f, z, o = pre
            f = np.minimum(f, 15.0)
            log_f = -np.log1p(np.exp(-f))
            new_m = i if t == 0 else np.maximum(log_f + m[head], i)
            keep = np.exp(log_f + m[head] - new_m) if t else np.zeros(d)
            write = np.exp(i - new_m)
            c[head] = keep * c[head] + write * np.tanh(z)
            n[head] = keep * n[head] + write
            m[head], h[head] = new_m, _sigmoid(o) * c[head] / n[head]
            normed.append((h[head] - h[head].mean()) / np.sqrt(h[head].var() + 1e-5))
        outputs.append(np.concatenate(normed) * (1 + w[f"{at}group_norm.weight"]))
    return outputs


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
