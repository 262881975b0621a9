"""The three layouts of a Vision Transformer's weights, and ways from one to another."""
import zipfile

import numpy as np

TIMM_TO_HF = [("cls_token", "vit.embeddings.cls_token"),
              ("pos_embed", "vit.embeddings.position_embeddings"),
              ("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
              ("blocks.", "vit.encoder.layer."), ("norm.", "vit.layernorm."),
              ("head.", "classifier.")]
IN_BLOCK = [(".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after."),
            (".attn.proj.", ".attention.output.dense."), (".mlp.fc1.", ".intermediate.dense."),
            (".mlp.fc2.", ".output.dense.")]
# The module of transformers 5 and the name under which its weights are stored.
MODULES = [("vit.layers.", "vit.encoder.layer."), (".attention.q_proj.", ".attention.attention.query."),
           (".attention.k_proj.", ".attention.attention.key."),
           (".attention.v_proj.", ".attention.attention.value."),
           (".attention.o_proj.", ".attention.output.dense."),
           (".mlp.fc1.", ".intermediate.dense."), (".mlp.fc2.", ".output.dense.")]


def stored_names(model):
    """Parameter of the model -> its name in the file."""
    out = {}
    for name in model.state_dict():
        stored = name
        if name.startswith("vit."):
            for a, b in MODULES:
                stored = stored.replace(a, b)
        out[name] = stored
    return out


def timm_to_hf(state):
    out = {}
    for name, v in state.items():
        for a, b in TIMM_TO_HF:
            if name.startswith(a):
                name = b + name[len(a):]
                break
        for a, b in IN_BLOCK:
            name = name.replace(a, b)
        if ".attn.qkv." not in name:
            out[name] = v.clone()
            continue
        for part, piece in zip(("query", "key", "value"), v.chunk(3)):
            out[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = piece.clone()
    return out


def npz_arrays(state, heads):
    """As the authors' code (Flax) stores them: kernels [in, out], heads apart."""
    s = {k: v.detach().numpy() for k, v in state.items()}
    width = s["cls_token"].shape[-1]
    out = {"cls": s["cls_token"], "Transformer/posembed_input/pos_embedding": s["pos_embed"],
           "embedding/kernel": s["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
           "embedding/bias": s["patch_embed.proj.bias"]}

    def dense(to, name):
        out[to + "/kernel"] = s[name + ".weight"].T
        out[to + "/bias"] = s[name + ".bias"]

    def norm(to, name):
        out[to + "/scale"] = s[name + ".weight"]
        out[to + "/bias"] = s[name + ".bias"]

    block = 0
    while f"blocks.{block}.norm1.weight" in s:
        b, to = f"blocks.{block}.", f"Transformer/encoderblock_{block}/"
        norm(to + "LayerNorm_0", b + "norm1")
        norm(to + "LayerNorm_2", b + "norm2")
        dense(to + "MlpBlock_3/Dense_0", b + "mlp.fc1")
        dense(to + "MlpBlock_3/Dense_1", b + "mlp.fc2")
        mha = to + "MultiHeadDotProductAttention_1/"
        for i, part in enumerate(("query", "key", "value")):
            rows = slice(i * width, (i + 1) * width)
            out[mha + part + "/kernel"] = s[b + "attn.qkv.weight"][rows].T.reshape(width, heads, -1)
            out[mha + part + "/bias"] = s[b + "attn.qkv.bias"][rows].reshape(heads, -1)
        out[mha + "out/kernel"] = s[b + "attn.proj.weight"].T.reshape(heads, -1, width)
        out[mha + "out/bias"] = s[b + "attn.proj.bias"]
        block += 1
    norm("Transformer/encoder_norm", "norm")
    dense("head", "head")
    return out


def write_npz(path, state, heads, extra=None):
    arrays = {**npz_arrays(state, heads), **(extra or {})}
    with zipfile.ZipFile(path, "w") as z:  # np.savez, but with a fixed date
        for name, v in sorted(arrays.items()):
            info = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
            with z.open(info, "w") as f:
                np.lib.format.write_array(f, np.asarray(v))
