"""Other people's work, by its public interface only, in the settings that its own documentation gives for a CPU."""

from importlib import metadata
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import lm
from benchmarks.work import Work, mlstm_inputs, operator_work

PEERS = ("mlstm_kernels", "xlstm", "transformers", "onnxruntime", "openvino", "nncf")
INSTALL = 'python -m pip install -e ".[peers,export]"'


def version(distribution: str) -> str | None:
    """The version installed; None if it is not."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def mlstm_kernels(
    *, kernel: str, batch: int, time: int, heads: int, dk: int, dv: int, backward: bool, chunk_size: int = 64
) -> Work:
    """The mLSTM of mlstm_kernels; ours returns the last state, so it does too."""
    from mlstm_kernels.torch import get_mlstm_kernel

    run = get_mlstm_kernel(f"chunkwise--{kernel}")
    inputs = [x.transpose(1, 2).contiguous() for x in mlstm_inputs(batch, time, heads, dk, dv)]
    shape = (batch, heads, time, dv) if backward else None
    return operator_work(lambda: run(*inputs, return_last_states=True, chunk_size=chunk_size)[0], inputs, shape)


def torch_lstm(*, batch: int, time: int, width: int, backward: bool) -> Work:
    """`torch.nn.LSTM(width, width)`, its input projection included."""
    layer = nn.LSTM(width, width, batch_first=True)
    x = torch.randn(batch, time, width)
    shape = (batch, time, width) if backward else None
    return operator_work(lambda: layer(x)[0], [x, *layer.parameters()], shape)


def torch_attention(*, batch: int, time: int, heads: int, width: int, backward: bool) -> Work:
    """Causal softmax attention of torch."""
    shape = (batch, heads, time, width)
    q, k, v = (torch.randn(shape) for _ in range(3))
    return operator_work(
        lambda: scaled_dot_product_attention(q, k, v, is_causal=True), [q, k, v], shape if backward else None
    )


def torch_matrix_product(*, size: int) -> Work:
    """The product of two large square matrices: the rate of floating-point operations that torch reaches here."""
    a, b = torch.randn(2, size, size).unbind()
    return operator_work(lambda: a @ b, [a, b], None, operations=2 * size**3)


def train_llama(*, parameters: int, batch: int, time: int, precision: str) -> Work:
    """transformers' Llama with as many parameters as are given, by the width of its feed-forward layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    outside = 2 * lm.VOCABULARY * lm.WIDTH + 4 * lm.BLOCKS * lm.WIDTH**2
    inner = 16 * round((parameters - outside) / (3 * lm.BLOCKS * lm.WIDTH) / 16)
    config = LlamaConfig(
        vocab_size=lm.VOCABULARY,
        hidden_size=lm.WIDTH,
        intermediate_size=inner,
        num_hidden_layers=lm.BLOCKS,
        num_attention_heads=lm.HEADS,
        max_position_embeddings=time,
        tie_word_embeddings=False,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    return lm.training_work(model, lambda x: model(input_ids=x).logits, batch=batch, time=time, precision=precision)


def train_xlstm(*, slstm_at: list[int], batch: int, time: int, precision: str) -> Work:
    """xlstm's xLSTMLMModel, the architecture of the xLSTM paper."""
    model = _xlstm(slstm_at, time)
    return lm.training_work(model, model, batch=batch, time=time, precision=precision)


def train_xlstm_large(*, batch: int, time: int, precision: str) -> Work:
    """xlstm's xLSTMLarge, the architecture of xLSTM-7B; without return_last_states its training mode fails."""
    model = _xlstm_large(mode="train", autocast_kernel_dtype=precision)
    return lm.training_work(model, lambda x: model(x)[0], batch=batch, time=time, precision=precision)


def decode_xlstm(*, position: int) -> Work:
    """xlstm's xLSTMLMModel, token by token, which is also how it has to read what comes before."""
    model = _xlstm([], lm.DECODED)
    return lm.decoding_work(model, model.step, position=position, piece=1)


def decode_xlstm_large(*, position: int, weight_mode: str = "single") -> Work:
    """xlstm's xLSTMLarge with its native kernels in inference mode."""
    model = _xlstm_large(mode="inference", autocast_kernel_dtype="float32", weight_mode=weight_mode)
    return lm.decoding_work(model, model, position=position)


def _xlstm(slstm_at: list[int], context: int) -> Any:
    from xlstm import (
        FeedForwardConfig,
        mLSTMBlockConfig,
        mLSTMLayerConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMLMModel,
        xLSTMLMModelConfig,
    )

    slstm = sLSTMBlockConfig(
        slstm=sLSTMLayerConfig(
            backend="vanilla", num_heads=lm.HEADS, conv1d_kernel_size=4, bias_init="powerlaw_blockdependent"
        ),
        feedforward=FeedForwardConfig(proj_factor=1.3, act_fn="gelu"),
    )
    config = xLSTMLMModelConfig(
        mlstm_block=mLSTMBlockConfig(
            mlstm=mLSTMLayerConfig(conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=lm.HEADS)
        ),
        slstm_block=slstm if slstm_at else None,
        slstm_at=slstm_at,
        context_length=context,
        num_blocks=lm.BLOCKS,
        embedding_dim=lm.WIDTH,
        vocab_size=lm.VOCABULARY,
    )
    model = xLSTMLMModel(config)
    model.reset_parameters()
    return model


def _xlstm_large(**options: Any) -> Any:
    from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

    return xLSTMLarge(
        xLSTMLargeConfig(
            embedding_dim=lm.WIDTH,
            num_heads=lm.HEADS,
            num_blocks=lm.BLOCKS,
            vocab_size=lm.VOCABULARY,
            return_last_states=True,
            chunkwise_kernel="chunkwise--native_autograd",
            sequence_kernel="native_sequence__native",
            step_kernel="native",
            **options,
        )
    )
