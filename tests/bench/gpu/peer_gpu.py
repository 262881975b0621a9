"""The PyTorch side of bench_gpu: LoRA of all linear layers of a random Llama in bf16 on the GPU.

usage: peer_gpu.py llama1b|toy [compile]

Answers "ready <description>" once the model is built, then "<seconds> <loss>" to each line "step",
and the most device memory that was allocated at once, in MiB, to "memory". Nothing is downloaded.
Adapters are in bf16 like the rest, which is the fastest that PEFT offers.
"""
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
sys.modules["torchvision"] = None  # not needed; one built for another torch fails to import

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

JOBS = {
    "llama1b": (dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                     num_attention_heads=32, num_key_value_heads=8, head_dim=64,
                     vocab_size=128256, max_position_embeddings=131072), 8, 1024),
    "toy": (dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, vocab_size=300,
                 max_position_embeddings=128), 2, 48),
}


def main():
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU")
    sizes, batch, length = JOBS[sys.argv[1]]
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(rms_norm_eps=1e-5, tie_word_embeddings=True, use_cache=False,
                         attn_implementation="sdpa", **sizes)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0,
                                                 bias="none", target_modules="all-linear",
                                                 task_type="CAUSAL_LM"),
                               autocast_adapter_dtype=False)
        ids = torch.randint(0, config.vocab_size, (batch, length))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    forward = torch.compile(model) if "compile" in sys.argv[2:] else model

    def step():
        loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.item()

    print("ready PyTorch", torch.__version__, torch.cuda.get_device_name(),
          sum(p.numel() for p in trained), "trained parameters,",
          "compiled" if forward is not model else "not compiled", flush=True)
    for line in sys.stdin:
        if line.strip() == "step":
            torch.cuda.synchronize()
            start = time.perf_counter()
            loss = step()
            torch.cuda.synchronize()
            print(time.perf_counter() - start, loss, flush=True)
        else:
            print(torch.cuda.max_memory_allocated() / 2**20, flush=True)


main()
