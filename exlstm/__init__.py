"""Extended LSTMs (xLSTM): operators, layers, models and tasks on PyTorch."""

__version__ = "0.1.0.dev0"
