"""Plain PyTorch on chunks of the sequence (backend "torch")."""
