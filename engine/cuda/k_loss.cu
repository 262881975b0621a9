/* LINEAR_CE: the last linear layer and the cross-entropy, some rows at a time, and CE: the same
 * from logits.
 *
 * As many rows of logits as the workspace holds are made by one product, turned into their gradient
 * in place, and used by the products for dx and dw. Rows without a target take part with a
 * gradient of zero: how many there are is data, and launches follow from shapes alone.
 *
 * Workspace (cuda_ws): the weight in the compute type, if it has another; the logits, f32, a whole
 * number of vectors from row to row; a loss and a hit per row; struct totals. */
#include "engine/cuda/vec.cuh"

enum { ROWS = 128 }; /* whole tiles of the products, where the workspace holds as many */

struct totals {
    double loss, hits;
};

/* n rows of V logits. The gradient may lie over its own logits: element i never behind them. */
template <typename L, typename G> struct ce {
    const L *logits;
    G *grad;               /* NULL: not wanted */
    int64_t ldl, ldg, V;   /* distances of rows, in elements */
    const int32_t *target; /* of the first row */
    const float *weight;
    float *loss, *hit;     /* [n] */
    int32_t *fault;
    bool add;              /* to the gradient, which then lies elsewhere */
};

/* Maximum, and sum of e^(x - maximum), over the logits that this thread looks at. */
struct softmax {
    float top, sum;
    int64_t first; /* of the maxima */
};

template <typename L> CU_FN struct softmax part_of(const L *logits, int64_t V)
{
    struct softmax m = {-INFINITY, 0, 0};
    for (int64_t i = VEC * threadIdx.x; i < V; i += VEC * CU_THREADS) {
        float v[VEC], now = m.top, part = 0;
        vec_load(logits + i, V - i, v);
        for (int k = 0; k < VEC; k++)
            if (i + k < V && v[k] > now) {
                now = v[k];
                m.first = i + k;
            }
        const float base = now == -INFINITY ? 0.0f : now;
        for (int k = 0; k < VEC; k++) part += i + k < V ? expf(v[k] - base) : 0.0f;
        m.sum = m.sum * expf(m.top - base) + part;
        m.top = now;
    }
    return m;
}

/* A block per row. */
template <typename L, typename G> CU_KERNEL void ce_kernel(struct ce<L, G> a)
{
    const int64_t r = blockIdx.x;
    const L *l = a.logits + r * a.ldl;
    G *g = a.grad + r * a.ldg;
    const int32_t target = a.target[r];
    const bool counts = target >= 0 && target < a.V;
    float k = 0, top = 0;
    if (target >= a.V) *a.fault = 1;
    if (counts) {
        const struct softmax m = part_of(l, a.V);
        const float at = cu_float(l[target]);
        top = cu_block_max(m.top);
        const float base = top == -INFINITY ? 0.0f : top;
        const float sum = cu_block_sum(m.sum * expf(m.top - base));
        const float earlier = cu_block_max(m.top == top && m.first < target ? 1.0f : 0.0f);
        k = *a.weight / sum;
        if (threadIdx.x == 0) {
            a.loss[r] = logf(sum) + (base - at);
            a.hit[r] = at == top && earlier == 0.0f ? 1.0f : 0.0f;
        }
    } else if (threadIdx.x == 0) {
        a.loss[r] = a.hit[r] = 0;
    }
    if (!a.grad) return;
    for (int64_t i0 = 0; i0 < a.V; i0 += VEC * CU_THREADS) {
        const int64_t i = i0 + VEC * threadIdx.x;
        float v[VEC];
        vec_load(l + i, a.V - i, v);
        for (int j = 0; j < VEC; j++)
            v[j] = counts ? expf(v[j] - top) * k - (i + j == target ? *a.weight : 0.0f) : 0.0f;
        __syncthreads(); /* the gradient of these lies over logits up to these */
        vec_put(g + i, a.V - i, v, a.add);
    }
}

/* Adds n rows to the totals, in their order for each of the threads; `first` starts from zero. */
CU_KERNEL void tally_kernel(const float *loss, const float *hit, int64_t n, struct totals *t,
                            bool first)
{
    CU_ARRAY(struct totals, part, [CU_THREADS]);
    struct totals sum = {0, 0};
    for (int64_t i = threadIdx.x; i < n; i += CU_THREADS) {
        sum.loss += (double)loss[i];
        sum.hits += (double)hit[i];
    }
    part[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    sum = first ? totals{0, 0} : *t;
    for (int i = 0; i < CU_THREADS; i++) {
        sum.loss += part[i].loss;
        sum.hits += part[i].hits;
    }
    *t = sum;
}

CU_KERNEL void finish_kernel(const struct totals *t, const float *weight, float *loss,
                             float *hits, unsigned accum)
{
    const double l = (double)*weight * t->loss;
    if (loss) *loss = (float)(accum & 1 ? (double)*loss + l : l);
    if (hits) *hits = (float)(accum & 2 ? (double)*hits + t->hits : t->hits);
}

/* ---- the host's side ---- */

/* What both operations have: the workspace, and their scalars. */
struct work {
    const void *w;    /* in the compute type */
    float *logits, *loss, *hit;
    struct totals *totals;
    int64_t ld, rows; /* of logits: distance of rows, rows at a time */
    const int32_t *target;
    const float *weight;
};

static struct work work_of(char *ws, int64_t ld, int64_t rows)
{
    struct work w = {};
    w.logits = (float *)ws;
    w.loss = w.logits + rows * ld;
    w.hit = w.loss + rows;
    w.totals = (struct totals *)(w.hit + rows);
    w.ld = ld;
    w.rows = rows;
    return w;
}

static void tally(struct exec *x, const struct work *w, int64_t n, bool first)
{
    CU_LAUNCH(x, tally_kernel, 1, CU_THREADS, 0, (const float *)w->loss, (const float *)w->hit, n,
              w->totals, first);
}

/* loss is output 0, hits output `hits`. */
static void finish(const struct step *s, struct exec *x, const struct work *w, int hits)
{
    const unsigned accum = accumulates(s, 0) | accumulates(s, hits) << 1;
    CU_LAUNCH(x, finish_kernel, 1, 1, 0, (const struct totals *)w->totals, w->weight,
              (float *)s->out[0], (float *)s->out[hits], accum);
}

/* The gradient of rows of logits, over them, in the compute dtype. */
static void gradients(const struct step *s, struct exec *x, const struct work *w, int64_t r0,
                      int64_t n)
{
    CU_COMPUTE(s->tin[0]->dtype, T, {
        struct ce<float, T> c = {};
        c.logits = w->logits;
        c.grad = s->out[1] || s->out[2] ? (T *)w->logits : NULL;
        c.ldl = w->ld;
        c.ldg = w->ld * (int64_t)(sizeof(float) / sizeof(T));
        c.V = s->tin[1]->shape[0];
        c.target = w->target + r0;
        c.weight = w->weight;
        c.loss = w->loss;
        c.hit = w->hit;
        c.fault = cu_fault(x);
        CU_LAUNCH(x, (ce_kernel<float, T>), (unsigned)n, CU_THREADS, 0, c);
    });
}

/* All of rows [r0, r0 + n). */
static int some_rows(const struct step *s, struct exec *x, const struct work *w, int64_t r0,
                     int64_t n, struct err *e)
{
    const enum dtype t = s->tin[0]->dtype;
    const int64_t V = s->tin[1]->shape[0], C = s->tin[0]->shape[1];
    const int64_t size = (int64_t)dtype_size(t);
    const void *rows = (const char *)s->in[0] + r0 * C * size;
    struct cu_gemm g = {};
    g.m = n;
    g.n = V;
    g.k = C;
    g.a = rows;
    g.t = t;
    g.b = w->w;
    g.bt = true;
    g.c = w->logits;
    g.tc = DT_F32;
    g.ldc = w->ld;
    g.alpha = 1;
    if (cu_gemm(x, &g, e)) return -1;
    gradients(s, x, w, r0, n);
    tally(x, w, n, r0 == 0);
    g = {};
    g.a = w->logits;
    g.t = t;
    g.lda = w->ld * (int64_t)sizeof(float) / size;
    g.alpha = 1;
    if (s->out[1]) { /* dx = gradient w */
        g.m = n;
        g.n = C;
        g.k = V;
        g.b = w->w;
        g.c = (char *)s->out[1] + r0 * C * size;
        g.tc = t;
        g.accum = accumulates(s, 1);
        if (cu_gemm(x, &g, e)) return -1;
    }
    if (s->out[2]) { /* dw = gradient^T x */
        g.m = V;
        g.n = C;
        g.k = n;
        g.at = true;
        g.b = rows;
        g.c = s->out[2];
        g.tc = DT_F32;
        g.accum = accumulates(s, 2) || r0 > 0;
        if (cu_gemm(x, &g, e)) return -1;
    }
    return 0;
}

int cuda_linear_ce(const struct step *s, struct exec *x, struct err *e)
{
    const int64_t N = s->tin[0]->shape[0], ld = tiles(s->tin[1]->shape[0], VEC) * VEC;
    char *ws = (char *)s->ws, *end = ws + s->ws_bytes;
    const void *weights = vec_input(s, 1, s->tin[0]->dtype, x, &ws);
    const int64_t bytes = end - ws - (int64_t)sizeof(struct totals);
    const int64_t fit = bytes / ((ld + 2) * (int64_t)sizeof(float));
    struct work w = work_of(ws, ld, min64(N, fit > ROWS ? fit / ROWS * ROWS : fit));
    if (bytes < 0 || (N && w.rows <= 0))
        return err_set(e, E_BUG, "linear_ce: workspace of %lld bytes is too small",
                       (long long)s->ws_bytes);
    w.w = weights;
    w.target = (const int32_t *)s->in[2];
    w.weight = (const float *)s->in[3];
    /* Once even for no rows: that zeroes the totals and dw. */
    int64_t r0 = 0;
    do {
        const int64_t n = min64(w.rows, N - r0);
        if (some_rows(s, x, &w, r0, n, e)) return -1;
        r0 += n;
    } while (r0 < N);
    finish(s, x, &w, 3);
    return 0;
}

int cuda_ce(const struct step *s, struct exec *x, struct err *e)
{
    const int64_t N = s->tin[0]->shape[0], V = s->tin[0]->shape[1];
    struct work w = work_of((char *)s->ws, 0, N);
    if ((const char *)(w.totals + 1) > (const char *)s->ws + s->ws_bytes)
        return err_set(e, E_BUG, "ce: workspace of %lld bytes is too small",
                       (long long)s->ws_bytes);
    w.target = (const int32_t *)s->in[1];
    w.weight = (const float *)s->in[2];
    CU_COMPUTE(s->tin[0]->dtype, T, {
        struct ce<T, T> c = {};
        c.logits = (const T *)s->in[0];
        c.grad = (T *)s->out[1];
        c.ldl = c.ldg = c.V = V;
        c.target = w.target;
        c.weight = w.weight;
        c.loss = w.loss;
        c.hit = w.hit;
        c.fault = cu_fault(x);
        c.add = accumulates(s, 1);
        CU_LAUNCH(x, (ce_kernel<T, T>), (unsigned)N, CU_THREADS, 0, c);
    });
    tally(x, &w, N, true);
    finish(s, x, &w, 2);
    return 0;
}
