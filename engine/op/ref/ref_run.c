#include "engine/op/ref/ref.h"

#include <math.h>
#include <string.h>

enum { RUN_CAP = 1 << 30 };

/* The tensor whose bytes x shares: views of views, and states updated in place. */
static int storage(const struct tape *t, int x)
{
    for (;;) {
        const struct tensor *v = &t->tensors[x];
        const struct node *n = v->producer >= 0 ? &t->nodes[v->producer] : NULL;
        if (v->view_of >= 0) x = v->view_of;
        else if (n && (op_table[n->op].flags & F_STATE) && n->out[0] == x)
            x = n->in[op_table[n->op].inplace];
        else return x;
    }
}

int ref_run_init(struct ref_run *r, const struct tape *t, struct err *e)
{
    *r = (struct ref_run){.tape = t};
    arena_init(&r->arena, RUN_CAP);
    r->v = arena_alloc(&r->arena, sizeof *r->v * (size_t)(t->ntensors + 1), e);
    if (!r->v) goto fail;
    for (int i = 0; i < t->ntensors; i++) {
        const struct tensor *x = &t->tensors[i];
        struct ref_tensor *v = &r->v[i];
        v->dtype = x->dtype;
        v->rank = x->rank;
        memcpy(v->shape, x->shape, sizeof v->shape);
        v->count = x->count;
        v->d = arena_alloc(&r->arena, sizeof(double) * (size_t)(x->count + 1), e);
        if (!v->d) goto fail;
        for (int64_t k = 0; k < x->count; k++) v->d[k] = NAN;
    }
    for (int i = 0; i < t->ntensors; i++) r->v[i].d = r->v[storage(t, i)].d;
    return 0;
fail:
    ref_run_clear(r);
    return -1;
}

void ref_run_set(struct ref_run *r, int tensor, const double *from)
{
    if (r->v[tensor].count)
        memcpy(r->v[tensor].d, from, sizeof *from * (size_t)r->v[tensor].count);
}

void ref_run_all(struct ref_run *r)
{
    for (int i = 0; i < r->tape->nnodes; i++) {
        const struct node *n = &r->tape->nodes[i];
        struct ref_call c = {.attrs = n->attrs, .accum = n->accum, .seed = r->seed,
                             .rng_step = r->rng_step};
        for (int k = 0; k < n->nin; k++) c.in[k] = n->in[k] >= 0 ? &r->v[n->in[k]] : NULL;
        for (int k = 0; k < n->nout; k++) c.out[k] = n->out[k] >= 0 ? &r->v[n->out[k]] : NULL;
        if (r->before) r->before(r->ctx, n, &c);
        ref_table[n->op](&c);
    }
}

void ref_run_clear(struct ref_run *r)
{
    arena_clear(&r->arena);
    *r = (struct ref_run){0};
}
