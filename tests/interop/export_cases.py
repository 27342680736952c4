"""Small models to be exported, their weights far from those they begin with."""

import torch

from exlstm.models import LanguageModel


def language_model(pattern: str, **fields) -> LanguageModel:
    """A language model whose gates depend on what is read."""
    options = {"vocabulary": 23, "width": 32, "heads": 2, "levels": 4, "window": 6, **fields}
    model = LanguageModel(pattern=pattern, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(model: LanguageModel, batch: int, time: int) -> torch.Tensor:
    return torch.randint(model.config.vocabulary, (batch, time))
