"""Other people's formats and tools, in and out; each module needs its own optional package."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exlstm.interop.weights.convert import convert, from_pretrained, save_pretrained
    from exlstm.interop.weights.target import Target

_WHERE = {
    "Target": "exlstm.interop.weights.target",
    "convert": "exlstm.interop.weights.convert",
    "from_pretrained": "exlstm.interop.weights.convert",
    "save_pretrained": "exlstm.interop.weights.convert",
}
__all__ = ["Target", "convert", "from_pretrained", "save_pretrained"]


def __getattr__(name: str) -> Any:
    """Weights are imported when they are first named: no module of this room waits for another's."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'exlstm.interop' has no attribute {name!r}")
