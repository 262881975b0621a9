#include "tests/op/optest.h"

#include "engine/base/mem.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* Every attribute that a kernel reads, and what it would be if the kernel forgot to look.
 * Zero is written as a float, which is the integer 0 too. ADAMW's group is for the schedule; the
 * rows of EMBED_DW, ROWS_DX and PREFIX_*, SLICE's width and PATCHES' size are shapes. */
static const struct { int op; size_t offset; float value; } attributes[] = {
    {OP_LINEAR, offsetof(struct attrs_linear, alpha), 1},
    {OP_LINEAR, offsetof(struct attrs_linear, wt), 0},
    {OP_LINEAR_DX, offsetof(struct attrs_linear, alpha), 1},
    {OP_LINEAR_DX, offsetof(struct attrs_linear, wt), 0},
    {OP_LINEAR_DW, offsetof(struct attrs_linear, alpha), 1},
    {OP_LINEAR_DW, offsetof(struct attrs_linear, wt), 0},
    {OP_SCALE, offsetof(struct attrs_alpha, alpha), 1},
    {OP_RMSNORM, offsetof(struct attrs_norm, eps), 1e-5f},
    {OP_LAYERNORM, offsetof(struct attrs_norm, eps), 1e-5f},
    {OP_ACT, offsetof(struct attrs_act, kind), 0},
    {OP_ACT_BWD, offsetof(struct attrs_act, kind), 0},
    {OP_SLICE, offsetof(struct attrs_slice, at), 0},
    {OP_SLICE_DX, offsetof(struct attrs_slice, at), 0},
    {OP_ROPE, offsetof(struct attrs_rope, sign), 1},
    {OP_ATTN, offsetof(struct attrs_attn, scale), 1},
    {OP_ATTN_BWD, offsetof(struct attrs_attn, scale), 1},
    {OP_DROPOUT, offsetof(struct attrs_dropout, p), 0.5f},
    {OP_DROPOUT, offsetof(struct attrs_dropout, salt), 0},
    {OP_CLIP, offsetof(struct attrs_clip, max_norm), 1},
    {OP_ADAMW, offsetof(struct attrs_adamw, c1), 0.1f},
    {OP_ADAMW, offsetof(struct attrs_adamw, c2), 1e-3f},
    {OP_ADAMW, offsetof(struct attrs_adamw, beta2), 0.999f},
    {OP_ADAMW, offsetof(struct attrs_adamw, eps), 1e-8f},
};

static const char *const names[MUTANT_KINDS] = {
    [GRAD_SCALED] = "gradient x 1.01", [GRAD_NEGATED] = "gradient negated",
    [GRAD_DROPPED] = "gradient dropped", [GRAD_ROW] = "last row of the gradient skipped",
    [GRAD_TRANSPOSED] = "gradient transposed", [GRAD_OVERWRITTEN] = "gradient = instead of +=",
    [OUT_SCALED] = "output x 1.01", [OUT_NEGATED] = "output negated",
    [OUT_ROW] = "last row skipped", [OUT_BF16] = "accumulated in bf16",
    [OUT_OVERRUN] = "write past the end", [OUT_UNDERRUN] = "write before the start",
    [OUT_THREADS] = "depends on the thread count", [OUT_RANDOM] = "differs from run to run",
    [OUT_SHARED] = "wrong in place", [OUT_ALONE] = "wrong when an output is not wanted",
    [OUT_SHIFTED] = "wrong for unaligned inputs", [OUT_WORKSPACE] = "reads stale workspace",
    [OUT_OVERWRITTEN] = "= instead of +=", [IN_TRANSPOSED] = "operand transposed",
    [IN_WRITTEN] = "writes its input", [ATTR_IGNORED] = "attribute ignored",
    [WS_OVERRUN] = "writes past its workspace",
};

const char *mutant_name(enum mutant_kind k)
{
    return names[k];
}

static int places(enum mutant_kind k)
{
    if (k == ATTR_IGNORED) return REF_LEN(attributes);
    if (k == WS_OVERRUN || k == GRAD_OVERWRITTEN) return 1;
    return k >= IN_TRANSPOSED || k < OUT_SCALED ? NODE_IN : NODE_OUT;
}

bool mutant_next(struct mutant *m, bool gradients)
{
    int kind = m->kind, at = m->at + 1;
    if (kind == MUTANT_NONE || at >= places(m->kind)) {
        kind = kind == MUTANT_NONE && !gradients ? OUT_SCALED : kind + 1;
        at = 0;
    }
    *m = (struct mutant){.kind = kind, .at = at};
    return kind < (gradients ? OUT_SCALED : MUTANT_KINDS);
}

void mutant_gradient(struct mutant *m, int at, struct ref_tensor *g)
{
    if (m->kind >= GRAD_OVERWRITTEN || m->kind == MUTANT_NONE || m->at != at) return;
    int64_t n = g->count, rows = g->rank ? g->shape[0] : 1;
    double was = 0, is = 0;
    for (int64_t i = 0; i < n; i++) was += fabs(g->d[i]);
    if (m->kind == GRAD_TRANSPOSED && (g->rank != 2 || g->shape[0] < 2 || g->shape[1] < 2)) return;
    if (n == 0 || was == 0) return;
    double *old = mem_dup(g->d, sizeof *old * (size_t)n, &(struct err){0});
    if (!old) return;
    for (int64_t i = 0; i < n; i++) {
        switch (m->kind) {
        case GRAD_SCALED: g->d[i] *= 1.01; break;
        case GRAD_NEGATED: g->d[i] = -g->d[i]; break;
        case GRAD_DROPPED: g->d[i] = 0; break;
        case GRAD_ROW: g->d[i] = i >= n - n / rows ? 0 : g->d[i]; break;
        default: g->d[i] = old[i % rows * (n / rows) + i / rows]; break;
        }
        is += fabs(g->d[i] - old[i]);
    }
    m->applied = m->applied || is > 0;
    mem_free(old);
}

/* ---- kernels ---- */

bool mutant_fits(const struct mutant *m, int op, const struct op_sample *s)
{
    const struct op_info *info = &op_table[op];
    bool output = m->at < info->nout;
    const struct ref_tensor *x = &s->in[m->at < NODE_IN ? m->at : 0];
    switch (m->kind) {
    case ATTR_IGNORED: return attributes[m->at].op == op;
    case WS_OVERRUN: return true;
    case IN_WRITTEN: return x->d && !(s->state >> m->at & 1);
    case IN_TRANSPOSED:
        return x->d && x->dtype != DT_I32 && x->rank == 2 && x->shape[0] > 1 && x->shape[1] > 1;
    case OUT_SHARED: return m->at == 0 && info->inplace >= 0 && !(info->flags & F_STATE);
    case OUT_ALONE: return output && info->nout > 1;
    case OUT_OVERWRITTEN: return output && (info->flags & F_ACCUM);
    default: return output;
    }
}

static void change_attrs(struct mutant *m, int op, struct step *s, unsigned char copy[NODE_ATTRS])
{
    uint32_t bits;
    float value = attributes[m->at].value;
    memcpy(copy, s->attrs, op_table[op].attr_bytes);
    memcpy(&bits, copy + attributes[m->at].offset, sizeof bits);
    m->applied = m->applied || memcmp(&bits, &value, sizeof bits) != 0;
    memcpy(copy + attributes[m->at].offset, &value, sizeof value);
    s->attrs = copy;
}

/* A transposed copy of a matrix operand. */
static void *transposed(const struct mutant *m, const struct step *s)
{
    const struct tensor *t = s->tin[m->at];
    size_t size = dtype_size(t->dtype);
    char *copy = mem_alloc(size * (size_t)t->count, &(struct err){0});
    const char *from = s->in[m->at];
    int64_t rows = t->shape[0], width = t->shape[1];
    for (int64_t i = 0; copy && i < t->count; i++)
        memcpy(copy + size * (size_t)i, from + size * (size_t)(i % rows * width + i / rows), size);
    return copy;
}

static bool nudge(const struct step *s, int at)
{
    if (!s->out[at] || !s->tout[at]->count) return false;
    *(unsigned char *)s->out[at] ^= 1;
    return true;
}

/* Distorts the values of one output; true if that made a difference. */
static bool change_values(enum mutant_kind kind, float *y, const float *before,
                          const struct tensor *t)
{
    int64_t rows = t->rank ? t->shape[0] : 1, first = t->count - t->count / (rows ? rows : 1);
    bool changed = false;
    for (int64_t i = 0; i < t->count; i++) {
        float was = y[i];
        if (kind == OUT_SCALED) y[i] *= 1.01f;
        if (kind == OUT_NEGATED) y[i] = -y[i];
        if (kind == OUT_BF16) y[i] = (float)ref_round(DT_BF16, (double)y[i]);
        if (kind == OUT_ROW && i >= first) y[i] = before[i];
        /* -0 and NaN stay what they are: no difference that counts. */
        changed = changed || (y[i] != was && !isnan(was));
    }
    return changed;
}

static bool misaligned(const struct step *s)
{
    for (int i = 0; i < NODE_IN; i++)
        if ((uintptr_t)s->in[i] % 256) return true;
    return false;
}

/* Acts after the kernel on output `at` by flipping its lowest bit, if the circumstance is there. */
static bool circumstance(const struct mutant *m, int op, const struct step *s, const struct exec *x)
{
    bool missing = false;
    switch (m->kind) {
    case OUT_THREADS: return pool_threads(x->pool) > 1;
    case OUT_RANDOM: return m->calls % 2 == 1;
    case OUT_SHARED: return s->out[0] == s->in[op_table[op].inplace];
    case OUT_ALONE:
        for (int i = 0; i < op_table[op].nout; i++) missing = missing || !s->out[i];
        return missing;
    case OUT_SHIFTED: return misaligned(s);
    case OUT_WORKSPACE: return s->ws_bytes > 0 && *(const unsigned char *)s->ws == 0xff;
    default: return false;
    }
}

static void after(struct mutant *m, int op, const struct step *s, struct exec *x,
                  const float *before, bool stale)
{
    bool done = false;
    unsigned char *y = m->at < NODE_OUT && m->kind < OUT_OVERWRITTEN ? s->out[m->at] : NULL;
    switch (m->kind) {
    case OUT_SCALED:
    case OUT_NEGATED:
    case OUT_ROW:
    case OUT_BF16:
        if (y) done = change_values(m->kind, (float *)y, before, s->tout[m->at]);
        break;
    case OUT_OVERRUN:
        if (y) y[4 * s->tout[m->at]->count] ^= 1, done = true;
        break;
    case OUT_UNDERRUN:
        if (y) y[-1] ^= 1, done = true;
        break;
    case WS_OVERRUN:
        if (s->ws_bytes) ((unsigned char *)s->ws)[s->ws_bytes] ^= 1, done = true;
        break;
    case IN_WRITTEN:
        if (s->tin[m->at]->count)
            *(unsigned char *)s->in[m->at] ^= 1, done = true;
        break;
    case OUT_WORKSPACE: done = stale && nudge(s, m->at); break;
    default:
        if (y && circumstance(m, op, s, x)) done = nudge(s, m->at);
        break;
    }
    m->applied = m->applied || done;
}

int mutant_run(op_run_fn fn, int op, const struct step *s, struct exec *x, struct mutant *m,
               struct err *e)
{
    struct step copy = *s;
    unsigned char attrs[NODE_ATTRS];
    void *operand = NULL;
    float *before = NULL;
    int rc = -1;
    if (m->kind == MUTANT_NONE) return fn(s, x, e);
    if (m->kind == ATTR_IGNORED) change_attrs(m, op, &copy, attrs);
    if (m->kind == IN_TRANSPOSED && (operand = transposed(m, s))) {
        copy.in[m->at] = operand;
        m->applied = true;
    }
    if (m->kind == OUT_OVERWRITTEN && copy.accum >> m->at & 1) {
        copy.accum &= ~(1u << m->at);
        m->applied = m->applied || s->tout[m->at]->count > 0;
    }
    if (m->kind == OUT_ROW && s->out[m->at]) {
        before = mem_dup(s->out[m->at], 4 * (size_t)s->tout[m->at]->count, e);
        if (!before) goto out;
    }
    m->calls++;
    bool stale = m->kind == OUT_WORKSPACE && circumstance(m, op, s, x);
    rc = fn(&copy, x, e);
    if (!rc) after(m, op, s, x, before, stale);
out:
    mem_free(operand);
    mem_free(before);
    return rc;
}
