#include "engine/core/plan_cache.h"

#include "engine/base/buf.h"
#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/op/op.h"

#include <string.h>

static void put_node(struct buf *b, const struct node *n)
{
    const int head[] = {n->op, (int)n->phase, n->nin, n->nout, n->accum, n->accum_later,
                        n->backward, n->segment};
    buf_put(b, head, sizeof head);
    buf_put(b, n->in, n->nin * sizeof *n->in);
    buf_put(b, n->out, n->nout * sizeof *n->out);
    buf_put(b, n->attrs, op_table[n->op].attr_bytes);
}

static void put_tensor(struct buf *b, const struct tape *t, const struct tensor *x)
{
    const int head[] = {(int)x->dtype, x->rank, (int)x->flags, (int)x->slot, x->view_of,
                        x->producer, x->param ? 1 + (int)x->param->kind : 0,
                        x->param == &t->one};
    buf_put(b, head, sizeof head);
    buf_put(b, x->shape, (size_t)x->rank * sizeof *x->shape);
}

int plan_digest(const struct tape *t, const struct plan_options *o, char out[PLAN_DIGEST],
                struct err *e)
{
    const int sizes[] = {t->nnodes, t->ntensors, o->threads};
    char hex[65];
    struct buf b;
    buf_init(&b, (size_t)1 << 30);
    buf_put(&b, sizes, sizeof sizes);
    for (int i = 0; i < t->nnodes; i++) put_node(&b, &t->nodes[i]);
    for (int i = 0; i < t->ntensors; i++) put_tensor(&b, t, &t->tensors[i]);
    int rc = buf_ok(&b, e) || hash_sha256(b.data, b.len, hex, e) ? -1 : 0;
    buf_clear(&b);
    if (rc) return -1;
    memcpy(out, hex, PLAN_DIGEST - 1);
    out[PLAN_DIGEST - 1] = 0;
    return 0;
}

static struct plan *copy(const struct plan *p, const struct tape *t, int ntensors, struct err *e)
{
    struct plan *q = mem_dup(p, sizeof *p, e);
    if (!q) return NULL;
    q->tape = t;
    q->steps = mem_dup(p->steps, (size_t)p->nsteps * sizeof *p->steps, e);
    q->places = mem_dup(p->places, (size_t)ntensors * sizeof *p->places, e);
    if (q->steps && q->places) return q;
    plan_free(q);
    return NULL;
}

struct plan *plan_cached(struct plan_cache *c, const struct tape *t,
                         const struct plan_options *o, struct err *e)
{
    char digest[PLAN_DIGEST];
    int at = 0;
    if (tape_ok(t, e) || plan_digest(t, o, digest, e)) return NULL;
    for (int i = 0; i < c->n; i++) {
        if (!strcmp(c->items[i].digest, digest)) {
            c->items[i].used = ++c->clock;
            c->hits++;
            return copy(c->items[i].plan, t, t->ntensors, e);
        }
        if (c->items[i].used < c->items[at].used) at = i;
    }
    struct plan *p = plan_make(t, o, e), *kept = p ? copy(p, NULL, t->ntensors, e) : NULL;
    if (!kept) {
        plan_free(p);
        return NULL;
    }
    if (c->n < PLAN_CACHE_MAX) at = c->n++;
    else plan_free(c->items[at].plan);
    c->items[at].plan = kept;
    c->items[at].used = ++c->clock;
    memcpy(c->items[at].digest, digest, sizeof digest);
    return p;
}

void plan_cache_clear(struct plan_cache *c)
{
    for (int i = 0; i < c->n; i++) plan_free(c->items[i].plan);
    *c = (struct plan_cache){0};
}
