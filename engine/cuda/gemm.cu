/* Matrix products: cuBLASLt where it fits, else these kernels. A block makes one tile of C; the
 * sum over k runs in order, so an element does not depend on the tile it falls into. */
#include "engine/cuda/gemm.cuh"

enum { GRID_YZ = 65535 };

/* What both kernels get. Pointers of the element types travel beside it. */
struct gemm_args {
    int64_t m, n, k;
    int64_t lda, ldb, ldc, stride_a, stride_b, stride_c;
    bool at, bt, accum;
    float alpha;
};

template <typename TC>
CU_FN void finish(const struct gemm_args &g, float sum, int64_t i, int64_t j, TC *c,
                  const TC *add, const void *bias, enum dtype tbias)
{
    int64_t at = i * g.ldc + j;
    float y = g.alpha * sum;
    if (bias)
        y += tbias == DT_F32    ? ((const float *)bias)[j]
             : tbias == DT_BF16 ? cu_float(((const struct bf16 *)bias)[j])
                                : cu_float(((const struct f16 *)bias)[j]);
    if (add) y += cu_float(add[at]);
    if (g.accum) y += cu_float(c[at]);
    cu_set(&c[at], y);
}

/* One operand of the current tile: `wide` rows (of op(A)) or columns (of op(B)) times `deep` of k,
 * element (i, p) given to put(). lead: the operand is stored with k along its rows, so that
 * neighbouring threads should differ in i. */
template <int WIDE, int DEEP, int THREADS, typename T, typename Put>
CU_FN void load_tile(const T *from, int64_t ld, bool lead, int64_t i0, int64_t p0, int64_t rows,
                     int64_t k, Put put)
{
    for (int t = (int)threadIdx.x; t < WIDE * DEEP; t += THREADS) {
        int i = lead ? t % WIDE : t / DEEP, p = lead ? t / WIDE : t % DEEP;
        int64_t gi = i0 + i, gp = p0 + p;
        bool in = gi < rows && gp < k;
        put(i, p, in ? cu_float(from[lead ? gp * ld + gi : gi * ld + gp]) : 0.0f);
    }
}

/* ---- f32: 256 threads, R x R sums each, tile 16 R ---- */

enum { F32_DEEP = 16, F32_THREADS = 256 };

template <int R, typename TB, typename TC>
CU_KERNEL void __launch_bounds__(F32_THREADS)
    gemm_f32(struct gemm_args g, const float *a, const TB *b, TC *c, const TC *add,
             const void *bias, enum dtype tbias)
{
    CU_ARRAY(float, ta, [F32_DEEP][16 * R + 4]);
    CU_ARRAY(float, tb, [F32_DEEP][16 * R + 4]);
    int64_t i0 = (int64_t)blockIdx.x * 16 * R, j0 = (int64_t)blockIdx.y * 16 * R;
    int row = (int)threadIdx.x / 16, col = (int)threadIdx.x % 16;
    float sum[R][R] = {};
    a += blockIdx.z * g.stride_a;
    b += blockIdx.z * g.stride_b;
    for (int64_t p0 = 0; p0 < g.k; p0 += F32_DEEP) {
        load_tile<16 * R, F32_DEEP, F32_THREADS>(a, g.lda, g.at, i0, p0, g.m, g.k,
                                                 [&](int i, int p, float v) { ta[p][i] = v; });
        load_tile<16 * R, F32_DEEP, F32_THREADS>(b, g.ldb, !g.bt, j0, p0, g.n, g.k,
                                                 [&](int j, int p, float v) { tb[p][j] = v; });
        __syncthreads();
        for (int p = 0; p < F32_DEEP; p++) {
            float u[R], v[R];
            for (int i = 0; i < R; i++) u[i] = ta[p][row + 16 * i];
            for (int j = 0; j < R; j++) v[j] = tb[p][col + 16 * j];
            for (int i = 0; i < R; i++)
                for (int j = 0; j < R; j++) sum[i][j] = fmaf(u[i], v[j], sum[i][j]);
        }
        __syncthreads();
    }
    c += blockIdx.z * g.stride_c;
    if (add) add += blockIdx.z * g.stride_c;
    for (int i = 0; i < R; i++)
        for (int j = 0; j < R; j++) {
            int64_t gi = i0 + row + 16 * i, gj = j0 + col + 16 * j;
            if (gi < g.m && gj < g.n) finish(g, sum[i][j], gi, gj, c, add, bias, tbias);
        }
}

/* ---- bf16: tile 64 x 64, four warps of 32 x 32, tensor cores ---- */

enum { B16_WIDE = 64, B16_DEEP = 32, B16_ROW = B16_DEEP + 8, B16_THREADS = 128 };

template <typename TB, typename TC>
CU_KERNEL void __launch_bounds__(B16_THREADS)
    gemm_bf16(struct gemm_args g, const struct bf16 *a, const TB *b, TC *c, const TC *add,
              const void *bias, enum dtype tbias)
{
    CU_ARRAY(uint16_t, ta, [B16_WIDE][B16_ROW]);
    CU_ARRAY(uint16_t, tb, [B16_WIDE][B16_ROW]);
    int64_t i0 = (int64_t)blockIdx.x * B16_WIDE, j0 = (int64_t)blockIdx.y * B16_WIDE;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int wi = warp / 2 * 32, wj = warp % 2 * 32;
    float sum[2][4][4] = {};
    a += blockIdx.z * g.stride_a;
    b += blockIdx.z * g.stride_b;
    for (int64_t p0 = 0; p0 < g.k; p0 += B16_DEEP) {
        load_tile<B16_WIDE, B16_DEEP, B16_THREADS>(
            a, g.lda, g.at, i0, p0, g.m, g.k,
            [&](int i, int p, float v) { ta[i][p] = cu_to_bf16(v); });
        load_tile<B16_WIDE, B16_DEEP, B16_THREADS>(
            b, g.ldb, !g.bt, j0, p0, g.n, g.k,
            [&](int j, int p, float v) { tb[j][p] = cu_to_bf16(v); });
        __syncthreads();
        for (int p = 0; p < B16_DEEP; p += 16) {
            uint32_t fa[2][4], fb[2][4];
            for (int i = 0; i < 2; i++)
                cu_ldmatrix4(fa[i], &ta[wi + 16 * i + lane % 16][p + lane / 16 * 8]);
            for (int j = 0; j < 2; j++)
                cu_ldmatrix4(fb[j], &tb[wj + 16 * j + lane % 8 + lane / 16 * 8]
                                       [p + lane / 8 % 2 * 8]);
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) cu_mma_bf16(sum[i][j], fa[i], &fb[j / 2][j % 2 * 2]);
        }
        __syncthreads();
    }
    c += blockIdx.z * g.stride_c;
    if (add) add += blockIdx.z * g.stride_c;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int r = 0; r < 4; r++) {
                int64_t gi = i0 + wi + 16 * i + lane / 4 + r / 2 * 8;
                int64_t gj = j0 + wj + 8 * j + lane % 4 * 2 + r % 2;
                if (gi < g.m && gj < g.n) finish(g, sum[i][j][r], gi, gj, c, add, bias, tbias);
            }
}

/* ---- choice ---- */

template <typename TB, typename TC>
static void launch(struct exec *x, const struct cu_gemm *g, const struct gemm_args &args, dim3 grid)
{
    const TB *b = (const TB *)g->b;
    const TC *add = (const TC *)g->add;
    TC *c = (TC *)g->c;
    if (g->ta == DT_BF16)
        CU_LAUNCH(x, (gemm_bf16<TB, TC>), grid, B16_THREADS, 0, args, (const struct bf16 *)g->a,
                  b, c, add, g->bias, g->tbias);
    else if (g->m > 64 && g->n > 64)
        CU_LAUNCH(x, (gemm_f32<8, TB, TC>), grid, F32_THREADS, 0, args, (const float *)g->a, b, c,
                  add, g->bias, g->tbias);
    else
        CU_LAUNCH(x, (gemm_f32<4, TB, TC>), grid, F32_THREADS, 0, args, (const float *)g->a, b, c,
                  add, g->bias, g->tbias);
}

/* A grid holds at most GRID_YZ products; more go in several launches. */
static void own_gemm(struct exec *x, const struct cu_gemm *g)
{
    struct cu_gemm part = *g;
    const struct gemm_args args = {g->m,        g->n,        g->k,  g->lda, g->ldb,   g->ldc,
                                   g->stride_a, g->stride_b, g->stride_c,
                                   g->at,       g->bt,       g->accum, g->alpha};
    int tile = g->ta == DT_F32 && g->m > 64 && g->n > 64 ? 128 : 64;
    for (int64_t from = 0; from < g->batch; from += GRID_YZ) {
        int64_t n = min64(GRID_YZ, g->batch - from);
        size_t c = (size_t)(from * g->stride_c) * dtype_size(g->tc);
        dim3 grid((unsigned)tiles(g->m, tile), (unsigned)tiles(g->n, tile), (unsigned)n);
        part.a = (const char *)g->a + (size_t)(from * g->stride_a) * dtype_size(g->ta);
        part.b = (const char *)g->b + (size_t)(from * g->stride_b) * dtype_size(g->tb);
        part.c = (char *)g->c + c;
        part.add = g->add ? (const char *)g->add + c : NULL;
        CU_ANY(g->tb, TB, CU_COMPUTE(g->tc, TC, (launch<TB, TC>(x, &part, args, grid))));
    }
}

int cu_gemm(struct exec *x, const struct cu_gemm *from, struct err *e)
{
    struct cu_gemm g = *from;
    if (g.batch == 0) g.batch = 1;
    if (g.lda == 0) g.lda = g.at ? g.m : g.k;
    if (g.ldb == 0) g.ldb = g.bt ? g.k : g.n;
    if (g.ldc == 0) g.ldc = g.n;
    if (g.m == 0 || g.n == 0) return 0;
    int rc = g.k > 0 ? lt_gemm(x, &g, e) : 1;
    if (rc == 1) own_gemm(x, &g);
    return rc < 0 ? -1 : 0;
}
