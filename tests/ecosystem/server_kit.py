"""A real graft server for tests of its clients, and a tiny model made by transformers.

usage: python3 server_kit.py DIR    writes that model into DIR (for clients that are not Python)
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
GRAFT = os.environ.get("GRAFT_BIN", str(ROOT / "build" / "graft"))


def make_model(directory):
    """A Llama of 2 layers and width 16 with a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    import conftest  # noqa: F401 (a torchvision for CUDA)
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=len(fast), hidden_size=16, intermediate_size=32,
                         num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                         max_position_embeddings=64, bos_token_id=fast.bos_token_id,
                         eos_token_id=fast.eos_token_id, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(directory)
    fast.save_pretrained(directory)


class Server:
    """`with Server() as s:`; s.url, s.models (the model root), s.requests(method, part of target)."""

    def __init__(self, *args):
        self.args = args

    def __enter__(self):
        self.dir = tempfile.TemporaryDirectory(prefix="graft-eco-")
        base = pathlib.Path(self.dir.name)
        self.models = base / "models"
        self.models.mkdir()
        self.log = base / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [GRAFT, "serve", "--listen", "127.0.0.1:0", "--data", str(base / "data"),
                 "--model-root", str(self.models), "--poll-ms", "20", *self.args], stderr=log)
        until = time.time() + 30
        while True:
            line = next((x for x in self.lines() if x.get("msg") == "listening"), None)
            if line:
                break
            if self.process.poll() is not None or time.time() > until:
                raise RuntimeError("the server did not start: " + self.log.read_text())
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{line['port']}"
        return self

    def __exit__(self, *exc):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.dir.cleanup()
        assert code == 0, f"the server ended with {code}"

    def lines(self):
        out = []
        for text in self.log.read_text().splitlines():
            try:
                out.append(json.loads(text))
            except ValueError:
                pass
        return out

    def requests(self, method, part, status=None):
        """How many requests of this kind the server has answered (so). Its log follows the answer,
        so it is read once it has been quiet for a while."""
        seen, lines = None, len(self.lines())
        while lines != seen:
            time.sleep(0.3)
            seen, lines = lines, len(self.lines())
        return sum(x.get("msg") == "request" and x.get("method") == method
                   and part in x.get("target", "") and status in (None, x.get("status"))
                   for x in self.lines())


ROWS = "".join(json.dumps({"prompt": f"{i} + 1 =", "completion": f" {i + 1}"}) + "\n"
               for i in range(24))

if __name__ == "__main__":
    make_model(sys.argv[1])
