/* ATTN, and its plain kernel. Scores of a tile are kept in registers; the softmax is rescaled as
 * the maximum grows, so no [T,S] matrix ever exists. */
#include "engine/cuda/attn_plain.cuh"

/* Turns the scores of four rows into e^(score - max), 0 for keys outside of the range; rescales
 * what the rows have so far. */
template <int DP>
CU_FN void softmax(float s[4][4], const struct span *range, int k0, float *top, float *sum,
                   float o[4][DP / 16])
{
    for (int i = 0; i < 4; i++) {
        float now = top[i], part = 0;
        for (int j = 0; j < 4; j++) {
            int key = k0 + plain_column(j);
            if (key < range[i].lo || key >= range[i].hi) s[i][j] = -INFINITY;
            now = fmaxf(now, s[i][j]);
        }
        now = plain_max(now);
        /* Of a row that has seen nothing, or only NaN (which stays), or only -inf. */
        float base = now == -INFINITY ? 0.0f : now, shrink = expf(top[i] - base);
        for (int j = 0; j < 4; j++) {
            s[i][j] = expf(s[i][j] - base);
            part += s[i][j];
        }
        sum[i] = sum[i] * shrink + plain_sum(part);
        top[i] = now;
        CU_UNROLL
        for (int c = 0; c < DP / 16; c++) o[i][c] *= shrink;
    }
}

template <typename T, int DP>
CU_KERNEL void __launch_bounds__(PLAIN_THREADS, 1) forward_kernel(struct attn a)
{
    CU_ARRAY(struct plain, m, [1]);
    const struct attn_tile t = attn_queries(&a, ATTN_TILE);
    const int64_t ldq = a.H * a.D, ldk = a.G * a.D;
    const struct mat<T> q = {(const T *)a.q + attn_q_at(&a, t.b, t.at, t.h), ldq, t.n};
    const struct span all = attn_hull(&a, t.b, t.at, ATTN_TILE);
    struct span range[4];
    float s[4][4], o[4][DP / 16] = {{0}}, top[4], sum[4] = {0};
    for (int i = 0; i < 4; i++) {
        top[i] = -INFINITY;
        range[i] = plain_row(i) < t.n ? attn_range(&a, t.b, t.at + plain_row(i)) : span{0, 0};
    }
    for (int k0 = all.lo / ATTN_TILE * ATTN_TILE; k0 < all.hi; k0 += ATTN_TILE) {
        const int n = (int)min((int64_t)ATTN_TILE, a.S - k0);
        const int64_t at = attn_k_at(&a, t.b, k0, t.g);
        plain_products(s, q, mat<T>{(const T *)a.k + at, ldk, n}, a.D, m);
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) {
                int64_t key = k0 + plain_column(j), query = t.at + plain_row(i);
                s[i][j] *= a.scale;
                if (a.bias && plain_row(i) < t.n && key < a.S)
                    s[i][j] += attn_bias(&a, t.h, query, key);
            }
        softmax<DP>(s, range, k0, top, sum, o);
        if (!a.o) continue;
        plain_keep(m, s);
        plain_mix<T, DP>(o, mat<T>{(const T *)a.v + at, ldk, n}, a.D, m);
    }
    for (int i = 0; i < 4; i++) {
        if (plain_row(i) >= t.n) continue;
        const int64_t head = (t.b * a.T + t.at + plain_row(i)) * a.H + t.h;
        const float k = sum[i] > 0 ? 1.0f / sum[i] : sum[i]; /* NaN stays */
        if (a.o) plain_store<T, DP>(o[i], k, (T *)a.o + head * a.D, a.D);
        if (a.lse_out && plain_column(0) == 0) a.lse_out[head] = top[i] + logf(sum[i]);
    }
}

int attn_init(struct attn *a, const struct step *s, int first, const struct exec *x,
              struct err *e)
{
    const struct attrs_attn *attrs = (const struct attrs_attn *)s->attrs;
    const int64_t *q = s->tin[first]->shape, *k = s->tin[first + 1]->shape;
    *a = {};
    a->B = q[0];
    a->T = q[1];
    a->H = q[2];
    a->D = q[3];
    a->S = k[1];
    a->G = k[2];
    a->q = s->in[first];
    a->k = s->in[first + 1];
    a->v = s->in[first + 2];
    a->range = (const int32_t *)s->in[first + 3];
    a->scale = attrs->scale;
    a->fault = cu_fault(x);
    if (a->D > ATTN_D)
        return err_set(e, E_UNSUPPORTED, "attention heads are %lld wide; at most %d is supported",
                       (long long)a->D, ATTN_D);
    if (max64(a->T, a->S) > INT32_MAX - ATTN_TILE ||
        a->B * a->H * (tiles(a->T, ATTN_TILE) + tiles(a->S, ATTN_TILE)) > INT32_MAX)
        return err_set(e, E_UNSUPPORTED, "attention over %lld queries and %lld keys is too large",
                       (long long)a->T, (long long)a->S);
    return 0;
}

template <typename T, int DP> static void forward(const struct attn *a, struct exec *x)
{
    unsigned blocks = (unsigned)(a->B * a->H * tiles(a->T, ATTN_TILE));
    CU_LAUNCH(x, (forward_kernel<T, DP>), blocks, PLAIN_THREADS, 0, *a);
}

int cuda_attn(const struct step *s, struct exec *x, struct err *e)
{
    struct attn a;
    if (attn_init(&a, s, 0, x, e)) return -1;
    a.bias = s->in[4];
    a.bias_type = s->tin[4] ? s->tin[4]->dtype : DT_F32;
    a.o = s->out[0];
    a.lse_out = (float *)s->out[1];
    bool half = s->tin[0]->dtype == DT_BF16;
    if (!a.o && !a.lse_out) return 0;
    if (half && a.D <= ATTN_MMA_D) attn_mma(&a, x);
    else if (half) forward<struct bf16, 256>(&a, x);
    else if (a.D <= 64) forward<float, 64>(&a, x);
    else if (a.D <= 128) forward<float, 128>(&a, x);
    else forward<float, 256>(&a, x);
    return 0;
}
