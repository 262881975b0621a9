/* Runs kernels on buffers of the harness: outputs start as signalling NaN, every buffer has guard
 * bands, inputs may not change, workspaces hold garbage. */
#include "tests/op/optest.h"

#include "engine/base/mem.h"
#include "engine/base/rng.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { GUARD = 256, GUARD_BYTE = 0xa5, CAP = 1 << 30 };

static const uint32_t signalling_nan = 0x7fa07fa0; /* as f32, and as two of bf16 */
static const int thread_counts[OPTEST_EXECS] = {1, 2, 3, 7};

/* One way to call the kernel. */
struct variant {
    const char *what;
    int exec;           /* index into kernels.exec */
    unsigned accum;     /* bit i: output i += */
    unsigned unwanted;  /* bit i: output i is NULL */
    bool in_place;
    bool shifted;       /* inputs one element off their alignment */
    unsigned char dirt; /* what the workspace holds */
};

/* A buffer between two guard bands. */
struct block {
    unsigned char *p;
    size_t bytes;
    size_t guard; /* bytes of the band before p; the one behind ends at a multiple of GUARD */
    size_t shift; /* of p from a multiple of GUARD */
    uint64_t hash;
    void *there, *at; /* on a device: what was allocated, and where p is */
};

struct bench {
    const struct kernels *kernels;
    int op;
    const struct op_sample *s;
    struct mutant *m;
    struct tensor tin[NODE_IN], tout[NODE_OUT];
    const struct tensor *pin[NODE_IN], *pout[NODE_OUT];
    struct arena arena;
    /* What is expected: outputs and updated states, in double. */
    struct ref_tensor out[NODE_OUT], state[NODE_IN];
    double tolerance;
};

/* What one run leaves: bytes of outputs and states. */
struct result {
    struct block out[NODE_OUT], in[NODE_IN], ws;
};

/* ---- blocks ---- */

static int block_new(struct bench *b, struct block *k, size_t bytes, size_t shift, struct err *e)
{
    unsigned char *base = arena_alloc(&b->arena, bytes + shift + 3 * GUARD, e);
    if (!base) return -1;
    size_t start = GUARD - (uintptr_t)base % GUARD + shift;
    if (start < GUARD) start += GUARD;
    *k = (struct block){.p = base + start, .bytes = bytes, .shift = shift, .guard = start};
    memset(base, GUARD_BYTE, bytes + shift + 3 * GUARD);
    return 0;
}

static bool block_ok(const struct block *k)
{
    for (size_t i = 1; i <= k->guard; i++)
        if (k->p[-(ptrdiff_t)i] != GUARD_BYTE) return false;
    for (size_t i = 0; i < GUARD; i++)
        if (k->p[k->bytes + i] != GUARD_BYTE) return false;
    return true;
}

static uint64_t block_hash(const struct block *k)
{
    uint64_t h = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < k->bytes; i++) h = (h ^ k->p[i]) * 0x100000001b3ull;
    return h;
}

/* ---- one run ---- */

/* What output j holds before an accumulating run. */
static double before(const struct bench *b, int j, int64_t i)
{
    float v = rng_uniform(b->s->key, RNG_USER + 20, (uint32_t)j, (uint64_t)i) - 0.5f;
    return ref_round(b->tout[j].dtype, (double)v);
}

static int make_inputs(struct bench *b, const struct variant *v, struct step *s, struct result *r,
                       struct err *e)
{
    for (int i = 0; i < b->s->nin; i++) {
        const struct ref_tensor *x = &b->s->in[i];
        if (!x->d) continue;
        size_t size = dtype_size(x->dtype), shift = v->shifted ? size : 0;
        if (block_new(b, &r->in[i], size * (size_t)x->count, shift, e)) return -1;
        optest_encode(x->dtype, x->d, x->count, r->in[i].p);
        r->in[i].hash = block_hash(&r->in[i]);
        s->in[i] = r->in[i].p;
        s->tin[i] = b->pin[i];
    }
    return 0;
}

static int make_outputs(struct bench *b, const struct variant *v, struct step *s, struct result *r,
                        struct err *e)
{
    const struct op_info *op = &op_table[b->op];
    for (int j = 0; j < op->nout; j++) {
        s->tout[j] = b->pout[j];
        if (v->unwanted >> j & 1) continue;
        if (j == 0 && ((op->flags & F_STATE) || v->in_place)) {
            r->out[0] = r->in[op->inplace];
            s->out[0] = r->out[0].p;
            continue;
        }
        const struct tensor *t = &b->tout[j];
        size_t size = dtype_size(t->dtype);
        if (block_new(b, &r->out[j], size * (size_t)t->count, 0, e)) return -1;
        for (int64_t i = 0; i < t->count; i++) {
            double old = before(b, j, i);
            if (v->accum >> j & 1) optest_encode(t->dtype, &old, 1, r->out[j].p + size * (size_t)i);
            else memcpy(r->out[j].p + size * (size_t)i, &signalling_nan, size);
        }
        s->out[j] = r->out[j].p;
    }
    return 0;
}

static int make_workspace(struct bench *b, const struct variant *v, struct step *s,
                          struct result *r, struct err *e)
{
    struct op_cost cost = {0};
    op_table[b->op].cost(b->s->attrs, b->pin, b->pout, thread_counts[v->exec], &cost);
    if (cost.flops < 0 || cost.bytes < 0 || cost.ws_bytes < 0)
        return err_set(e, E_BUG, "cost: negative numbers");
    const struct device *d = b->kernels->exec[v->exec]->device;
    if (d->ws) cost.ws_bytes = d->ws(b->op, b->s->attrs, b->pin, b->pout, cost.ws_bytes);
    if (!cost.ws_bytes) return 0;
    if (block_new(b, &r->ws, (size_t)cost.ws_bytes, 0, e)) return -1;
    memset(r->ws.p, v->dirt, r->ws.bytes);
    s->ws = r->ws.p;
    s->ws_bytes = cost.ws_bytes;
    return 0;
}

static int check_blocks(const struct bench *b, const struct variant *v, const struct result *r,
                        struct err *e)
{
    bool state = op_table[b->op].flags & F_STATE;
    for (int i = 0; i < b->s->nin; i++) {
        if (!r->in[i].p) continue;
        if (!block_ok(&r->in[i])) return err_set(e, E_BUG, "wrote around input %d", i);
        bool written = b->s->state >> i & 1 ||
                       ((state || v->in_place) && i == op_table[b->op].inplace);
        if (!written && block_hash(&r->in[i]) != r->in[i].hash)
            return err_set(e, E_BUG, "changed input %d", i);
    }
    for (int j = 0; j < op_table[b->op].nout; j++)
        if (r->out[j].p && !block_ok(&r->out[j]))
            return err_set(e, E_BUG, "wrote around output %d", j);
    if (r->ws.p && !block_ok(&r->ws)) return err_set(e, E_BUG, "wrote around the workspace");
    return 0;
}

/* ---- on a device with memory of its own ---- */

/* Bytes that go there with a block: of the bands, if nobody else sees strays. */
static size_t lead(const struct bench *b, const struct block *k)
{
    return k->shift + (b->kernels->watched ? 0 : GUARD);
}

static size_t span(const struct bench *b, const struct block *k)
{
    return lead(b, k) + k->bytes + (b->kernels->watched ? 0 : GUARD);
}

static int up(const struct bench *b, struct exec *x, struct block *k, struct err *e)
{
    if (!k->p) return 0;
    if (exec_alloc(x, span(b, k), &k->there, e)) return -1;
    k->at = (char *)k->there + lead(b, k);
    return exec_put(x, k->there, k->p - lead(b, k), span(b, k), e);
}

static int down(const struct bench *b, struct exec *x, struct block *k, struct err *e)
{
    if (!k->there) return 0;
    int rc = exec_get(x, k->p - lead(b, k), k->there, span(b, k), e);
    exec_release(x, k->there);
    k->there = NULL;
    return rc;
}

/* Output 0 may be an input (in place, a state): the same block then. */
static int call_there(const struct bench *b, const struct step *s, struct exec *x,
                      struct result *r, struct err *e)
{
    struct step there = *s;
    bool shared = false;
    int rc = up(b, x, &r->ws, e);
    for (int i = 0; i < NODE_IN && !rc; i++) {
        rc = up(b, x, &r->in[i], e);
        there.in[i] = r->in[i].at;
        if (!r->out[0].p || r->out[0].p != r->in[i].p) continue;
        there.out[0] = r->in[i].at;
        shared = true;
    }
    for (int j = shared; j < NODE_OUT && !rc; j++) {
        rc = up(b, x, &r->out[j], e);
        there.out[j] = r->out[j].at;
    }
    there.ws = r->ws.at;
    if (!rc) rc = exec_call(x, b->op, &there, e);
    struct err late = ERR_INIT, *late_e = rc ? &late : e;
    rc |= down(b, x, &r->ws, late_e);
    for (int i = 0; i < NODE_IN; i++) rc |= down(b, x, &r->in[i], late_e);
    for (int j = shared; j < NODE_OUT; j++) rc |= down(b, x, &r->out[j], late_e);
    return rc;
}

static int run(struct bench *b, const struct variant *v, struct result *r, struct err *e)
{
    struct exec *x = b->kernels->exec[v->exec];
    struct step s = {.attrs = b->s->attrs, .accum = v->accum};
    *r = (struct result){0};
    if (make_inputs(b, v, &s, r, e) || make_outputs(b, v, &s, r, e)) return -1;
    if (make_workspace(b, v, &s, r, e)) return -1;
    x->seed = b->s->key;
    x->rng_step = 3;
    if (b->kernels->order) b->kernels->order((uint64_t)v->exec);
    if (x->device->ops ? call_there(b, &s, x, r, e)
                       : mutant_run(b->kernels->table[b->op], b->op, &s, x, b->m, e))
        return -1;
    return check_blocks(b, v, r, e);
}

/* ---- expectations ---- */

static int expect(struct bench *b, unsigned accum, struct err *e)
{
    struct ref_tensor in[NODE_IN] = {0};
    struct ref_call c = {.attrs = b->s->attrs, .accum = accum, .seed = b->s->key, .rng_step = 3};
    for (int i = 0; i < b->s->nin; i++) {
        if (!b->s->in[i].d) continue;
        in[i] = b->s->in[i];
        in[i].d = arena_alloc(&b->arena, sizeof(double) * (size_t)(in[i].count + 1), e);
        if (!in[i].d) return -1;
        memcpy(in[i].d, b->s->in[i].d, sizeof(double) * (size_t)in[i].count);
        c.in[i] = &in[i];
        if (b->s->state >> i & 1) b->state[i] = in[i];
    }
    for (int j = 0; j < op_table[b->op].nout; j++) {
        struct ref_tensor *y = &b->out[j];
        *y = (struct ref_tensor){.dtype = b->tout[j].dtype, .rank = b->tout[j].rank};
        y->count = b->tout[j].count;
        memcpy(y->shape, b->tout[j].shape, sizeof y->shape);
        y->d = arena_alloc(&b->arena, sizeof(double) * (size_t)(y->count + 1), e);
        if (!y->d) return -1;
        for (int64_t i = 0; i < y->count; i++) y->d[i] = before(b, j, i);
        c.out[j] = y;
    }
    ref_table[b->op](&c);
    /* A state is output 0 itself. */
    if (op_table[b->op].flags & F_STATE) b->state[op_table[b->op].inplace].d = NULL;
    return 0;
}

static int near_one(struct bench *b, const struct block *got, const struct ref_tensor *want,
                    const char *what, int number, struct err *e)
{
    double *d = arena_alloc(&b->arena, sizeof *d * (size_t)(want->count + 1), e);
    if (!d) return -1;
    optest_decode(want->dtype, got->p, want->count, d);
    double off = optest_distance(d, want->d, want->count);
    if (off <= b->tolerance) return 0;
    return err_set(e, E_NUMERIC, "%s %d: relative L2 error %.3g, allowed %.3g", what, number, off,
                   b->tolerance);
}

static int near_reference(struct bench *b, const struct result *r, struct err *e)
{
    for (int j = 0; j < op_table[b->op].nout; j++)
        if (r->out[j].p && near_one(b, &r->out[j], &b->out[j], "output", j, e)) return -1;
    for (int i = 0; i < b->s->nin; i++)
        if (b->state[i].d && near_one(b, &r->in[i], &b->state[i], "state", i, e)) return -1;
    return 0;
}

static int equal(const struct bench *b, const struct result *r, const struct result *first,
                 struct err *e)
{
    for (int j = 0; j < op_table[b->op].nout; j++) {
        if (!r->out[j].p || !first->out[j].bytes) continue;
        if (memcmp(r->out[j].p, first->out[j].p, r->out[j].bytes) != 0)
            return err_set(e, E_NUMERIC, "output %d: other bytes than the first run", j);
    }
    for (int i = 0; i < b->s->nin; i++) {
        if (!(b->s->state >> i & 1) || !r->in[i].bytes) continue;
        if (memcmp(r->in[i].p, first->in[i].p, r->in[i].bytes) != 0)
            return err_set(e, E_NUMERIC, "state %d: other bytes than the first run", i);
    }
    return 0;
}

/* ---- the check ---- */

/* Runs variant v, which must give the bytes of `first`. */
static int repeat(struct bench *b, struct variant v, const struct result *first, struct err *e)
{
    struct result r;
    if (!run(b, &v, &r, e) && !equal(b, &r, first, e)) return 0;
    return err_wrap(e, "%s", v.what);
}

static int repeats(struct bench *b, const struct result *first, struct err *e)
{
    const struct op_info *op = &op_table[b->op];
    bool can_share = op->inplace >= 0 && !(op->flags & F_STATE) && b->s->in[op->inplace].d;
    if (repeat(b, (struct variant){.what = "again", .dirt = 0}, first, e)) return -1;
    if (repeat(b, (struct variant){.what = "unaligned", .shifted = true}, first, e)) return -1;
    for (int t = 1; t < OPTEST_EXECS; t++) {
        char what[24];
        snprintf(what, sizeof what, "%d threads", thread_counts[t]);
        if (repeat(b, (struct variant){.what = what, .exec = t, .dirt = 0x7f}, first, e)) return -1;
    }
    if (can_share && repeat(b, (struct variant){.what = "in place", .in_place = true}, first, e))
        return -1;
    for (unsigned mask = 1; mask + 1 < 1u << op->nout; mask++) {
        char what[40];
        snprintf(what, sizeof what, "outputs 0x%x not wanted", mask);
        if (repeat(b, (struct variant){.what = what, .unwanted = mask}, first, e)) return -1;
    }
    return 0;
}

static int accumulates(struct bench *b, unsigned bits, struct err *e)
{
    struct variant v = {.what = "+=", .accum = bits}, more = v;
    struct result r;
    if (expect(b, bits, e)) return -1;
    if (run(b, &v, &r, e) || near_reference(b, &r, e)) return err_wrap(e, "accum 0x%x", bits);
    more.exec = 2;
    return repeat(b, more, &r, e);
}

static int check(struct bench *b, struct err *e)
{
    const struct op_info *op = &op_table[b->op];
    struct variant plain = {.what = "plain", .dirt = 0xff};
    struct result first;
    if (expect(b, 0, e) || run(b, &plain, &first, e)) return -1;
    if (near_reference(b, &first, e) || repeats(b, &first, e)) return -1;
    if (!(op->flags & F_ACCUM)) return 0;
    for (int j = 0; j < op->nout; j++)
        if (accumulates(b, 1u << j, e)) return -1;
    return op->nout > 1 ? accumulates(b, (1u << op->nout) - 1, e) : 0;
}

static int shapes(struct bench *b, struct err *e)
{
    for (int i = 0; i < b->s->nin; i++) {
        const struct ref_tensor *x = &b->s->in[i];
        if (!x->d) continue;
        struct tensor *t = &b->tin[i];
        *t = (struct tensor){.dtype = x->dtype, .rank = x->rank, .count = x->count, .view_of = -1,
                             .producer = -1};
        memcpy(t->shape, x->shape, sizeof t->shape);
        snprintf(t->name, sizeof t->name, "in%d", i);
        b->pin[i] = t;
    }
    if (op_table[b->op].shape(b->s->attrs, b->pin, b->tout, e)) return -1;
    for (int j = 0; j < op_table[b->op].nout; j++) {
        struct tensor *t = &b->tout[j];
        t->count = 1;
        for (int k = 0; k < t->rank; k++) t->count *= t->shape[k];
        b->pout[j] = t;
    }
    return 0;
}

/* The sample with its compute tensors in bf16. Weights keep their type, but have values that a
 * kernel may convert to bf16. */
static int to_bf16(struct bench *b, const struct op_sample *s, struct op_sample *out, struct err *e)
{
    const char *w = op_table[b->op].signature;
    struct attrs_embed embed = {DT_BF16};
    *out = *s;
    for (int i = 0; i < s->nin; i++, w += strcspn(w, " "), w += *w == ' ') {
        struct ref_tensor *x = &out->in[i];
        if ((*w != 'c' && *w != 'a') || !x->d) continue;
        if (*w == 'c') x->dtype = DT_BF16;
        x->d = arena_alloc(&b->arena, sizeof(double) * (size_t)(x->count + 1), e);
        if (!x->d) return -1;
        for (int64_t n = 0; n < x->count; n++) x->d[n] = ref_round(DT_BF16, s->in[i].d[n]);
    }
    /* Without a compute input the attributes say what comes out. */
    if (b->op == OP_EMBED) memcpy(out->attrs, &embed, sizeof embed);
    if (b->op == OP_PATCHES) {
        struct attrs_patches patches;
        memcpy(&patches, out->attrs, sizeof patches);
        patches.compute = DT_BF16;
        memcpy(out->attrs, &patches, sizeof patches);
    }
    return 0;
}

/* The bytes of the peer, where an operation promises them. */
static int like_peer(struct bench *b, struct err *e)
{
    struct variant plain = {.what = "as the peer", .dirt = 0xff};
    struct bench peer = *b;
    struct result first;
    int rc = -1;
    if (!b->kernels->peer || !(op_table[b->op].flags & F_EXACT)) return 0;
    peer.kernels = b->kernels->peer;
    arena_init(&peer.arena, CAP);
    if (!run(&peer, &plain, &first, e)) rc = repeat(b, plain, &first, e);
    arena_clear(&peer.arena);
    return rc;
}

int kernel_check(const struct kernels *k, int op, const struct op_sample *s, struct mutant *m,
                 struct err *e)
{
    struct bench b = {.kernels = k, .op = op, .s = s, .m = m};
    struct op_sample rounded;
    b.tolerance = k->compute == DT_BF16 ? 6e-3
                                        : 2e-6 * sqrt((double)(s->k_red > 1 ? s->k_red : 1));
    arena_init(&b.arena, CAP);
    int rc = 0;
    if (k->compute == DT_BF16) {
        rc = to_bf16(&b, s, &rounded, e);
        b.s = &rounded;
    }
    if (!rc) rc = shapes(&b, e);
    if (!rc) rc = check(&b, e);
    if (!rc) rc = like_peer(&b, e);
    arena_clear(&b.arena);
    return rc;
}

/* ---- the same through plan and exec ---- */

static int load(struct exec *x, const struct ref_tensor *v, int id, struct arena *a, struct err *e)
{
    size_t bytes = dtype_size(v->dtype) * (size_t)v->count;
    void *p = arena_alloc(a, bytes + 1, e);
    if (!p) return -1;
    optest_encode(v->dtype, v->d, v->count, p);
    return exec_write(x, id, p, bytes, e);
}

static int compare(struct exec *x, const struct ref_tensor *want, int id, double tolerance,
                   struct arena *a, struct err *e)
{
    size_t bytes = 4 * (size_t)want->count;
    void *p = arena_alloc(a, bytes + 1, e);
    double *d = arena_alloc(a, 2 * bytes + 8, e);
    if (!p || !d || exec_read(x, id, p, bytes, e)) return -1;
    optest_decode(DT_F32, p, want->count, d);
    double off = optest_distance(d, want->d, want->count);
    if (off <= tolerance) return 0;
    return err_set(e, E_NUMERIC, "tensor %d: relative L2 error %.3g, allowed %.3g", id, off,
                   tolerance);
}

/* Sets the inputs of both sides, runs both, compares y and the gradients. */
static int both(struct exec *x, struct ref_run *run, const struct recording *r,
                const struct op_sample *s, struct arena *a, struct err *e)
{
    int64_t terms = s->k_red;
    run->seed = x->seed = s->key;
    x->rng_step = run->rng_step = 3;
    for (int i = 0; i < s->nin; i++) {
        if (!s->in[i].d) continue;
        ref_run_set(run, r->in[i], s->in[i].d);
        for (int k = 0; k < s->in[i].rank; k++)
            terms = s->in[i].shape[k] > terms ? s->in[i].shape[k] : terms;
    }
    recording_cotangent(s, run->v[r->dy].d, run->v[r->dy].count);
    ref_run_all(run);
    /* Twice: the second run finds what the first has left. Inputs are gone after a run. */
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < s->nin; i++)
            if (s->in[i].d && load(x, &run->v[r->in[i]], r->in[i], a, e)) return -1;
        if (load(x, &run->v[r->dy], r->dy, a, e) || exec_run(x, PHASE_STEP, 0, e)) return -1;
    }
    /* The chain is forward and backward, and two uses are added up. */
    double tolerance = 2 * 2e-6 * sqrt((double)terms);
    if (compare(x, &run->v[r->y], r->y, tolerance, a, e)) return -1;
    for (int i = 0; i < NODE_IN; i++)
        if (r->dx[i] >= 0 && compare(x, &run->v[r->dx[i]], r->dx[i], tolerance, a, e)) return -1;
    return 0;
}

int plan_check(const struct kernels *k, int op, const struct op_sample *s, struct err *e)
{
    struct exec *x = k->exec[1];
    struct recording r;
    struct ref_run run = {0};
    struct arena a;
    struct plan *plan = NULL;
    int rc = -1;
    arena_init(&a, CAP);
    if (recording_make(&r, op, s, s->diff, 2, e)) return -1;
    tape_output(r.tape, r.y);
    for (int i = 0; i < NODE_IN; i++)
        if (r.dx[i] >= 0) tape_output(r.tape, r.dx[i]);
    plan = plan_make(r.tape, &(struct plan_options){.threads = thread_counts[1],
                                                    .ws = x->device->ws}, e);
    if (!plan || ref_run_init(&run, r.tape, e)) goto out;
    x->poison = true;
    if (!exec_bind(x, plan, e)) rc = both(x, &run, &r, s, &a, e);
    x->poison = false;
out:
    ref_run_clear(&run);
    plan_free(plan);
    recording_clear(&r);
    arena_clear(&a);
    return rc;
}
