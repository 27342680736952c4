"""Extended LSTMs (xLSTM): operators, layers, models and tasks on PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exlstm.models import XLSTM, Backbone, Decoder, Forecaster, LanguageModel, Seq2Seq

__version__ = "0.1.0.dev0"
__all__ = ["XLSTM", "Backbone", "Decoder", "Forecaster", "LanguageModel", "Seq2Seq", "__version__"]


def __getattr__(name: str) -> Any:
    """Models are imported when they are first named: `import exlstm` alone does not load torch."""
    if name in __all__:
        return getattr(import_module("exlstm.models"), name)
    raise AttributeError(f"module 'exlstm' has no attribute {name!r}")
