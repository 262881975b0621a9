/* ATTN_BWD, and its plain kernels. Probabilities are computed again from the saved log-sums: once
 * for dq, once for dk and dv, and once for the gradient of the bias. */
#include "engine/cuda/attn_plain.cuh"

/* delta[b,t,h] = sum of dy y: a warp per row. */
template <typename T>
CU_KERNEL void delta_kernel(const T *dy, const T *y, float *delta, int64_t n, int64_t D)
{
    EACH_ROW(r, n) {
        float sum = 0;
        EACH_COLUMN(c, D) {
            float u[VEC], v[VEC];
            vec_load(dy + r * D + c, D - c, u);
            vec_load(y + r * D + c, D - c, v);
            for (int k = 0; k < VEC; k++) sum = fmaf(u[k], v[k], sum);
        }
        sum = cu_warp_sum(sum);
        if (threadIdx.x % 32 == 0) delta[r] = sum;
    }
}

/* What a query has to say about its probabilities. */
struct query {
    struct span range; /* empty past the end */
    float lse, delta;
};

CU_FN struct query query_at(const struct attn *a, const struct attn_tile *t, int i)
{
    if (i >= t->n) return {{0, 0}, 0, 0};
    int64_t at = (t->b * a->T + t->at + i) * a->H + t->h;
    return {attn_range(a, t->b, t->at + i), a->lse[at], a->delta[at]};
}

/* From a product q k and a product dy v: the probability *p, and its gradient with respect to the
 * score in *dp. */
CU_FN void probability(const struct attn *a, const struct query *q, int64_t bias, int64_t key,
                       float *p, float *dp)
{
    float s = *p * a->scale;
    if (key < q->range.lo || key >= q->range.hi) {
        *p = *dp = 0;
        return;
    }
    if (a->bias) s += vec_any(a->bias, a->bias_type, bias + key);
    *p = expf(s - q->lse);
    *dp = *p * (*dp - q->delta);
}

template <typename T, int DP>
CU_KERNEL void __launch_bounds__(PLAIN_THREADS, 1) dq_kernel(struct attn a)
{
    CU_ARRAY(struct plain, m, [1]);
    const struct attn_tile t = attn_queries(&a, ATTN_TILE);
    const int64_t ldq = a.H * a.D, ldk = a.G * a.D, at = attn_q_at(&a, t.b, t.at, t.h);
    const struct mat<T> q = {(const T *)a.q + at, ldq, t.n}, dy = {(const T *)a.dy + at, ldq, t.n};
    const struct span all = attn_hull(&a, t.b, t.at, ATTN_TILE);
    float p[4][4], ds[4][4], dq[4][DP / 16] = {{0}};
    struct query row[4];
    for (int i = 0; i < 4; i++) row[i] = query_at(&a, &t, plain_row(i));
    for (int k0 = all.lo / ATTN_TILE * ATTN_TILE; k0 < all.hi; k0 += ATTN_TILE) {
        const int n = (int)min((int64_t)ATTN_TILE, a.S - k0);
        const int64_t from = attn_k_at(&a, t.b, k0, t.g);
        const struct mat<T> k = {(const T *)a.k + from, ldk, n};
        plain_products(p, q, k, a.D, m);
        plain_products(ds, dy, mat<T>{(const T *)a.v + from, ldk, n}, a.D, m);
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++)
                probability(&a, &row[i], (t.h * a.T + t.at + plain_row(i)) * a.S,
                            k0 + plain_column(j), &p[i][j], &ds[i][j]);
        plain_keep(m, ds);
        plain_mix<T, DP>(dq, k, a.D, m);
    }
    for (int i = 0; i < 4; i++)
        if (plain_row(i) < t.n)
            plain_store<T, DP>(dq[i], a.scale, (T *)a.dq + at + plain_row(i) * ldq, a.D);
}

/* Scores lie the other way round: rows are keys, columns queries. */
template <typename T, int DP>
CU_KERNEL void __launch_bounds__(PLAIN_THREADS, 1) dkv_kernel(struct attn a)
{
    CU_ARRAY(struct plain, m, [1]);
    const struct attn_tile t = attn_keys(&a);
    const int64_t ldq = a.H * a.D, ldk = a.G * a.D, at = attn_k_at(&a, t.b, t.at, t.g);
    const struct mat<T> k = {(const T *)a.k + at, ldk, t.n}, v = {(const T *)a.v + at, ldk, t.n};
    float p[4][4], ds[4][4], dk[4][DP / 16] = {{0}}, dv[4][DP / 16] = {{0}};
    struct attn_tile u = t;
    for (u.h = t.h; u.h < t.h + a.H / a.G; u.h++) {
        for (u.at = 0; u.at < a.T; u.at += ATTN_TILE) {
            const struct span all = attn_hull(&a, t.b, u.at, ATTN_TILE);
            if (all.hi <= t.at || all.lo >= t.at + t.n) continue;
            u.n = (int)min((int64_t)ATTN_TILE, a.T - u.at);
            const int64_t from = attn_q_at(&a, u.b, u.at, u.h);
            const struct mat<T> q = {(const T *)a.q + from, ldq, u.n};
            const struct mat<T> dy = {(const T *)a.dy + from, ldq, u.n};
            plain_products(p, k, q, a.D, m);
            plain_products(ds, v, dy, a.D, m);
            for (int j = 0; j < 4; j++) {
                const struct query column = query_at(&a, &u, plain_column(j));
                for (int i = 0; i < 4; i++)
                    probability(&a, &column, (u.h * a.T + u.at + plain_column(j)) * a.S,
                                t.at + plain_row(i), &p[i][j], &ds[i][j]);
            }
            plain_keep(m, p);
            plain_mix<T, DP>(dv, dy, a.D, m);
            plain_keep(m, ds);
            plain_mix<T, DP>(dk, q, a.D, m);
        }
    }
    for (int i = 0; i < 4; i++) {
        const int64_t to = at + plain_row(i) * ldk;
        if (plain_row(i) >= t.n) continue;
        if (a.dk) plain_store<T, DP>(dk[i], a.scale, (T *)a.dk + to, a.D);
        if (a.dv) plain_store<T, DP>(dv[i], 1, (T *)a.dv + to, a.D);
    }
}

/* Gradient of the bias: a block per tile of [T,S] of a head adds up the batch. */
template <typename T>
CU_KERNEL void __launch_bounds__(PLAIN_THREADS, 1) dbias_kernel(struct attn a)
{
    CU_ARRAY(struct plain, m, [1]);
    const int64_t across = (a.S + ATTN_TILE - 1) / ATTN_TILE, k0 = blockIdx.x % across * ATTN_TILE;
    const int64_t ldq = a.H * a.D, ldk = a.G * a.D, line = blockIdx.x / across;
    const int n = (int)min((int64_t)ATTN_TILE, a.S - k0);
    float p[4][4], ds[4][4], sum[4][4] = {{0}};
    struct attn_tile t = {0, line % a.H, line % a.H / (a.H / a.G), line / a.H * ATTN_TILE, 0};
    t.n = (int)min((int64_t)ATTN_TILE, a.T - t.at);
    for (t.b = 0; t.b < a.B; t.b++) {
        const struct span all = attn_hull(&a, t.b, t.at, ATTN_TILE);
        if (all.hi <= k0 || all.lo >= k0 + n) continue;
        const int64_t at = attn_q_at(&a, t.b, t.at, t.h), from = attn_k_at(&a, t.b, k0, t.g);
        plain_products(p, mat<T>{(const T *)a.q + at, ldq, t.n},
                       mat<T>{(const T *)a.k + from, ldk, n}, a.D, m);
        plain_products(ds, mat<T>{(const T *)a.dy + at, ldq, t.n},
                       mat<T>{(const T *)a.v + from, ldk, n}, a.D, m);
        for (int i = 0; i < 4; i++) {
            const struct query row = query_at(&a, &t, plain_row(i));
            for (int j = 0; j < 4; j++) {
                probability(&a, &row, (t.h * a.T + t.at + plain_row(i)) * a.S,
                            k0 + plain_column(j), &p[i][j], &ds[i][j]);
                sum[i][j] += ds[i][j];
            }
        }
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            if (plain_row(i) < t.n && plain_column(j) < n)
                a.dbias[(t.h * a.T + t.at + plain_row(i)) * a.S + k0 + plain_column(j)] = sum[i][j];
}

template <typename T, int DP> static void backward(const struct attn *a, struct exec *x)
{
    const unsigned queries = (unsigned)(a->B * a->H * tiles(a->T, ATTN_TILE));
    const unsigned keys = (unsigned)(a->B * a->G * tiles(a->S, ATTN_TILE));
    if (a->dq) CU_LAUNCH(x, (dq_kernel<T, DP>), queries, PLAIN_THREADS, 0, *a);
    if (a->dk || a->dv) CU_LAUNCH(x, (dkv_kernel<T, DP>), keys, PLAIN_THREADS, 0, *a);
}

int cuda_attn_bwd(const struct step *s, struct exec *x, struct err *e)
{
    struct attn a;
    if (attn_init(&a, s, 1, x, e)) return -1;
    a.dy = s->in[0];
    a.y = s->in[5];
    a.lse = (const float *)s->in[6];
    a.bias = s->in[7];
    a.bias_type = s->tin[7] ? s->tin[7]->dtype : DT_F32;
    a.delta = (float *)s->ws;
    a.dq = s->out[0];
    a.dk = s->out[1];
    a.dv = s->out[2];
    a.dbias = (float *)s->out[3];
    bool half = s->tin[0]->dtype == DT_BF16;
    int64_t n = a.B * a.T * a.H, squares = tiles(a.T, ATTN_TILE) * tiles(a.S, ATTN_TILE);
    CU_COMPUTE(s->tin[0]->dtype, T, {
        CU_LAUNCH(x, delta_kernel<T>, row_blocks(n), CU_THREADS, 0, (const T *)a.dy,
                  (const T *)a.y, a.delta, n, a.D);
        if (a.dbias)
            CU_LAUNCH(x, dbias_kernel<T>, (unsigned)(a.H * squares), PLAIN_THREADS, 0, a);
    });
    if (half && a.D <= ATTN_MMA_D) attn_mma_bwd(&a, x);
    else if (half) backward<struct bf16, 256>(&a, x);
    else if (a.D <= 64) backward<float, 64>(&a, x);
    else if (a.D <= 128) backward<float, 128>(&a, x);
    else backward<float, 256>(&a, x);
    return 0;
}
