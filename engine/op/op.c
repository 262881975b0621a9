/* The registry, and the recording functions of op.h. */
#include "engine/op/op.h"

#include "engine/op/op_rules.h"

#include <string.h>

#define NO_GRAD(flags) (((flags) & F_GRAD) == 0)

const struct op_info op_table[OP_COUNT] = {
#define OP(ID, opname, attrs, least, most, outs, place, opflags)                                  \
    [OP_##ID] = {.name = #opname,                                                                 \
                 .least_in = least,                                                               \
                 .most_in = most,                                                                 \
                 .nout = outs,                                                                    \
                 .inplace = place,                                                                \
                 .flags = opflags,                                                                \
                 .attr_bytes = sizeof(struct attrs),                                              \
                 .signature = sign_##opname,                                                      \
                 .shape = shape_##opname,                                                         \
                 .cost = cost_##opname,                                                           \
                 .grad = NO_GRAD(opflags) ? NULL : grad_##opname},
#include "engine/op/ops.def"
#undef OP
};

#define OP(ID, name, attrs, least, most, outs, inplace, flags)                                    \
    _Static_assert(sizeof(struct attrs) <= NODE_ATTRS && (least) >= 1 && (least) <= (most) &&     \
                       (most) <= NODE_IN && (outs) <= NODE_OUT && (inplace) < (most),             \
                   #name);
#include "engine/op/ops.def"
#undef OP

enum dtype op_compute(int op, const struct tensor *const *in, const struct tensor *const *out)
{
    const struct tensor *const *x = in;
    for (const char *w = op_table[op].signature; *w; w += strcspn(w, " "), w += *w == ' ') {
        if (*w == 'c' && *x) return (*x)->dtype;
        x = *w == '>' ? out : x + 1;
    }
    return DT_F32;
}

static int record(struct tape *t, enum op_id op, const void *attrs, const int *in, int nin,
                  int *out)
{
    return tape_record(t, op, attrs, op_table[op].attr_bytes, in, nin, out);
}

int op_embed(struct tape *t, int ids, int table)
{
    const struct attrs_embed a = {(int)t->compute};
    return record(t, OP_EMBED, &a, (int[]){ids, table}, 2, NULL);
}

int op_linear(struct tape *t, int x, int w, int bias, int add, float alpha)
{
    return op_linear_wt(t, x, w, bias, add, &(struct attrs_linear){.alpha = alpha});
}

int op_linear_wt(struct tape *t, int x, int w, int bias, int add, const struct attrs_linear *a)
{
    return record(t, OP_LINEAR, a, (int[]){x, w, bias, add}, 4, NULL);
}

int op_rmsnorm(struct tape *t, int x, int w, float eps)
{
    const struct attrs_norm a = {eps};
    return record(t, OP_RMSNORM, &a, (int[]){x, w}, 2, NULL);
}

int op_layernorm(struct tape *t, int x, int w, int b, float eps)
{
    const struct attrs_norm a = {eps};
    return record(t, OP_LAYERNORM, &a, (int[]){x, w, b}, 3, NULL);
}

int op_rope(struct tape *t, int x, int pos, int freq)
{
    const struct attrs_rope a = {1.0f};
    return record(t, OP_ROPE, &a, (int[]){x, pos, freq}, 3, NULL);
}

int op_attn(struct tape *t, int q, int k, int v, int range, float scale)
{
    return op_attn_bias(t, (int[]){q, k, v}, range, -1, scale);
}

int op_attn_bias(struct tape *t, const int qkv[3], int range, int bias, float scale)
{
    const struct attrs_attn a = {scale};
    return record(t, OP_ATTN, &a, (int[]){qkv[0], qkv[1], qkv[2], range, bias}, 5, NULL);
}

int op_swiglu(struct tape *t, int g, int u)
{
    return record(t, OP_SWIGLU, NULL, (int[]){g, u}, 2, NULL);
}

int op_act(struct tape *t, int x, enum act_kind kind)
{
    const struct attrs_act a = {(int)kind};
    return record(t, OP_ACT, &a, &x, 1, NULL);
}

int op_add(struct tape *t, int a, int b)
{
    return record(t, OP_ADD, NULL, (int[]){a, b}, 2, NULL);
}

int op_scale(struct tape *t, int x, int s, float alpha)
{
    const struct attrs_alpha a = {alpha};
    return record(t, OP_SCALE, &a, (int[]){x, s == -1 ? tape_one(t) : s}, 2, NULL);
}

int op_dropout(struct tape *t, int x, float p, uint32_t salt)
{
    const struct attrs_dropout a = {p, salt};
    if (p == 0.0f) return t->err.code ? -1 : x;
    return record(t, OP_DROPOUT, &a, &x, 1, NULL);
}

int op_rows(struct tape *t, int x, int idx)
{
    return record(t, OP_ROWS, NULL, (int[]){x, idx}, 2, NULL);
}

int op_slice(struct tape *t, int x, int64_t at, int64_t width)
{
    const struct attrs_slice a = {at, width};
    return record(t, OP_SLICE, &a, &x, 1, NULL);
}

int op_patches(struct tape *t, int image, int64_t size)
{
    const struct attrs_patches a = {size, (int)t->compute};
    return record(t, OP_PATCHES, &a, &image, 1, NULL);
}

int op_prefix(struct tape *t, int prefix, int x)
{
    return record(t, OP_PREFIX, NULL, (int[]){prefix, x}, 2, NULL);
}

int op_linear_ce(struct tape *t, int x, int w, int target, int weight, int *hits)
{
    int out[NODE_OUT] = {-1, -1, -1, -1};
    record(t, OP_LINEAR_CE, NULL, (int[]){x, w, target, weight}, 4, out);
    if (hits) *hits = out[3];
    return out[0];
}

int op_ce(struct tape *t, int logits, int target, int weight, int *hits)
{
    int out[NODE_OUT] = {-1, -1, -1, -1};
    record(t, OP_CE, NULL, (int[]){logits, target, weight}, 3, out);
    if (hits) *hits = out[2];
    return out[0];
}

int op_kv_store(struct tape *t, int cache, int x, int pos)
{
    return record(t, OP_KV_STORE, NULL, (int[]){cache, x, pos}, 3, NULL);
}

int op_sumsq(struct tape *t, int x, int acc)
{
    return record(t, OP_SUMSQ, NULL, (int[]){x, acc}, 2, NULL);
}

int op_clip(struct tape *t, int sumsq, float max_norm, int *norm)
{
    const struct attrs_clip a = {max_norm};
    int out[NODE_OUT] = {-1, -1, -1, -1};
    record(t, OP_CLIP, &a, &sumsq, 1, out);
    if (norm) *norm = out[1];
    return out[0];
}

int op_adamw(struct tape *t, struct param *p, int hyper, int scale, const struct attrs_adamw *a)
{
    int w = tape_param(t, p, SLOT_DATA), g = tape_param(t, p, SLOT_GRAD);
    int m = tape_param(t, p, SLOT_M), v = tape_param(t, p, SLOT_V);
    return record(t, OP_ADAMW, a, (int[]){w, g, m, v, hyper, scale}, 6, NULL);
}
