/* Blocks of b are packed into panels of NR columns (converted to f32 on the way) that stay in L2;
 * rows of a pass through L1, MR at a time, packed only if they are stored transposed. The sum over
 * k is one chain per element and block of KC, blocks are added in order.
 */
#include "engine/cpu/gemm.h"

#include "engine/cpu/vec.h"

#ifdef __AVX512F__
enum { MR = 12 };
#else
enum { MR = 6 };
#endif
enum {
    NRV = 2,            /* vectors per row of a micro-tile */
    NR = NRV * VEC,
    KC = 384,           /* MR KC floats of a in L1 */
    NC = 256,           /* KC NC floats of b in L2 */
    MC = 96,            /* rows of a packed at a time */
    FEW = 48,           /* with so few rows packing b costs more than it saves */
};

_Static_assert(KC * NC + MC * KC + KC * NR <= GEMM_SCRATCH, "the packed blocks fit");

/* One micro-tile: up to MR rows and NR columns. */
struct tile {
    int64_t kc;
    const float *a;
    int64_t a_row, a_k;  /* element (i,k) of a is a[i * a_row + k * a_k] */
    const float *b;
    int64_t b_k;         /* row k of b is b + k * b_k */
    float alpha;
    const float *bias, *add;
    int64_t ldadd;
    float *c;
    int64_t ldc;
    int64_t cols;
    bool swapped;        /* c is stored transposed: element (i,j) is c[j * ldc + i] */
};

/* The slow way out, element by element: ragged or transposed tiles. */
static void store_ragged(const struct tile *t, int rows, const float *sum)
{
    int64_t ci = t->swapped ? 1 : t->ldc, cj = t->swapped ? t->ldc : 1;
    int64_t di = t->swapped ? 1 : t->ldadd, dj = t->swapped ? t->ldadd : 1;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < t->cols; j++) {
            float v = t->alpha * sum[i * NR + j];
            if (t->bias) v += t->bias[t->swapped ? i : j];
            if (t->add) v += t->add[i * di + j * dj];
            t->c[i * ci + j * cj] = v;
        }
}

VFN void micro(const struct tile *t, const int rows)
{
    vec acc[MR][NRV];
    const float *a = t->a, *b = t->b;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < NRV; j++) acc[i][j] = (vec){0};
    for (int64_t k = 0; k < t->kc; k++) {
        vec b0 = vec_load(b), b1 = vec_load(b + VEC);
        for (int i = 0; i < rows; i++) {
            vec x = vec_set(a[i * t->a_row]);
            acc[i][0] = vec_fma(x, b0, acc[i][0]);
            acc[i][1] = vec_fma(x, b1, acc[i][1]);
        }
        a += t->a_k;
        b += t->b_k;
    }
    if (t->cols < NR || t->swapped) {
        float sum[MR * NR];
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < NRV; j++) vec_store(sum + i * NR + j * VEC, acc[i][j]);
        store_ragged(t, rows, sum);
        return;
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < NRV; j++) {
            vec v = t->alpha * acc[i][j];
            if (t->bias) v += vec_load(t->bias + j * VEC);
            if (t->add) v += vec_load(t->add + i * t->ldadd + j * VEC);
            vec_store(t->c + i * t->ldc + j * VEC, v);
        }
}

#define MICRO(R) static void micro_##R(const struct tile *t) { micro(t, R); }
MICRO(1) MICRO(2) MICRO(3) MICRO(4) MICRO(5) MICRO(6)
#ifdef __AVX512F__
MICRO(7) MICRO(8) MICRO(9) MICRO(10) MICRO(11) MICRO(12)
#endif

static void (*const micros[])(const struct tile *) = {
    NULL, micro_1, micro_2, micro_3, micro_4, micro_5, micro_6,
#ifdef __AVX512F__
    micro_7, micro_8, micro_9, micro_10, micro_11, micro_12,
#endif
};

/* Panels of NR columns of b[k0 + kc, j0 + nc), zero-padded. */
static void pack_b(const struct gemm *g, int64_t k0, int64_t kc, int64_t j0, int64_t nc, float *to)
{
    const struct gemm_mat *b = &g->b;
    float tmp[KC];
    for (int64_t j = 0; j < nc; j += NR, to += kc * NR) {
        int64_t w = min64(NR, nc - j);
        if (b->t) {
            for (int64_t i = 0; i < NR; i++) {
                if (i >= w) {
                    for (int64_t k = 0; k < kc; k++) to[k * NR + i] = 0;
                    continue;
                }
                const float *row =
                    cpu_floats(b->p, b->dtype, (j0 + j + i) * b->ld + k0, kc, tmp);
                for (int64_t k = 0; k < kc; k++) to[k * NR + i] = row[k];
            }
        } else {
            for (int64_t k = 0; k < kc; k++) {
                float *out = to + k * NR;
                const float *row = cpu_floats(b->p, b->dtype, (k0 + k) * b->ld + j0 + j, w, out);
                if (row != out)
                    for (int64_t i = 0; i < w; i++) out[i] = row[i];
                for (int64_t i = w; i < NR; i++) out[i] = 0;
            }
        }
    }
}

/* Panels of MR rows of a transposed a: element (i,k) at [i / MR][k][i % MR]. */
static void pack_a(const struct gemm *g, int64_t i0, int64_t mc, int64_t k0, int64_t kc, float *to)
{
    const float *a = (const float *)g->a.p + k0 * g->a.ld + i0;
    for (int64_t i = 0; i < mc; i += MR, to += MR * kc) {
        int64_t h = min64(MR, mc - i);
        for (int64_t k = 0; k < kc; k++)
            for (int64_t r = 0; r < h; r++) to[k * MR + r] = a[k * g->a.ld + i + r];
    }
}

/* c[:, j0 + nc) (+)= a[:, k0 + kc) b[k0 + kc, j0 + nc) */
static void block(const struct gemm *g, bool swapped, int64_t k0, int64_t j0)
{
    int64_t kc = min64(KC, g->k - k0), nc = min64(NC, g->m - j0);
    float *bp = g->scratch, *ap = bp + KC * NC, *edge = ap + MC * KC;
    bool direct = g->n <= FEW && !g->b.t && g->b.dtype == DT_F32;
    const float *b0 = (const float *)g->b.p + k0 * g->b.ld + j0;
    if (!direct) pack_b(g, k0, kc, j0, nc, bp);
    else if (nc % NR) pack_b(g, k0, kc, j0 + nc / NR * NR, nc % NR, edge);
    const float *add = k0 ? g->c : g->add;
    int64_t ldadd = k0 ? g->ldc : g->ldadd;
    struct tile t = {.kc = kc, .alpha = g->alpha, .ldc = g->ldc, .swapped = swapped,
                     .ldadd = ldadd, .a_row = g->a.t ? 1 : g->a.ld, .a_k = g->a.t ? MR : 1};
    for (int64_t i = 0; i < g->n; i += MR) {
        int64_t h = min64(MR, g->n - i);
        if (g->a.t && i % MC == 0) pack_a(g, i, min64(MC, g->n - i), k0, kc, ap);
        t.a = g->a.t ? ap + i % MC * kc : (const float *)g->a.p + i * g->a.ld + k0;
        for (int64_t j = 0; j < nc; j += NR) {
            int64_t at = swapped ? (j0 + j) * g->ldc + i : i * g->ldc + j0 + j;
            int64_t at_add = swapped ? (j0 + j) * ldadd + i : i * ldadd + j0 + j;
            t.cols = min64(NR, nc - j);
            t.b = !direct ? bp + j * kc : t.cols < NR ? edge : b0 + j;
            t.b_k = direct && t.cols == NR ? g->b.ld : NR;
            t.bias = g->bias && !k0 ? g->bias + (swapped ? i : j0 + j) : NULL;
            t.add = add ? add + at_add : NULL;
            t.c = g->c + at;
            micros[h](&t);
        }
    }
}

static void empty_sum(const struct gemm *g)
{
    for (int64_t i = 0; i < g->n; i++)
        for (int64_t j = 0; j < g->m; j++)
            g->c[i * g->ldc + j] = (g->bias ? g->bias[j] : 0) +
                                   (g->add ? g->add[i * g->ldadd + j] : 0);
}

void gemm_run(const struct gemm *g)
{
    struct gemm s = *g;
    if (g->k == 0) {
        empty_sum(g);
        return;
    }
    /* A transposed a of many rows against few columns is better read in its natural order, as the
     * b of the transposed product. */
    bool swap = g->a.t && g->b.dtype == DT_F32 && g->m <= FEW && g->n > g->m;
    if (swap) {
        s.n = g->m;
        s.m = g->n;
        s.a = (struct gemm_mat){g->b.p, DT_F32, g->b.ld, !g->b.t};
        s.b = (struct gemm_mat){g->a.p, DT_F32, g->a.ld, false};
    }
    for (int64_t j0 = 0; j0 < s.m; j0 += NC)
        for (int64_t k0 = 0; k0 < s.k; k0 += KC) block(&s, swap, k0, j0);
}
