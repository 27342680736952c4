"""Weights of other xLSTM implementations, in and out: see `convert.py`."""
