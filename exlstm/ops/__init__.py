"""Pure functions on tensors: the maths of extended LSTMs, with interchangeable backends."""

from exlstm.ops.backends import register
from exlstm.ops.chunkwise import hmlstm as _chunkwise_hmlstm
from exlstm.ops.chunkwise import mlstm as _chunkwise_mlstm
from exlstm.ops.chunkwise import mlstm_state as _chunkwise_mlstm_state
from exlstm.ops.chunkwise import slstm as _chunkwise_slstm
from exlstm.ops.cpu import gated_norm as _cpu_gated_norm
from exlstm.ops.cpu import hmlstm as _cpu_hmlstm
from exlstm.ops.cpu import mlstm as _cpu_mlstm
from exlstm.ops.cpu import qkv as _cpu_qkv
from exlstm.ops.cpu import slstm as _cpu_slstm
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.hmlstm import HMLSTMState, hmlstm
from exlstm.ops.mlstm import MLSTMState, mlstm, mlstm_state
from exlstm.ops.qkv import QKVGates, qkv_gates
from exlstm.ops.reference import gated_norm as _reference_gated_norm
from exlstm.ops.reference import hmlstm as _reference_hmlstm
from exlstm.ops.reference import mlstm as _reference_mlstm
from exlstm.ops.reference import qkv as _reference_qkv
from exlstm.ops.reference import slstm as _reference_slstm
from exlstm.ops.slstm import SLSTMState, slstm
from exlstm.ops.triton import gated_norm as _triton_gated_norm
from exlstm.ops.triton import hmlstm as _triton_hmlstm
from exlstm.ops.triton import launch as _triton
from exlstm.ops.triton import mlstm as _triton_mlstm
from exlstm.ops.triton import mlstm_state as _triton_mlstm_state
from exlstm.ops.triton import qkv as _triton_qkv
from exlstm.ops.triton import slstm as _triton_slstm

register("mlstm", "cpu", _cpu_mlstm.mlstm, _cpu_mlstm.obstacle)
register("mlstm", "triton", _triton_mlstm.mlstm, _triton.obstacle, remark=_triton.MATRICES)
register("mlstm", "torch", _chunkwise_mlstm.mlstm)
register("mlstm", "reference", _reference_mlstm.mlstm)
register("mlstm_state", "triton", _triton_mlstm_state.mlstm_state, _triton.obstacle, remark=_triton.MATRICES)
register("mlstm_state", "torch", _chunkwise_mlstm_state.mlstm_state)
register("mlstm_state", "reference", _reference_mlstm.mlstm_state)
register("hmlstm", "cpu", _cpu_hmlstm.hmlstm, _cpu_hmlstm.obstacle)
register("hmlstm", "triton", _triton_hmlstm.hmlstm, _triton.obstacle, remark=_triton.MATRICES)
register("hmlstm", "torch", _chunkwise_hmlstm.hmlstm)
register("hmlstm", "reference", _reference_hmlstm.hmlstm)
register("slstm", "cpu", _cpu_slstm.slstm, _cpu_slstm.obstacle)
register("slstm", "triton", _triton_slstm.slstm, _triton.obstacle, remark=_triton_slstm.REMARK)
register("slstm", "torch", _chunkwise_slstm.slstm)
register("slstm", "reference", _reference_slstm.slstm)
register("qkv_gates", "cpu", _cpu_qkv.qkv_gates, _cpu_qkv.obstacle)
register("qkv_gates", "triton", _triton_qkv.qkv_gates, _triton.obstacle, remark=_triton_qkv.REMARK)
register("qkv_gates", "torch", _reference_qkv.qkv_gates)
register("qkv_gates", "reference", _reference_qkv.qkv_gates)
register("gated_norm", "cpu", _cpu_gated_norm.gated_norm, _cpu_gated_norm.obstacle)
register("gated_norm", "triton", _triton_gated_norm.gated_norm, _triton.obstacle, remark=_triton_gated_norm.REMARK)
register("gated_norm", "torch", _reference_gated_norm.gated_norm)
register("gated_norm", "reference", _reference_gated_norm.gated_norm)

__all__ = [
    "HMLSTMState",
    "MLSTMState",
    "QKVGates",
    "SLSTMState",
    "gated_norm",
    "hmlstm",
    "mlstm",
    "mlstm_state",
    "qkv_gates",
    "slstm",
]
