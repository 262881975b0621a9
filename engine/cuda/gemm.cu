/* Matrix products: cuBLASLt where it fits, else these kernels. A block makes one tile of C; the
 * sum over k runs in order, so an element does not depend on the tile it falls into. */
#include "engine/cuda/gemm.cuh"

/* One side of a product: op(A), or the transpose of op(B), [rows, k]. */
template <typename T> struct operand {
    const T *p;
    int64_t ld, rows, k;
    bool lead; /* stored with k along its rows, so that neighbouring threads should differ in i */
};

template <typename T> CU_FN struct operand<T> left_of(const struct cu_gemm *g)
{
    return {(const T *)g->a, g->lda, g->m, g->k, g->at};
}

template <typename T> CU_FN struct operand<T> right_of(const struct cu_gemm *g)
{
    return {(const T *)g->b, g->ldb, g->n, g->k, !g->bt};
}

/* Rows from i0, WIDE of them, and DEEP of k from p0: (i, p) becomes to[i si + p sp]. */
template <int WIDE, int DEEP, int THREADS, typename T>
CU_FN void load_tile(struct operand<T> o, int64_t i0, int64_t p0, T *to, int si, int sp)
{
    for (int t = (int)threadIdx.x; t < WIDE * DEEP; t += THREADS) {
        int i = o.lead ? t % WIDE : t / DEEP, p = o.lead ? t / WIDE : t % DEEP;
        int64_t gi = i0 + i, gp = p0 + p;
        bool in = gi < o.rows && gp < o.k;
        to[i * si + p * sp] = in ? o.p[o.lead ? gp * o.ld + gi : gi * o.ld + gp] : T{};
    }
}

template <typename TC>
CU_FN void finish(const struct cu_gemm *g, float sum, int64_t i, int64_t j)
{
    TC *c = (TC *)g->c + i * g->ldc + j;
    float y = g->alpha * sum;
    if (i >= g->m || j >= g->n) return;
    if (g->bias) y += cu_float(((const TC *)g->bias)[j]);
    if (g->add) y += cu_float(((const TC *)g->add)[i * g->ldc + j]);
    if (g->accum) y += cu_float(*c);
    *c = cu_to<TC>(y);
}

/* ---- f32: 256 threads, R x R sums each, tile 16 R ---- */

enum { F32_DEEP = 16, F32_THREADS = 256 };

template <int R> CU_KERNEL void __launch_bounds__(F32_THREADS, 1) gemm_f32(struct cu_gemm g)
{
    enum { WIDE = 16 * R, ROW = WIDE + 4 };
    CU_ARRAY(float, a, [F32_DEEP][ROW]);
    CU_ARRAY(float, b, [F32_DEEP][ROW]);
    const int64_t i0 = (int64_t)blockIdx.x * WIDE, j0 = (int64_t)blockIdx.y * WIDE;
    const int row = (int)threadIdx.x / 16, col = (int)threadIdx.x % 16;
    float sum[R][R] = {};
    for (int64_t p0 = 0; p0 < g.k; p0 += F32_DEEP) {
        load_tile<WIDE, F32_DEEP, F32_THREADS>(left_of<float>(&g), i0, p0, a[0], 1, ROW);
        load_tile<WIDE, F32_DEEP, F32_THREADS>(right_of<float>(&g), j0, p0, b[0], 1, ROW);
        __syncthreads();
        for (int p = 0; p < F32_DEEP; p++) {
            float u[R], v[R];
            for (int i = 0; i < R; i++) u[i] = a[p][row + 16 * i];
            for (int j = 0; j < R; j++) v[j] = b[p][col + 16 * j];
            for (int i = 0; i < R; i++)
                for (int j = 0; j < R; j++) sum[i][j] = fmaf(u[i], v[j], sum[i][j]);
        }
        __syncthreads();
    }
    CU_UNROLL
    for (int k = 0; k < R * R; k++)
        finish<float>(&g, sum[k / R][k % R], i0 + row + 16 * (k / R), j0 + col + 16 * (k % R));
}

/* ---- bf16: tile 64 x 64, four warps of 32 x 32, tensor cores ---- */

enum { B16_WIDE = 64, B16_DEEP = 32, B16_ROW = B16_DEEP + 8, B16_THREADS = 128 };

template <typename TC>
CU_KERNEL void __launch_bounds__(B16_THREADS, 2) gemm_bf16(struct cu_gemm g)
{
    CU_ARRAY(struct bf16, a, [B16_WIDE][B16_ROW]);
    CU_ARRAY(struct bf16, b, [B16_WIDE][B16_ROW]);
    const int64_t i0 = (int64_t)blockIdx.x * B16_WIDE, j0 = (int64_t)blockIdx.y * B16_WIDE;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int wi = warp / 2 * 32, wj = warp % 2 * 32;
    float sum[2][4][4] = {};
    for (int64_t p0 = 0; p0 < g.k; p0 += B16_DEEP) {
        load_tile<B16_WIDE, B16_DEEP, B16_THREADS>(left_of<struct bf16>(&g), i0, p0, a[0],
                                                   B16_ROW, 1);
        load_tile<B16_WIDE, B16_DEEP, B16_THREADS>(right_of<struct bf16>(&g), j0, p0, b[0],
                                                   B16_ROW, 1);
        __syncthreads();
        for (int p = 0; p < B16_DEEP; p += 16) {
            uint32_t fa[2][4], fb[2][4];
            for (int i = 0; i < 2; i++)
                cu_ldmatrix4(fa[i], &a[wi + 16 * i + lane % 16][p + lane / 16 * 8]);
            for (int j = 0; j < 2; j++)
                cu_ldmatrix4(fb[j], &b[wj + 16 * j + lane % 8 + lane / 16 * 8]
                                      [p + lane / 8 % 2 * 8]);
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) cu_mma_bf16(sum[i][j], fa[i], &fb[j / 2][j % 2 * 2]);
        }
        __syncthreads();
    }
    CU_UNROLL
    for (int k = 0; k < 32; k++) {
        const int i = k / 16, j = k / 4 % 4, r = k % 4;
        finish<TC>(&g, sum[i][j][r], i0 + wi + 16 * i + lane / 4 + r / 2 * 8,
                   j0 + wj + 8 * j + lane % 4 * 2 + r % 2);
    }
}

/* ---- choice ---- */

static void own_gemm(struct exec *x, const struct cu_gemm *g)
{
    const bool large = g->t == DT_F32 && g->m > 64 && g->n > 64;
    const int tile = large ? 128 : 64;
    const dim3 grid((unsigned)tiles(g->m, tile), (unsigned)tiles(g->n, tile));
    if (large) CU_LAUNCH(x, gemm_f32<8>, grid, F32_THREADS, 0, *g);
    else if (g->t == DT_F32) CU_LAUNCH(x, gemm_f32<4>, grid, F32_THREADS, 0, *g);
    else
        CU_COMPUTE(g->tc, TC, { CU_LAUNCH(x, gemm_bf16<TC>, grid, B16_THREADS, 0, *g); });
}

int cu_gemm(struct exec *x, const struct cu_gemm *from, struct err *e)
{
    struct cu_gemm g = *from;
    if (g.lda == 0) g.lda = g.at ? g.m : g.k;
    if (g.ldb == 0) g.ldb = g.bt ? g.k : g.n;
    if (g.ldc == 0) g.ldc = g.n;
    if (g.m == 0 || g.n == 0) return 0;
    int rc = g.k > 0 ? lt_gemm(x, &g, e) : 1;
    if (rc == 1) own_gemm(x, &g);
    return rc < 0 ? -1 : 0;
}
