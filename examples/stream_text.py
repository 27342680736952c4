"""Write text with an exported language model: ONNX Runtime, numpy and json alone, no exlstm and no torch.

    exlstm export runs/lm/... --to onnx --out exported
    python examples/stream_text.py exported "It was" --length 200 --temperature 0.8 --seed 0

The prompt goes through the graph `chunk` in pieces, then tokens go through `step` one by one; the memory of the model
is what goes from call to call. (A model of subwords needs the package tokenizers besides; one of bytes does not.)
Of a converted model graph.json may not say which token a text begins with: --begin does.
"""

import argparse
import codecs
import json
from pathlib import Path

import numpy as np
import onnxruntime

PIECE = 256  # tokens of a prompt that are read at once: work grows with the square of it


class Graph:
    """One graph of an export, which keeps the state from call to call."""

    def __init__(self, folder: Path, about: dict, state: dict | None = None) -> None:
        self.session = onnxruntime.InferenceSession(folder / about["file"], providers=["CPUExecutionProvider"])
        self.outputs = [port["name"] for port in about["outputs"]]
        self.ports = about["state"]
        self.state = state or {port["input"]: self.empty(port) for port in self.ports}

    @staticmethod
    def empty(port: dict) -> np.ndarray:
        """A state that holds nothing, for a batch of one: zeros."""
        return np.zeros([1, *port["shape"][1:]], port["dtype"])

    def __call__(self, **inputs: np.ndarray) -> np.ndarray:
        names = self.outputs + [port["output"] for port in self.ports]
        found = dict(zip(names, self.session.run(names, inputs | self.state), strict=True))
        self.state = {port["input"]: found[port["output"]] for port in self.ports}
        return found[self.outputs[0]]


def choose(logits: np.ndarray, temperature: float, random: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    # The largest of the logits with Gumbel noise is a draw from their softmax.
    return int((logits / temperature + random.gumbel(size=logits.shape)).argmax())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write text with an exported language model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompt", nargs="?", default="")
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--begin", type=int, metavar="TOKEN", help="what a text begins with, in place of graph.json's")
    options = parser.parse_args()

    about = json.loads((options.folder / "graph.json").read_text(encoding="utf-8"))
    model, random = about["model"], np.random.default_rng(options.seed)
    begin = model.get("begin") if options.begin is None else options.begin
    if begin is None:
        parser.error("graph.json does not say which token a text begins with; give its number with --begin")
    ends = model.get("end", [])  # where none is known, a text is as long as asked
    tokenizer = json.loads((options.folder / "tokenizer.json").read_text(encoding="utf-8"))
    if tokenizer == {"kind": "bytes"}:
        first, decoder = model["first_byte"], codecs.getincrementaldecoder("utf-8")("replace")
        prompt = [byte + first for byte in options.prompt.encode()]

        def decode(token: int) -> str:
            return decoder.decode(bytes([token - first])) if token >= first else ""
    else:
        import tokenizers

        subwords = tokenizers.Tokenizer.from_file(str(options.folder / "tokenizer.json"))
        subwords.encode_special_tokens = True  # a prompt may speak of "<bos>" without beginning there
        waiting: list[int] = []
        prompt = subwords.encode(options.prompt, add_special_tokens=False).ids

        def decode(token: int) -> str:
            waiting.append(token)
            text = subwords.decode(waiting)
            if text.endswith("\ufffd") and len(waiting) < 4:  # bytes of a character whose others are still to come
                return ""
            waiting.clear()
            return text

    chunk = Graph(options.folder, about["graphs"]["chunk"])
    tokens = np.array([[begin, *prompt]], np.int64)
    for place in range(0, tokens.shape[1], PIECE):
        logits = chunk(tokens=tokens[:, place : place + PIECE])[0, -1]
    step = Graph(options.folder, about["graphs"]["step"], chunk.state)
    print(options.prompt, end="", flush=True)
    for _ in range(options.length):
        token = choose(logits, options.temperature, random)
        if token in ends:
            break
        print(decode(token), end="", flush=True)
        logits = step(tokens=np.array([token], np.int64))[0]
    print()


if __name__ == "__main__":
    main()
