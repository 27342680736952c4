"""Layers: `y, state = layer(x, state=None, *, mask=None, reset=None, return_state=True)` with x, y [B, T, width].

With `return_state=False` the state is None, and what only it needs is not computed.
"""

from exlstm.layers.attention import AttentionState, SlidingWindowAttention
from exlstm.layers.bidirectional import Bidirectional
from exlstm.layers.block import Block, BlockOptions
from exlstm.layers.cell import MatrixMemoryCell
from exlstm.layers.classic import Classic, ClassicState
from exlstm.layers.conv import CausalConv1d
from exlstm.layers.cross_attention import AttentionReader, AttentionWriter
from exlstm.layers.hmlstm import HMLSTM
from exlstm.layers.linear import HeadwiseLinear
from exlstm.layers.memory import MemoryReader, MemoryWriter
from exlstm.layers.mlp import GatedMLP
from exlstm.layers.mlstm import MLSTM, MLSTMLarge
from exlstm.layers.norm import LayerNorm, MultiHeadNorm, RMSNorm
from exlstm.layers.slstm import SLSTM
from exlstm.layers.state import LayerState, map_state

__all__ = [
    "HMLSTM",
    "MLSTM",
    "SLSTM",
    "AttentionReader",
    "AttentionState",
    "AttentionWriter",
    "Bidirectional",
    "Block",
    "BlockOptions",
    "CausalConv1d",
    "Classic",
    "ClassicState",
    "GatedMLP",
    "HeadwiseLinear",
    "LayerNorm",
    "LayerState",
    "MLSTMLarge",
    "MatrixMemoryCell",
    "MemoryReader",
    "MemoryWriter",
    "MultiHeadNorm",
    "RMSNorm",
    "SlidingWindowAttention",
    "map_state",
]
