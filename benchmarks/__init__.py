"""Side-by-side measurements of exlstm and its peers: `python -m benchmarks OPS|TRAIN|DECODE`."""
