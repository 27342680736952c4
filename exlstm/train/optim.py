"""AdamW with weight decay only where it belongs."""

from collections.abc import Iterator

from torch import nn
from torch.optim import AdamW

from exlstm.train.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) over the model's trainable parameters.

    Raises ValueError when the model has no trainable parameter.
    """
    decayed, exempt = decay_groups(model)
    if not decayed and not exempt:
        raise ValueError("expected a model with trainable parameters, got one without")
    return AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": exempt, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters, each once: those that weight decay applies to, and those exempt from it.

    Matrices and tensors of higher rank (linear, convolution and embedding weights) decay; vectors and
    scalars (biases, norms) do not. A module with a bias or norm of higher rank, such as a per-head one,
    exempts it by naming it in its attribute `_no_weight_decay: set[str]`. A tied parameter is exempt if
    any of its owners says so. Raises ValueError when a declared name is no parameter of its module.
    """
    exempt_ids = {id(parameter) for parameter in _declared_exempt(model)}
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and id(parameter) not in exempt_ids
            (decayed if decays else exempt).append(parameter)
    return decayed, exempt


def _declared_exempt(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        declared: set[str] = getattr(module, "_no_weight_decay", set())
        for name in declared:
            if name not in module._parameters:
                raise ValueError(
                    f"{type(module).__name__}._no_weight_decay names {name!r}, which is none of its own "
                    f"parameters: {sorted(module._parameters)}"
                )
            parameter = module._parameters[name]
            if parameter is not None:
                yield parameter
