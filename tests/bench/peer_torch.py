"""The PyTorch side of bench_train: one training step per line of stdin.

usage: peer_torch.py WORKLOAD [OPTION...]     OPTION: compile, eager, threads=N, small

Answers "ready <number of trained parameters> ..." once the model is built, then "<seconds> <loss> <CPU seconds>" to each line
"step", and "<KiB>" (VmHWM of this process) to "rss". Weights are random; nothing is downloaded.
"""
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
OPTIONS = dict((o.split("=") + ["1"])[:2] for o in sys.argv[2:])
THREADS = int(OPTIONS.get("threads", "2"))
os.environ["OMP_NUM_THREADS"] = str(THREADS)
sys.modules["torchvision"] = None  # not needed; one built for another torch fails to import

import torch  # noqa: E402

torch.set_num_threads(THREADS)
torch.manual_seed(1)
ATTENTION = "eager" if "eager" in OPTIONS else "sdpa"


def lora(model, r, targets, **more):
    from peft import LoraConfig, get_peft_model
    return get_peft_model(model, LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=0.0, bias="none",
                                            target_modules=targets, **more))


def smollm_lora():
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3, vocab_size=49152,
                         max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=100000.0,
                         tie_word_embeddings=True, use_cache=False,
                         attn_implementation=ATTENTION)
    model = lora(LlamaForCausalLM(config), 16, "all-linear", task_type="CAUSAL_LM")
    return model, text(49152, 4, 512)


def gpt2_full():
    from transformers import GPT2Config, GPT2LMHeadModel
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
                        attn_implementation=ATTENTION)
    return GPT2LMHeadModel(config), text(50257, 4, 256)


def vit_lora():
    from transformers import ViTConfig, ViTForImageClassification
    config = ViTConfig(num_labels=100, attn_implementation=ATTENTION)
    model = lora(ViTForImageClassification(config), 8, "all-linear",
                 modules_to_save=["classifier"], exclude_modules=["classifier"])
    return model, {"pixel_values": torch.randn(16, 3, 224, 224),
                   "labels": torch.randint(0, 100, (16,))}


def text(vocab, batch, length):
    ids = torch.randint(0, vocab, (batch, length))
    return {"input_ids": ids, "labels": ids}


WORKLOADS = {"smollm_lora": smollm_lora, "gpt2_full": gpt2_full, "vit_lora": vit_lora}


def main():
    model, batch = WORKLOADS[sys.argv[1]]()
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    forward = torch.compile(model) if "compile" in OPTIONS else model

    def step():
        loss = forward(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.item()

    print("ready", sum(p.numel() for p in trained), "trained parameters; PyTorch",
          torch.__version__, ATTENTION, "compiled" if "compile" in OPTIONS else "not compiled",
          THREADS, "threads", flush=True)
    for line in sys.stdin:
        if line.strip() == "step":
            start, cpu = time.perf_counter(), time.process_time()
            loss = step()
            print(time.perf_counter() - start, loss, time.process_time() - cpu, flush=True)
        else:
            with open("/proc/self/status") as f:
                print(next(s.split()[1] for s in f if s.startswith("VmHWM")), flush=True)


main()
