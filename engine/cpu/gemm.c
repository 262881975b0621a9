/* Blocks of b are packed into panels of NR columns (converted to f32 on the way) that stay in L2;
 * rows of a pass through L1, MR at a time, packed only if they are stored transposed. The sum over
 * k is one chain per element and block of KC, blocks are added in order.
 */
#include "engine/cpu/gemm.h"

#include "engine/cpu/vec.h"

enum {
    MR = GEMM_MR,
    NR = GEMM_NR,
    NRV = NR / VEC,     /* vectors per row of a micro-tile */
    KC = 256,           /* MR KC floats of a in L1 */
    NC = 256,           /* KC NC floats of b in L2 */
    MC = 192,           /* rows of a packed at a time */
    COPY = 64,          /* for so many columns rows of a are copied together: strides of some
                         * powers of two would make them compete for the same lines of L1 */
    PADDED = (MR + 7) / 8 * 8,
    AHEAD = 12,         /* rows of b that take as long as to fetch one */
    SHORT = 64,         /* terms of a sum that take less time than to fetch what it is added to */
    FEW = 48,           /* with so few rows packing b costs more than it saves */
};

_Static_assert((KC + 1) * NC + MC * KC <= GEMM_SCRATCH, "the packed blocks fit");

/* The slow way out, element by element, for the panel at column j0: ragged. */
static void store_ragged(const struct gemm_strip *t, int64_t j0, int rows, int nv, const float *sum)
{
    int64_t end = min64(j0 + nv * VEC, t->cols);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = j0; j < end; j++) {
            float v = sum[i * nv * VEC + j - j0], add = t->add ? t->add[i * t->ldadd + j] : 0;
            if (t->bias) v = one_fma(t->alpha, v, t->bias[j]) + add;
            else v = one_fma(t->alpha, v, add);
            t->c[i * t->ldc + j] = v;
        }
}

/* Rows [i0, i0 + 8), or as many as there are, of the sums of 8 columns, as rows of c from column
 * j on. The sums are padded to whole vectors of columns and to 8 rows. */
static void store_swapped8(const struct gemm_strip *t, int64_t j, int64_t i0, int64_t rows,
                           int64_t ld, const float *sum)
{
    vec8 in[8], out[8];
    for (int i = 0; i < 8; i++) memcpy(&in[i], sum + i * ld, sizeof in[i]);
    vec_transpose8(in, out);
    for (int64_t c = 0; c < min64(8, t->cols - j); c++) {
        float v[8], *to = t->c + (j + c) * t->ldc + i0;
        const float *add = t->add ? t->add + (j + c) * t->ldadd + i0 : NULL;
        memcpy(v, &out[c], sizeof v);
        for (int64_t i = 0; i < rows; i++) {
            float old = add ? add[i] : 0;
            if (t->bias) to[i] = one_fma(t->alpha, v[i], t->bias[i0 + i]) + old;
            else to[i] = one_fma(t->alpha, v[i], old);
        }
    }
}

static void store_swapped(const struct gemm_strip *t, int64_t j0, int rows, int nv,
                          const float *sum)
{
    for (int64_t i = 0; i < rows; i += 8)
        for (int64_t j = 0; j < nv * VEC && j0 + j < t->cols; j += 8)
            store_swapped8(t, j0 + j, i, min64(8, rows - i), nv * VEC, sum + i * nv * VEC + j);
}

/* Loops over the rows and vectors of a micro-tile are unrolled: sums stay in registers. */
#define ROWS_OF(i, rows) _Pragma("GCC unroll 16") for (int i = 0; i < (rows); i++)
#define VECS_OF(j, nv) _Pragma("GCC unroll 16") for (int j = 0; j < (nv); j++)

/* One micro-tile: `rows` rows and `nv` vectors of columns from column j0 of the strip. */
VFN void micro(const struct gemm_strip *t, int64_t j0, const float *b, const int rows, const int nv,
               const bool brief)
{
    vec acc[MR][NRV];
    const float *a = t->a, *add = t->add ? t->add + j0 : NULL;
    float *c = t->c + j0;
    const int64_t a_row = t->a_row, a_k = t->a_k, b_k = t->b_k, ldc = t->ldc, ldadd = t->ldadd;
    const bool far = b_k > NR; /* b is read where it lies */
    const float *next = (add ? add : c) + nv * VEC;
    const int64_t ldnext = add ? ldadd : ldc;
    ROWS_OF(i, rows) VECS_OF(j, nv) acc[i][j] = (vec){0};
    /* By the time the sums are done, what they are added to is here. */
    if (!brief && !t->swapped) {
        ROWS_OF(i, rows) {
            __builtin_prefetch(c + i * ldc, 1);
            if (add && add != c) __builtin_prefetch(add + i * ldadd);
        }
    }
    for (int64_t k = 0; k < t->kc; k++) {
        vec bv[NRV];
        /* Too little time for that: a row of the next tile with every term. */
        if (brief) VECS_OF(j, nv) __builtin_prefetch(next + k * ldnext + j * VEC, 1);
        else if (far) VECS_OF(j, nv) __builtin_prefetch(b + AHEAD * b_k + j * VEC);
        VECS_OF(j, nv) bv[j] = vec_load(b + j * VEC);
        ROWS_OF(i, rows) {
            vec x = vec_set(a[i * a_row]);
            VECS_OF(j, nv) acc[i][j] = vec_fma(x, bv[j], acc[i][j]);
        }
        a += a_k;
        b += b_k;
    }
    if (t->cols - j0 < nv * VEC || t->swapped) {
        float sum[PADDED * NR];
        ROWS_OF(i, rows) VECS_OF(j, nv) vec_store(sum + (i * nv + j) * VEC, acc[i][j]);
        if (t->swapped) store_swapped(t, j0, rows, nv, sum);
        else store_ragged(t, j0, rows, nv, sum);
        return;
    }
    const vec alpha = vec_set(t->alpha);
    if (t->bias) {
        ROWS_OF(i, rows) VECS_OF(j, nv)
            acc[i][j] = vec_fma(alpha, acc[i][j], vec_load(t->bias + j0 + j * VEC));
        if (add)
            ROWS_OF(i, rows) VECS_OF(j, nv) acc[i][j] += vec_load(add + i * ldadd + j * VEC);
    } else if (add) {
        ROWS_OF(i, rows) VECS_OF(j, nv)
            acc[i][j] = vec_fma(alpha, acc[i][j], vec_load(add + i * ldadd + j * VEC));
    } else if (t->alpha != 1) {
        ROWS_OF(i, rows) VECS_OF(j, nv) acc[i][j] *= alpha;
    }
    ROWS_OF(i, rows) VECS_OF(j, nv) vec_store(c + i * ldc + j * VEC, acc[i][j]);
}

VFN void strip(const struct gemm_strip *t, const int rows)
{
    const float *b = t->b;
    for (int64_t j = 0; j < t->cols; j += NR, b += t->b_panel) {
        if (t->cols - j <= VEC) micro(t, j, b, rows, 1, false);
        else if (t->kc < SHORT && !t->swapped) micro(t, j, b, rows, NRV, true);
        else micro(t, j, b, rows, NRV, false);
    }
}

#define STRIP(R) static void strip_##R(const struct gemm_strip *t) { strip(t, R); }
STRIP(1) STRIP(2) STRIP(3) STRIP(4) STRIP(5) STRIP(6)
#ifdef __AVX512F__
STRIP(7) STRIP(8) STRIP(9) STRIP(10) STRIP(11) STRIP(12)
#endif

static void (*const strips[])(const struct gemm_strip *) = {
    NULL, strip_1, strip_2, strip_3, strip_4, strip_5, strip_6,
#ifdef __AVX512F__
    strip_7, strip_8, strip_9, strip_10, strip_11, strip_12,
#endif
};

/* n rows as strips of even height: a few rows left over would keep the FMA units waiting. */
static int64_t strip_height(int64_t n)
{
    return n ? tiles(n, tiles(n, MR)) : MR;
}

void gemm_strips(struct gemm_strip t, int64_t n)
{
    int64_t c = t.swapped ? 1 : t.ldc, add = t.swapped ? 1 : t.ldadd, high = strip_height(n);
    for (int64_t i = 0; i < n; i += high) {
        strips[min64(high, n - i)](&t);
        t.a += high * t.a_row;
        t.c += high * c;
        if (t.add) t.add += high * add;
        if (t.bias && t.swapped) t.bias += high;
    }
}

/* Rows [j, j + w) of a transposed b as columns [i, i + 8) of a panel; w < 8 leaves zeros. */
static void pack_rows(const struct gemm_mat *b, int64_t at, int64_t w, int64_t kc, float *to)
{
    static const float zeros[KC];
    float tmp[8][KC];
    const float *row[8];
    int64_t k = 0, bytes = kc * (int64_t)dtype_size(b->dtype);
    /* The next eight rows: the hardware needs half of such short rows to see them coming. */
    for (int64_t r = 8; w == 8 && r < 16; r++)
        for (int64_t i = 0; i < bytes; i += 64)
            __builtin_prefetch((const char *)b->p + (at + r * b->ld) * (bytes / kc) + i);
    for (int64_t r = 0; r < 8; r++)
        row[r] = r < w ? cpu_floats(b->p, b->dtype, at + r * b->ld, kc, tmp[r]) : zeros;
    for (; k + 8 <= kc; k += 8) {
        vec8 in[8], out[8];
        for (int r = 0; r < 8; r++) memcpy(&in[r], row[r] + k, sizeof in[r]);
        vec_transpose8(in, out);
        for (int r = 0; r < 8; r++) memcpy(to + (k + r) * NR, &out[r], sizeof out[r]);
    }
    for (; k < kc; k++)
        for (int r = 0; r < 8; r++) to[k * NR + r] = row[r][k];
}

static void pack_transposed(const struct gemm_mat *b, int64_t at, int64_t k, int64_t m, float *to)
{
    int64_t panel = gemm_panel(k);
    for (int64_t k0 = 0; k0 < k; k0 += KC) {
        int64_t kc = min64(KC, k - k0);
        for (int64_t j = 0; j < tiles(m, NR) * NR; j += 8)
            pack_rows(b, at + j * b->ld + k0, max64(0, min64(8, m - j)), kc,
                      to + j / NR * panel + j % NR + k0 * NR);
    }
}

static void pack_natural(const struct gemm_mat *b, int64_t at, int64_t k, int64_t m, float *to)
{
    int64_t panel = gemm_panel(k), size = (int64_t)dtype_size(b->dtype);
    float tmp[NC];
    for (int64_t r = 0; r < k; r++, at += b->ld) {
        float *out = to + r * NR;
        int64_t j = 0;
        const float *row = cpu_floats(b->p, b->dtype, at, m, tmp);
        /* Short pieces of long rows: the hardware does not see them coming. */
        const char *ahead = (const char *)b->p + (at + 4 * b->ld) * size;
        for (int64_t i = 0; r + 4 < k && i < m * size; i += 64) __builtin_prefetch(ahead + i);
        for (; j + NR <= m; j += NR, out += panel) memcpy(out, row + j, NR * sizeof *out);
        for (; j < m; j++) *out++ = row[j];
        for (; j % NR; j++) *out++ = 0;
    }
}

/* Packs b[k0 + k, j0 + m), of at most NC columns. */
static void pack(const struct gemm_mat *b, int64_t k0, int64_t k, int64_t j0, int64_t m, float *to)
{
    if (b->t) pack_transposed(b, j0 * b->ld + k0, k, m, to);
    else pack_natural(b, k0 * b->ld + j0, k, m, to);
}

void gemm_pack(const struct gemm_mat *b, int64_t k, int64_t m, float *to)
{
    for (int64_t j = 0; j < m; j += NC, to += gemm_panel(k) * (NC / NR))
        pack(b, 0, k, j, min64(NC, m - j), to);
}

/* Panels of `high` rows of a transposed a: element (i,k) at [i / high][k][i % high]. */
static void pack_a(const struct gemm_mat *a, int64_t at, int64_t high, int64_t m, int64_t kc,
                   float *to)
{
    const float *row = (const float *)a->p + at;
    for (int64_t k = 0; k < kc; k++, row += a->ld) {
        int64_t i = 0;
        for (int64_t r = 0; k + 4 < kc && r < m; r += 16) __builtin_prefetch(row + 4 * a->ld + r);
        for (; high == MR && i + MR <= m; i += MR)
            memcpy(to + i * kc + k * MR, row + i, MR * sizeof *to);
        for (; i < m; i += high)
            for (int64_t r = 0; r < min64(high, m - i); r++) to[i * kc + k * high + r] = row[i + r];
    }
}

/* Rows of a side by side, and a hint for the `next` ones after them, needed one strip later. */
static void copy_rows(const struct gemm_mat *a, const float *from, int64_t rows_, int64_t next,
                      int64_t kc, float *to)
{
    for (int64_t r = 0; r < rows_; r++, from += a->ld) {
        memcpy(to + r * kc, from, (size_t)kc * sizeof *to);
        for (int64_t k = 0; r < next && k < kc; k += 16)
            __builtin_prefetch(from + rows_ * a->ld + k, 0, 2);
    }
}

/* Runs t, whose a and b are set, for rows from i and columns from j of the result. */
static void run_strip(const struct gemm *g, struct gemm_strip *t, bool later, int64_t i, int64_t j)
{
    int64_t high = strip_height(g->n);
    int64_t row = t->swapped ? 1 : g->ldc, col = t->swapped ? g->ldc : 1;
    const float *add = g->add;
    t->c = g->c + i * row + j * col;
    t->ldadd = later ? g->ldc : g->ldadd;
    if (later) t->add = t->c;
    else t->add = add ? add + (t->swapped ? j * g->ldadd + i : i * g->ldadd + j) : NULL;
    t->bias = g->bias && !later ? g->bias + (t->swapped ? i : j) : NULL;
    strips[min64(high, g->n - i)](t);
}

/* c[:, j0 + nc) (+)= a[:, k0 + kc) b[k0 + kc, j0 + nc) */
static void block(const struct gemm *g, bool swapped, int64_t k0, int64_t j0)
{
    int64_t kc = min64(KC, g->k - k0), nc = min64(NC, g->m - j0), edge = nc % NR;
    float *bp = g->scratch, *ap = bp + (KC + 1) * NC;
    bool direct = g->n <= FEW && !g->b.t && g->b.dtype == DT_F32;
    int64_t high = strip_height(g->n), chunk = MC / high * high;
    struct gemm_strip t = {.kc = kc, .alpha = g->alpha, .ldc = g->ldc, .swapped = swapped,
                           .a_row = g->a.t ? 1 : g->a.ld, .a_k = g->a.t ? high : 1};
    if (!direct) pack(&g->b, k0, kc, j0, nc, bp);
    else if (edge) pack(&g->b, k0, kc, j0 + nc - edge, edge, bp);
    for (int64_t i = 0; i < g->n; i += high) {
        if (g->a.t && i % chunk == 0)
            pack_a(&g->a, k0 * g->a.ld + i, high, min64(chunk, g->n - i), kc, ap);
        t.a = g->a.t ? ap + i % chunk * kc : (const float *)g->a.p + i * g->a.ld + k0;
        if (!g->a.t && nc >= COPY) {
            copy_rows(&g->a, t.a, min64(high, g->n - i), min64(high, g->n - i - high), kc, ap);
            t.a = ap;
            t.a_row = kc;
        }
        if (direct && nc > edge) {
            t.b = (const float *)g->b.p + k0 * g->b.ld + j0;
            t.b_k = g->b.ld;
            t.b_panel = NR;
            t.cols = nc - edge;
            run_strip(g, &t, k0 > 0, i, j0);
        }
        if (direct && !edge) continue;
        t.b = bp;
        t.b_k = NR;
        t.b_panel = gemm_panel(kc);
        t.cols = direct ? edge : nc;
        run_strip(g, &t, k0 > 0, i, direct ? j0 + nc - edge : j0);
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
