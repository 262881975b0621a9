/* Gradients as a whole: random graphs with shared, tied, viewed and frozen tensors against finite
 * differences of an evaluation in double that knows nothing of planner, exec or backward pass. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/rng.h"
#include "engine/core/exec.h"
#include "engine/core/plan.h"
#include "engine/op/op.h"
#include "tests/lib/naive.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { SIDE = 4, COUNT = SIDE * SIDE, POOL = 40, ROOTS = 256 };

struct graph {
    struct params ps;
    struct tape *t;
    uint64_t seed;
    uint32_t draws;
    int pool[POOL], npool; /* tensors of COUNT elements, as [SIDE,SIDE] */
    int bias;              /* tensor [SIDE] */
    int x, pick, y, loss;  /* an input, the input that weighs y into loss */
    int nforward;          /* nodes before any backward pass */
};

static int draw(struct graph *g, int below)
{
    return (int)(rng_u32(g->seed, RNG_USER, 0, g->draws++) % (uint32_t)below);
}

static int any(struct graph *g)
{
    return g->pool[draw(g, g->npool)];
}

/* A view of another shape that is a different tensor id. */
static int twist(struct graph *g, int x)
{
    int flat = tape_reshape(g->t, x, 1, (int64_t[]){COUNT});
    return draw(g, 2) ? tape_reshape(g->t, flat, 2, (int64_t[]){SIDE, SIDE}) : x;
}

static int grow(struct graph *g)
{
    struct tape *t = g->t;
    int a = twist(g, any(g)), b = twist(g, any(g));
    const float alpha = 0.25f + 0.25f * (float)draw(g, 3);
    switch (draw(g, 7)) {
    case 0: return op_add(t, a, b);
    case 1: return op_scale(t, a, -1, alpha);
    case 2: return op_swiglu(t, a, b);
    case 3: return op_linear(t, a, b, -1, -1, alpha);
    case 4: return op_linear(t, a, b, g->bias, -1, alpha);
    case 5: return op_linear(t, a, b, -1, twist(g, any(g)), alpha);
    default: return op_linear(t, a, b, -1, a, alpha); /* the residual is the factor too */
    }
}

static struct param *add_param(struct graph *g, enum param_kind kind, int rank)
{
    struct err e = ERR_INIT;
    char name[16];
    snprintf(name, sizeof name, "p%d", g->ps.n);
    struct param *p = params_add(&g->ps, name, kind, rank, (int64_t[]){SIDE, SIDE}, &e);
    if (!p) fail_msg("%s", e.msg);
    return p;
}

static void graph_init(struct graph *g, uint64_t seed)
{
    struct err e = ERR_INIT;
    *g = (struct graph){.seed = seed};
    params_init(&g->ps);
    g->t = tape_new(&e);
    assert_non_null(g->t);
    for (int i = 0; i < 4; i++) {
        struct param *p = add_param(g, i == 3 ? PARAM_FROZEN : PARAM_TRAINABLE, 2);
        g->pool[g->npool++] = tape_param(g->t, p, SLOT_DATA);
    }
    g->bias = tape_param(g->t, add_param(g, PARAM_TRAINABLE, 1), SLOT_DATA);
    g->x = g->pool[g->npool++] = tape_input(g->t, "x", DT_F32, 2, (int64_t[]){SIDE, SIDE});
    g->pick = tape_input(g->t, "pick", DT_F32, 2, (int64_t[]){1, COUNT});
    for (int i = 3 + draw(g, 12); i > 0; i--) g->pool[g->npool++] = grow(g);
    g->y = op_add(g->t, g->pool[g->npool - 1], g->pool[0]); /* something trains in every graph */
    int flat = tape_reshape(g->t, g->y, 2, (int64_t[]){1, COUNT});
    flat = op_linear(g->t, flat, g->pick, -1, -1, 1.0f);
    g->loss = tape_reshape(g->t, flat, 1, (int64_t[]){1});
    tape_output(g->t, g->loss);
    g->nforward = g->t->nnodes;
    if (tape_ok(g->t, &e) || params_alloc(&g->ps, &e)) fail_msg("%s", e.msg);
    for (int i = 0; i < g->ps.n; i++)
        rng_fill_uniform(g->ps.items[i]->data, g->ps.items[i]->count, -0.7f, 0.7f, seed,
                         RNG_INIT, (uint32_t)i);
}

static void graph_clear(struct graph *g)
{
    tape_free(g->t);
    params_clear(&g->ps);
}

/* ---- evaluation in double -------------------------------------------------------------------- */

struct eval {
    const struct graph *g;
    double value[ROOTS][COUNT]; /* per root */
    int nudge, element;         /* this element of this root gets + h when it is known */
    double h;
};

static void known(struct eval *v, int root)
{
    if (root == v->nudge) v->value[root][v->element] += v->h;
}

static double dot(const double *a, const double *b, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

static void eval_linear(struct eval *v, const struct node *n, double *y)
{
    const struct tape *t = v->g->t;
    const double *x = v->value[tape_root(t, n->in[0])], *w = v->value[tape_root(t, n->in[1])];
    int K = (int)t->tensors[n->in[0]].shape[1], M = (int)t->tensors[n->in[1]].shape[0];
    int N = (int)t->tensors[n->in[0]].shape[0];
    double alpha = (double)((const struct attrs_alpha *)(const void *)n->attrs)->alpha;
    for (int i = 0; i < N * M; i++) {
        y[i] = alpha * dot(x + i / M * K, w + i % M * K, K);
        if (n->in[2] >= 0) y[i] += v->value[tape_root(t, n->in[2])][i % M];
        if (n->in[3] >= 0) y[i] += v->value[tape_root(t, n->in[3])][i];
    }
}

static void eval_node(struct eval *v, const struct node *n)
{
    const struct tape *t = v->g->t;
    double *y = v->value[tape_root(t, n->out[0])];
    const double *a = v->value[tape_root(t, n->in[0])], *b = v->value[tape_root(t, n->in[1])];
    double alpha = (double)((const struct attrs_alpha *)(const void *)n->attrs)->alpha;
    if (n->op == OP_LINEAR) eval_linear(v, n, y);
    for (int i = 0; i < COUNT && n->op != OP_LINEAR; i++)
        y[i] = n->op == OP_ADD ? a[i] + b[i]
               : n->op == OP_SCALE ? alpha * a[i]
                                   : a[i] / (1 + exp(-a[i])) * b[i];
    known(v, tape_root(t, n->out[0]));
}

/* <pick, y> */
static double eval(struct eval *v, const float *x, const float *pick)
{
    const struct graph *g = v->g;
    assert_true(g->t->ntensors < ROOTS);
    for (int i = 0; i < g->t->ntensors; i++) {
        const struct tensor *t = &g->t->tensors[i];
        const float *from = t->slot == SLOT_DATA ? t->param->data : i == g->x ? x
                                                   : i == g->pick             ? pick
                                                                              : NULL;
        for (int64_t k = 0; from && k < t->count; k++) v->value[i][k] = (double)from[k];
        if (from) known(v, i);
    }
    for (int i = 0; i < g->nforward; i++) eval_node(v, &g->t->nodes[i]);
    return v->value[tape_root(g->t, g->loss)][0];
}

/* Largest difference between got and the derivative of <pick, y> by tensor x. */
static double worst(const struct graph *g, int x, const float *got, const float *in,
                    const float *pick)
{
    static struct eval v;
    const double h = 1e-5;
    double most = 0;
    for (int i = 0; i < g->t->tensors[x].count; i++) {
        v.g = g;
        v.nudge = tape_root(g->t, x);
        v.element = i;
        v.h = h;
        double up = eval(&v, in, pick);
        v.h = -h;
        double slope = (up - eval(&v, in, pick)) / (2 * h);
        double off = fabs(slope - (got ? (double)got[i] : 0)) / (1 + fabs(slope));
        if (!(off <= most)) most = off;
    }
    return most;
}

/* ---- the engine's answer --------------------------------------------------------------------- */

struct engine {
    struct plan *p;
    struct exec *x;
};

static void engine_init(struct engine *m, struct graph *g)
{
    struct err e = ERR_INIT;
    static const struct device naive = {.name = "naive", .table = naive_table};
    m->x = exec_new(&naive, 1, &e);
    m->p = m->x ? plan_make(g->t, &(struct plan_options){.threads = 1}, &e) : NULL;
    if (!m->p || exec_bind(m->x, m->p, &e)) fail_msg("seed %d: %s", (int)g->seed, e.msg);
    m->x->poison = true;
}

static void engine_step(struct engine *m, struct graph *g, const float *x, const float *pick,
                        int micro)
{
    struct err e = ERR_INIT;
    if (exec_write(m->x, g->x, x, 4 * COUNT, &e) ||
        exec_write(m->x, g->pick, pick, 4 * COUNT, &e) || exec_run(m->x, PHASE_STEP, micro, &e))
        fail_msg("seed %d: %s", (int)g->seed, e.msg);
}

static void engine_clear(struct engine *m)
{
    exec_free(m->x);
    plan_free(m->p);
}

static void fill(float *x, uint64_t seed, uint32_t stream)
{
    rng_fill_uniform(x, COUNT, -0.7f, 0.7f, seed, stream, 7);
}

/* f32 kernels, a dozen ops deep, against double: rounding stays below 1e-5; a gradient that is
 * dropped, doubled or taken too early is off by far more in some of the graphs. */
static const double tolerance = 1e-5;

static void random_graphs_train_by_their_true_gradients(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        struct graph g;
        struct engine m;
        struct err e = ERR_INIT;
        float x[COUNT], pick[COUNT], twice[COUNT];
        graph_init(&g, seed);
        fill(x, seed, RNG_USER + 1);
        fill(pick, seed, RNG_USER + 2);
        if (tape_backward(g.t, g.loss, &e)) fail_msg("seed %d: %s", (int)seed, e.msg);
        engine_init(&m, &g);
        engine_step(&m, &g, x, pick, 0);
        for (int i = 0; i < g.ps.n; i++) {
            struct param *p = g.ps.items[i];
            double off = p->grad ? worst(&g, tape_param(g.t, p, SLOT_DATA), p->grad, x, pick) : 0;
            if (off > tolerance) fail_msg("seed %d: %s is off by %g", (int)seed, p->name, off);
        }
        struct param *p = g.ps.items[0];
        memcpy(twice, p->grad, sizeof twice);
        engine_step(&m, &g, x, pick, 1);
        for (int k = 0; k < COUNT; k++)
            assert_true(fabsf(p->grad[k] - 2 * twice[k]) <= 1e-5f * (1 + fabsf(twice[k])));
        engine_clear(&m);
        graph_clear(&g);
    }
}

static void gradients_of_chosen_tensors_are_true_even_of_inner_ones(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        enum { NX = 6 };
        struct graph g;
        struct engine m;
        struct err e = ERR_INIT;
        float x[COUNT], pick[COUNT], got[COUNT];
        int want[NX], dx[NX];
        graph_init(&g, seed);
        fill(x, seed, RNG_USER + 1);
        fill(pick, seed, RNG_USER + 2);
        for (int i = 0; i < NX; i++) want[i] = any(&g);
        if (seed % 2) want[0] = g.y;
        tape_output(g.t, g.pick);
        int dy = tape_reshape(g.t, g.pick, 2, (int64_t[]){SIDE, SIDE});
        if (tape_grad(g.t, g.y, dy, want, NX, dx, &e)) fail_msg("seed %d: %s", (int)seed, e.msg);
        for (int i = 0; i < NX; i++)
            if (dx[i] >= 0) tape_output(g.t, dx[i]);
        engine_init(&m, &g);
        engine_step(&m, &g, x, pick, 0);
        if (exec_read(m.x, g.pick, got, sizeof got, &e)) fail_msg("%s", e.msg);
        assert_memory_equal(got, pick, sizeof got); /* the caller's cotangent is not written to */
        for (int i = 0; i < NX; i++) {
            if (dx[i] >= 0 && exec_read(m.x, dx[i], got, sizeof got, &e)) fail_msg("%s", e.msg);
            double off = worst(&g, want[i], dx[i] < 0 ? NULL : got, x, pick);
            if (off > tolerance)
                fail_msg("seed %d: gradient %d of tensor %d is off by %g", (int)seed, i, want[i],
                         off);
        }
        engine_clear(&m);
        graph_clear(&g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_graphs_train_by_their_true_gradients),
        cmocka_unit_test(gradients_of_chosen_tensors_are_true_even_of_inner_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
