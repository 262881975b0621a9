/* attn_plain.cuh: products of tiles without tensor cores, for k_attn.cu and k_attn_bwd.cu.
 *
 * A block of 16 x 16 threads holds a 64 x 64 tile of scores, 4 x 4 in each thread: rows 4 ty + i,
 * columns tx + 16 j. So a row lies in 16 neighbouring lanes. Operands pass through shared memory
 * in chunks of 32 columns, which sets no limit to the width of heads; results [64, D] stay in
 * registers, column 32 c + 16 h + tx in element 2 c + h of its row.
 */
#ifndef GRAFT_ATTN_PLAIN_CUH
#define GRAFT_ATTN_PLAIN_CUH

#include "engine/cuda/attn.cuh"

enum { PLAIN_THREADS = 256, PLAIN_CHUNK = 32 };

struct plain {
    float a[ATTN_TILE][PLAIN_CHUNK + 1], b[ATTN_TILE][PLAIN_CHUNK + 1];
    float p[ATTN_TILE][ATTN_TILE + 1]; /* scores as the left factor of a product */
};

/* n rows of a matrix, ld apart. */
template <typename T> struct mat {
    const T *p;
    int64_t ld;
    int n;
};

CU_FN int plain_row(int i)
{
    return (int)threadIdx.x / 16 * 4 + i;
}

CU_FN int plain_column(int j)
{
    return (int)threadIdx.x % 16 + 16 * j;
}

CU_FN float plain_max(float x)
{
    for (int k = 8; k > 0; k /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, k));
    return x;
}

CU_FN float plain_sum(float x)
{
    for (int k = 8; k > 0; k /= 2) x += __shfl_xor_sync(0xffffffffu, x, k);
    return x;
}

/* Columns [c0, c0 + PLAIN_CHUNK) of the D of a matrix, zeros outside. */
template <typename T>
CU_FN void plain_load(float (*to)[PLAIN_CHUNK + 1], struct mat<T> m, int64_t c0,
                                 int64_t D)
{
    for (int i = (int)threadIdx.x; i < ATTN_TILE * PLAIN_CHUNK; i += PLAIN_THREADS) {
        int r = i / PLAIN_CHUNK, c = i % PLAIN_CHUNK;
        to[r][c] = r < m.n && c0 + c < D ? cu_float(m.p[r * m.ld + c0 + c]) : 0.0f;
    }
}

/* s = a b^T over D columns. */
template <typename T>
CU_FN void plain_products(float s[4][4], struct mat<T> a, struct mat<T> b, int64_t D,
                               struct plain *m)
{
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) s[i][j] = 0;
    for (int64_t d = 0; d < D; d += PLAIN_CHUNK) {
        __syncthreads();
        plain_load(m->a, a, d, D);
        plain_load(m->b, b, d, D);
        __syncthreads();
        CU_UNROLL4
        for (int c = 0; c < PLAIN_CHUNK; c++) {
            float x[4], y[4];
            for (int i = 0; i < 4; i++) x[i] = m->a[plain_row(i)][c];
            for (int j = 0; j < 4; j++) y[j] = m->b[plain_column(j)][c];
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) s[i][j] = fmaf(x[i], y[j], s[i][j]);
        }
    }
}

/* The left factor of the next plain_mix(). Whoever still reads the last one is behind a barrier. */
CU_FN void plain_keep(struct plain *m, float s[4][4])
{
    __syncthreads();
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) m->p[plain_row(i)][plain_column(j)] = s[i][j];
}

/* o += p v: p as kept, v a tile of rows. */
template <typename T, int DP>
CU_FN void plain_mix(float o[4][DP / 16], struct mat<T> v, int64_t D, struct plain *m)
{
    CU_UNROLL
    for (int c = 0; c < DP / PLAIN_CHUNK; c++) {
        if (c * PLAIN_CHUNK >= D) break;
        __syncthreads();
        plain_load(m->b, v, c * PLAIN_CHUNK, D);
        __syncthreads();
        CU_UNROLL4
        for (int k = 0; k < ATTN_TILE; k++) {
            float lo = m->b[k][plain_column(0)], hi = m->b[k][plain_column(1)];
            for (int i = 0; i < 4; i++) {
                o[i][2 * c] = fmaf(m->p[plain_row(i)][k], lo, o[i][2 * c]);
                o[i][2 * c + 1] = fmaf(m->p[plain_row(i)][k], hi, o[i][2 * c + 1]);
            }
        }
    }
}

/* A row of a result, times k. */
template <typename T, int DP>
CU_FN void plain_store(const float o[DP / 16], float k, T *to, int64_t D)
{
    CU_UNROLL
    for (int c = 0; c < DP / 16; c++)
        if (plain_column(c) < D) to[plain_column(c)] = cu_to<T>(o[c] * k);
}

#endif
