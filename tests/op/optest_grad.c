#include "tests/op/optest.h"

#include "engine/base/rng.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { DIRECTIONS = 16, COORDINATES = 64, CAP = 1 << 30 };

/* Step of the stencil; values are of order 1. The error of the stencil is about h^4 and that of
 * rounding about 1e-16 / h, relative to the derivatives and the value: both far below 1e-7. */
static const double h = 1e-3;
static const double tolerance = 1e-7;

/* A number in (-1.7, 1.7) with variance 1. */
static double noise(uint64_t key, uint32_t stream, uint32_t step, int64_t i)
{
    return ((double)rng_u32(key, stream, step, (uint64_t)i) * 0x1p-31 - 1) * 1.7320508;
}

void recording_cotangent(const struct op_sample *s, double *cot, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        cot[i] = ref_round(DT_F32, noise(s->key, RNG_USER + 2, 0, i));
}

void recording_clear(struct recording *r)
{
    tape_free(r->tape);
    r->tape = NULL;
}

static int use(struct recording *r, int op, const struct op_sample *s)
{
    int out[NODE_OUT] = {-1, -1, -1, -1};
    return tape_record(r->tape, op, s->attrs, op_table[op].attr_bytes, r->in, s->nin, out);
}

int recording_make(struct recording *r, int op, const struct op_sample *s, unsigned mask, int uses,
                   struct err *e)
{
    int x[NODE_IN + 1], d[NODE_IN + 1], n = 0;
    *r = (struct recording){.tape = tape_new(e)};
    if (!r->tape) return -1;
    for (int i = 0; i < NODE_IN; i++) {
        char name[8];
        snprintf(name, sizeof name, "in%d", i);
        r->in[i] = r->dx[i] = -1;
        if (i < s->nin && s->in[i].d)
            r->in[i] = tape_input(r->tape, name, s->in[i].dtype, s->in[i].rank, s->in[i].shape);
        if (mask >> i & 1) x[n++] = r->in[i];
    }
    x[n] = r->other = tape_input(r->tape, "other", DT_F32, DIMS(3));
    r->y = use(r, op, s);
    for (int i = 1; i < uses; i++) r->y = op_add(r->tape, r->y, use(r, op, s));
    if (tape_ok(r->tape, e)) goto fail;
    struct tensor y = r->tape->tensors[r->y];
    r->dy = tape_input(r->tape, "dy", DT_F32, y.rank, y.shape);
    if (tape_ok(r->tape, e) || tape_grad(r->tape, r->y, r->dy, x, n + 1, d, e)) goto fail;
    n = 0;
    for (int i = 0; i < NODE_IN; i++)
        if (mask >> i & 1) r->dx[i] = d[n++];
    if (d[n] >= 0) {
        err_set(e, E_BUG, "a gradient for an input that the result does not depend on");
        goto fail;
    }
    return 0;
fail:
    recording_clear(r);
    return -1;
}

static uint64_t seed_of(const struct op_sample *s)
{
    return s->key * 7919 + 1;
}

/* Before each node of the run: of what is added into a gradient only the last counts. */
static void overwrite(void *ctx, const struct node *n, struct ref_call *c)
{
    struct mutant *m = ctx;
    if (!n->backward) return;
    if (c->accum) m->applied = true;
    c->accum = 0;
    if (n->op != OP_ADD) return;
    for (int64_t i = 0; i < c->in[0]->count; i++) c->in[0]->d[i] = 0;
    m->applied = m->applied || c->in[0]->count > 0;
}

/* What a gradient is asked for. */
struct question {
    struct arena a; /* of all answers */
    int op;
    const struct op_sample *s;
    unsigned mask;  /* of inputs */
    int uses;
    struct mutant *m;
};

/* grad[i], for the inputs in mask, by the recorded backward nodes. */
static int by_tape(struct question *q, struct ref_tensor *grad, struct err *e)
{
    struct arena *a = &q->a;
    const struct op_sample *s = q->s;
    struct recording r;
    struct ref_run run = {0};
    int rc = -1;
    if (recording_make(&r, q->op, s, q->mask, q->uses, e)) return -1;
    if (ref_run_init(&run, r.tape, e)) goto out;
    run.seed = seed_of(s);
    if (q->m->kind == GRAD_OVERWRITTEN && q->uses > 1) {
        run.before = overwrite;
        run.ctx = q->m;
    }
    int64_t count = run.v[r.dy].count;
    double *cot = arena_alloc(a, sizeof *cot * (size_t)(count + 1), e);
    if (!cot) goto out;
    recording_cotangent(s, cot, count);
    for (int i = 0; i < s->nin; i++)
        if (r.in[i] >= 0) ref_run_set(&run, r.in[i], s->in[i].d);
    ref_run_set(&run, r.dy, cot);
    ref_run_all(&run);
    if (count && memcmp(run.v[r.dy].d, cot, sizeof *cot * (size_t)count) != 0) {
        err_set(e, E_BUG, "the backward pass wrote into the cotangent");
        goto out;
    }
    for (int i = 0; i < NODE_IN; i++) {
        grad[i] = (struct ref_tensor){0};
        if (!(q->mask >> i & 1)) continue;
        if (r.dx[i] < 0) {
            err_set(e, E_BUG, "no gradient for input %d", i);
            goto out;
        }
        grad[i] = run.v[r.dx[i]];
        grad[i].d = arena_alloc(a, sizeof(double) * (size_t)(grad[i].count + 1), e);
        if (!grad[i].d) goto out;
        memcpy(grad[i].d, run.v[r.dx[i]].d, sizeof(double) * (size_t)grad[i].count);
        mutant_gradient(q->m, i, &grad[i]);
    }
    rc = 0;
out:
    ref_run_clear(&run);
    recording_clear(&r);
    return rc;
}

/* ---- finite differences ---- */

/* f(x) = <cotangent, op(x)> and the space to evaluate it at another x. */
struct function {
    int op;
    struct ref_tensor in[NODE_IN], y;
    struct ref_call call;
    double *cot, *shift[NODE_IN]; /* of the inputs in the mask: the direction */
    const struct op_sample *s;
    double size; /* sum |cot y|: what rounding errors are relative to */
};

static int function_init(struct function *f, struct arena *a, int op, const struct op_sample *s,
                         struct err *e)
{
    struct recording r;
    *f = (struct function){.op = op, .s = s};
    if (recording_make(&r, op, s, 0, 1, e)) return -1;
    const struct tensor *y = &r.tape->tensors[r.y];
    f->y = (struct ref_tensor){.dtype = DT_F32, .rank = y->rank, .count = y->count};
    memcpy(f->y.shape, y->shape, sizeof f->y.shape);
    recording_clear(&r);
    f->y.d = arena_alloc(a, sizeof(double) * (size_t)(f->y.count + 1), e);
    f->cot = arena_alloc(a, sizeof(double) * (size_t)(f->y.count + 1), e);
    if (!f->y.d || !f->cot) return -1;
    recording_cotangent(s, f->cot, f->y.count);
    f->call = (struct ref_call){.attrs = s->attrs, .out = {&f->y}, .seed = seed_of(s)};
    for (int i = 0; i < s->nin; i++) {
        if (!s->in[i].d) continue;
        f->in[i] = s->in[i];
        f->call.in[i] = &f->in[i];
        if (!(s->diff >> i & 1)) continue;
        f->in[i].d = arena_alloc(a, sizeof(double) * (size_t)(s->in[i].count + 1), e);
        f->shift[i] = arena_alloc(a, sizeof(double) * (size_t)(s->in[i].count + 1), e);
        if (!f->in[i].d || !f->shift[i]) return -1;
    }
    return 0;
}

static double function_at(struct function *f, double t)
{
    double sum = 0;
    for (int i = 0; i < NODE_IN; i++)
        for (int64_t k = 0; f->shift[i] && k < f->in[i].count; k++)
            f->in[i].d[k] = f->s->in[i].d[k] + t * f->shift[i][k];
    ref_table[f->op](&f->call);
    f->size = 0;
    for (int64_t k = 0; k < f->y.count; k++) {
        sum += f->cot[k] * f->y.d[k];
        f->size += fabs(f->cot[k] * f->y.d[k]);
    }
    return sum;
}

/* Slope along the direction by the stencil of four points, against the one that the gradient
 * claims; signed. */
static int compare(struct function *f, const struct ref_tensor *grad, double norm,
                   const char *what, struct err *e)
{
    double claimed = 0;
    for (int i = 0; i < NODE_IN; i++)
        for (int64_t k = 0; f->shift[i] && k < f->in[i].count; k++)
            claimed += grad[i].d[k] * f->shift[i][k];
    double near = function_at(f, h / 2) - function_at(f, -h / 2);
    double far = function_at(f, h) - function_at(f, -h);
    double slope = (8 * near - far) / (6 * h);
    double allowed = tolerance * norm + 1e-15 * f->size / h;
    if (fabs(slope - claimed) <= allowed) return 0;
    return err_set(e, E_NUMERIC, "%s: slope %.12g, gradient says %.12g (allowed error %.2g)", what,
                   slope, claimed, allowed);
}

static double norm_of(const struct ref_tensor *g)
{
    double s = 0;
    for (int64_t i = 0; i < g->count; i++) s += g->d[i] * g->d[i];
    return sqrt(s);
}

static void no_shift(struct function *f)
{
    for (int i = 0; i < NODE_IN; i++)
        for (int64_t k = 0; f->shift[i] && k < f->in[i].count; k++) f->shift[i][k] = 0;
}

/* All inputs jointly along random directions. */
static int directions(struct function *f, const struct ref_tensor *grad, struct err *e)
{
    double norm = 0;
    for (int i = 0; i < NODE_IN; i++)
        if (f->shift[i]) norm = hypot(norm, norm_of(&grad[i]));
    for (int n = 0; n < DIRECTIONS; n++) {
        char what[40];
        snprintf(what, sizeof what, "random direction %d", n);
        for (int i = 0; i < NODE_IN; i++)
            for (int64_t k = 0; f->shift[i] && k < f->in[i].count; k++)
                f->shift[i][k] = noise(f->s->key, RNG_USER + 3 + (uint32_t)i, (uint32_t)n, k);
        if (compare(f, grad, norm, what, e)) return -1;
    }
    return 0;
}

/* Single elements, evenly spread over the inputs and always with the first and the last. */
static int coordinates(struct function *f, const struct ref_tensor *grad, struct err *e)
{
    int inputs = 0;
    for (int i = 0; i < NODE_IN; i++) inputs += f->shift[i] != NULL;
    for (int i = 0; i < NODE_IN; i++) {
        if (!f->shift[i] || !f->in[i].count) continue;
        int64_t last = f->in[i].count - 1, share = COORDINATES / inputs;
        int64_t n = last + 1 < share ? last + 1 : share;
        double norm = norm_of(&grad[i]);
        for (int64_t j = 0; j < n; j++) {
            char what[60];
            int64_t at = n > 1 ? last * j / (n - 1) : 0;
            snprintf(what, sizeof what, "input %d element %lld", i, (long long)at);
            no_shift(f);
            f->shift[i][at] = 1;
            if (compare(f, grad, norm, what, e)) return -1;
        }
    }
    return 0;
}

/* ---- the check ---- */

static int same(const struct ref_tensor *got, const struct ref_tensor *want, double factor,
                unsigned mask, struct err *e)
{
    for (int i = 0; i < NODE_IN; i++) {
        if (!(mask >> i & 1)) continue;
        for (int64_t k = 0; k < got[i].count; k++) got[i].d[k] /= factor;
        double d = optest_distance(got[i].d, want[i].d, got[i].count);
        if (!(d <= 1e-12))
            return err_set(e, E_NUMERIC, "the gradient of input %d is off by %.3g", i, d);
    }
    return 0;
}

static int differences(struct question *q, const struct ref_tensor *grad, struct err *e)
{
    struct function f;
    if (function_init(&f, &q->a, q->op, q->s, e)) return -1;
    return directions(&f, grad, e) || coordinates(&f, grad, e) ? -1 : 0;
}

int grad_check(int op, const struct op_sample *s, struct mutant *m, struct err *e)
{
    struct ref_tensor all[NODE_IN], some[NODE_IN];
    struct question q = {.op = op, .s = s, .mask = s->diff, .uses = 1, .m = m};
    bool mutated = m->kind != MUTANT_NONE;
    int rc = -1;
    arena_init(&q.a, CAP);
    if (by_tape(&q, all, e)) goto out;
    if ((!mutated || m->applied) && differences(&q, all, e)) goto out;
    /* Every choice of wanted gradients gives the same ones. */
    for (; q.mask && !mutated; q.mask = (q.mask - 1) & s->diff)
        if (by_tape(&q, some, e) || same(some, all, 1, q.mask, e)) {
            err_wrap(e, "only inputs 0x%x wanted", q.mask);
            goto out;
        }
    q.mask = s->diff;
    q.uses = 2;
    if (by_tape(&q, some, e) || same(some, all, 2, s->diff, e)) {
        err_wrap(e, "used twice");
        goto out;
    }
    rc = 0;
out:
    arena_clear(&q.a);
    return rc;
}
