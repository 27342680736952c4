"""What a model is written as."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal, get_args, get_type_hints

from tyro.conf import arg

Layout = Literal["exlstm", "transformers", "xlstm", "xlstm-large"]
WeightMode = Literal["single", "fused"]
Backend = Literal["vanilla", "cuda"]
Dtype = Literal["stored", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A layout, and what can be chosen in it."""

    to: Layout = "exlstm"
    """exlstm; transformers (xLSTMForCausalLM); xlstm or xlstm-large, which are xLSTMLMModel and xLSTMLarge of xlstm."""
    weight_mode: WeightMode = "single"
    """Matrices apart, or those of one input joined; in transformers and xlstm-large."""
    slstm_backend: Backend = "vanilla"
    """Whose form the weights of sLSTM layers have, in xlstm."""
    dtype: Dtype = "stored"
    """Numbers of the weights."""
    shard: Annotated[float, arg(metavar="GB")] = 5.0
    """Gigabytes (10^9 bytes) that a file of weights should not exceed."""

    def check(self) -> None:
        """Raise ValueError if a choice is none, or none of this layout."""
        for name, hint in get_type_hints(Target).items():
            value, choices = getattr(self, name), get_args(hint)
            if choices and value not in choices:
                raise ValueError(f"expected {name}= one of {', '.join(choices)}, received {value!r}")
        usual = {field.name: field.default for field in fields(Target)}
        for name, layouts in (("weight_mode", ("transformers", "xlstm-large")), ("slstm_backend", ("xlstm",))):
            if getattr(self, name) != usual[name] and self.to not in layouts:
                raise ValueError(
                    f"{name}= is for the layouts {', '.join(layouts)}, received it with {self.to}; leave it out"
                )
        if not 0 < self.shard < math.inf:
            raise ValueError(f"expected shard= above 0 gigabytes, received {self.shard}")
