/* Attention in bf16 on tensor cores: products in bf16 with f32 sums, softmax in f32.
 *
 * A block is four warps with 16 RT rows each of its own tile (queries; for dk and dv keys) and goes
 * through the other side by tiles of BN rows. Tiles lie in shared memory as rows of DP elements,
 * zeros behind column D, in chunks of 16 bytes whose number is XORed with the row's: so eight rows
 * of one column lie in eight different banks. Results stay in registers as cu_mma_bf16 leaves them:
 * lane 4 g + q of a warp has rows g and g + 8 of each 16, columns 2 q, 2 q + 1 of each eight.
 *
 * RT and BN are what fits into registers and 48 KiB: more rows per warp mean fewer reads of the
 * other side's tile for each product, which is what bounds these kernels. */
#include "engine/cuda/attn.cuh"

enum { WARPS_OF_TILE = 4, THREADS = 32 * WARPS_OF_TILE };

#define LOG2E 1.44269504088896341f

typedef struct bf16 half;

/* ---- tiles in shared memory ---- */

template <int DP> CU_FN half *chunk(half *tile, int row, int c)
{
    return tile + row * DP + ((c ^ (row & 7)) << 3);
}

/* A tile of `high` rows from the n rows at p, ld apart, D wide. To be waited for
 * (cu_cp_async_commit). */
template <int DP>
CU_FN void fetch(half *tile, int high, const half *p, int64_t ld, int n, int64_t D)
{
    const bool whole = D == DP && (uintptr_t)p % 16 == 0;
    for (int i = (int)threadIdx.x; i < high * (DP / 8); i += THREADS) {
        const int r = i / (DP / 8), c = i % (DP / 8);
        half *to = chunk<DP>(tile, r, c);
        if (whole) {
            cu_cp_async16(to, p + (r < n ? r * ld + 8 * c : 0), r < n);
            continue;
        }
        for (int k = 0; k < 8; k++)
            to[k] = r < n && 8 * c + k < D ? p[r * ld + 8 * c + k] : half{0};
    }
}

/* Rows [row, row + 16), columns [16 k, 16 k + 16) as the left factor; read _t as the right one
 * of a product over rows: two times eight columns. */
template <int DP> CU_FN const half *left_at(half *tile, int row, int k)
{
    const int lane = (int)threadIdx.x % 32;
    return chunk<DP>(tile, row + lane % 16, 2 * k + lane / 16);
}

/* The same rows as the right factor of a product over columns: two times eight rows. */
template <int DP> CU_FN const half *right_at(half *tile, int row, int k)
{
    const int lane = (int)threadIdx.x % 32;
    return chunk<DP>(tile, row + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2);
}

/* ---- products ---- */

/* s = the warp's rows of a times the BN rows of b, over DP columns. */
template <int DP, int BN, int RT>
CU_FN void scores(float s[RT][BN / 8][4], half *a, half *b)
{
    const int row = (int)threadIdx.x / 32 * 16 * RT;
    CU_UNROLL
    for (int i = 0; i < RT * BN / 8 * 4; i++) s[i / (BN / 2)][i / 4 % (BN / 8)][i % 4] = 0;
    CU_UNROLL
    for (int k = 0; k < DP / 16; k++) {
        uint32_t x[RT][4], y[4];
        CU_UNROLL
        for (int m = 0; m < RT; m++) cu_ldmatrix4(x[m], left_at<DP>(a, row + 16 * m, k));
        CU_UNROLL
        for (int n = 0; n < BN / 16; n++) {
            cu_ldmatrix4(y, right_at<DP>(b, 16 * n, k));
            CU_UNROLL
            for (int m = 0; m < RT; m++) {
                cu_mma_bf16(s[m][2 * n], x[m], y);
                cu_mma_bf16(s[m][2 * n + 1], x[m], y + 2);
            }
        }
    }
}

/* o += s v, v a tile of BN rows. */
template <int DP, int BN, int RT>
CU_FN void mix(float o[RT][DP / 8][4], const float s[RT][BN / 8][4], half *v)
{
    CU_UNROLL
    for (int k = 0; k < BN / 16; k++) {
        uint32_t x[RT][4];
        CU_UNROLL
        for (int i = 0; i < 4 * RT; i++) {
            const float *from = &s[i / 4][2 * k + i % 4 / 2][i % 2 * 2];
            x[i / 4][i % 4] = cu_pack_bf16(from[0], from[1]);
        }
        CU_UNROLL
        for (int n = 0; n < DP / 16; n++) {
            uint32_t y[4];
            cu_ldmatrix4_t(y, left_at<DP>(v, 16 * k, n));
            CU_UNROLL
            for (int m = 0; m < RT; m++) {
                cu_mma_bf16(o[m][2 * n], x[m], y);
                cu_mma_bf16(o[m][2 * n + 1], x[m], y + 2);
            }
        }
    }
}

/* ---- rows and columns of a lane ---- */

/* Row i of the 2 RT that the lane has of its warp, in the tile. */
template <int RT> CU_FN int lane_row(int i)
{
    const int thread = (int)threadIdx.x;
    return thread / 32 * 16 * RT + thread % 32 / 4 + 8 * i;
}

/* Column of element i of quad n. */
CU_FN int lane_column(int n, int i)
{
    return 8 * n + (int)threadIdx.x % 4 * 2 + i % 2;
}

CU_FN float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

CU_FN float quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* n rows of memory, ld apart, D wide. */
struct place {
    half *p;
    int64_t ld, D;
    int n;
};

/* Writes the warp's rows of a result, row i of a lane times k[i]: through its rows of a tile that
 * nobody else reads, so that memory is written by whole chunks. */
template <int DP, int RT>
CU_FN void drain(half *tile, const float o[RT][DP / 8][4], const float k[2 * RT], struct place m)
{
    const bool whole = m.D % 8 == 0 && (uintptr_t)m.p % 16 == 0;
    const int row = (int)threadIdx.x / 32 * 16 * RT;
    CU_UNROLL
    for (int c = 0; c < DP / 8; c++)
        for (int i = 0; i < 2 * RT; i++) {
            half *to = chunk<DP>(tile, lane_row<RT>(i), c) + lane_column(0, 0);
            const float *from = &o[i / 2][c][i % 2 * 2];
            *(uint32_t *)to = cu_pack_bf16(from[0] * k[i], from[1] * k[i]);
        }
    __syncwarp();
    for (int i = (int)threadIdx.x % 32; i < 16 * RT * (DP / 8); i += 32) {
        const int r = row + i / (DP / 8), c = i % (DP / 8);
        const half *from = chunk<DP>(tile, r, c);
        half *to = m.p + r * m.ld + 8 * c;
        if (r >= m.n || 8 * c >= m.D) continue;
        if (whole) {
            *(uint4 *)to = *(const uint4 *)from;
            continue;
        }
        for (int j = 0; j < 8 && 8 * c + j < m.D; j++) to[j] = from[j];
    }
}

/* ---- scores ---- */

/* Products into scores, in units of log2: rows are queries, columns the keys from k0. What lies
 * outside of the tensors is never looked at. */
template <int BN, int RT>
CU_FN void scale_rows(const struct attn *a, const struct attn_tile *t, int k0,
                      float s[RT][BN / 8][4])
{
    CU_UNROLL
    for (int n = 0; n < BN / 8; n++)
        for (int i = 0; i < 4 * RT; i++) s[i / 4][n][i % 4] *= a->scale * LOG2E;
    if (!a->bias) return;
    CU_UNROLL
    for (int n = 0; n < BN / 8; n++)
        for (int i = 0; i < 4 * RT; i++) {
            const int key = k0 + lane_column(n, i), row = lane_row<RT>(i / 2);
            if (row < t->n && key < a->S)
                s[i / 4][n][i % 4] += LOG2E * attn_bias(a, t->h, t->at + row, key);
        }
}

/* ---- forward ---- */

/* -inf outside of the ranges. */
template <int BN, int RT>
CU_FN void mask(const struct span range[2 * RT], int k0, float s[RT][BN / 8][4])
{
    CU_UNROLL
    for (int n = 0; n < BN / 8; n++)
        for (int i = 0; i < 4 * RT; i++) {
            const int key = k0 + lane_column(n, i);
            const bool seen = key >= range[i / 2].lo && key < range[i / 2].hi;
            if (!seen) s[i / 4][n][i % 4] = -INFINITY;
        }
}

/* Turns scores into 2^(score - max), adds them to the sums, and returns in shrink what earlier
 * terms are multiplied by. */
template <int BN, int RT>
CU_FN void weigh(float s[RT][BN / 8][4], float top[2 * RT], float sum[2 * RT], float shrink[2 * RT])
{
    CU_UNROLL
    for (int i = 0; i < 2 * RT; i++) {
        const int lo = i % 2 * 2;
        float now = top[i], part = 0;
        CU_UNROLL
        for (int n = 0; n < BN / 8; n++)
            now = fmaxf(now, fmaxf(s[i / 2][n][lo], s[i / 2][n][lo + 1]));
        now = quad_max(now);
        /* Of a row that has seen nothing, or only NaN (which stays), or only -inf. */
        const float base = now == -INFINITY ? 0.0f : now;
        shrink[i] = exp2f(top[i] - base);
        CU_UNROLL
        for (int n = 0; n < BN / 8; n++)
            for (int j = lo; j < lo + 2; j++) {
                s[i / 2][n][j] = exp2f(s[i / 2][n][j] - base);
                part += s[i / 2][n][j];
            }
        sum[i] = sum[i] * shrink[i] + quad_sum(part);
        top[i] = now;
    }
}

/* Whether any of the warp's rows sees a key of [k0, k0 + n). */
template <int RT> CU_FN bool reaches(const struct span range[2 * RT], int k0, int n)
{
    bool any = false;
    for (int i = 0; i < 2 * RT; i++) any |= range[i].lo < k0 + n && range[i].hi > k0;
    return __any_sync(0xffffffffu, any);
}

template <int DP, int RT>
CU_KERNEL void __launch_bounds__(THREADS, 2) mma_forward(struct attn a)
{
    enum { BN = 64, HIGH = 16 * RT * WARPS_OF_TILE };
    CU_SHARED(half, q);
    half *k = q + HIGH * DP, *v = k + BN * DP;
    const struct attn_tile t = attn_queries(&a, HIGH);
    const struct span all = attn_hull(&a, t.b, t.at, HIGH);
    const int64_t ldq = a.H * a.D, ldk = a.G * a.D, at = attn_q_at(&a, t.b, t.at, t.h);
    const half *keys = (const half *)a.k + attn_k_at(&a, t.b, 0, t.g);
    const half *values = (const half *)a.v + attn_k_at(&a, t.b, 0, t.g);
    float o[RT][DP / 8][4] = {}, s[RT][BN / 8][4], top[2 * RT], sum[2 * RT];
    struct span range[2 * RT];
    for (int i = 0; i < 2 * RT; i++) {
        const int row = lane_row<RT>(i);
        range[i] = row < t.n ? attn_range(&a, t.b, t.at + row) : span{0, 0};
        top[i] = -INFINITY;
        sum[i] = 0;
    }
    int k0 = all.lo / BN * BN;
    fetch<DP>(q, HIGH, (const half *)a.q + at, ldq, t.n, a.D);
    if (k0 < all.hi) fetch<DP>(k, BN, keys + k0 * ldk, ldk, (int)min((int64_t)BN, a.S - k0), a.D);
    cu_cp_async_commit();
    for (; k0 < all.hi; k0 += BN) {
        const int next = k0 + BN;
        const bool here = reaches<RT>(range, k0, BN);
        fetch<DP>(v, BN, values + k0 * ldk, ldk, (int)min((int64_t)BN, a.S - k0), a.D);
        cu_cp_async_commit();
        cu_cp_async_wait<1>();
        __syncthreads();
        if (here) scores<DP, BN, RT>(s, q, k);
        __syncthreads();
        if (next < all.hi)
            fetch<DP>(k, BN, keys + next * ldk, ldk, (int)min((int64_t)BN, a.S - next), a.D);
        cu_cp_async_commit();
        cu_cp_async_wait<1>();
        if (here) {
            float shrink[2 * RT];
            scale_rows<BN, RT>(&a, &t, k0, s);
            mask<BN, RT>(range, k0, s);
            weigh<BN, RT>(s, top, sum, shrink);
            CU_UNROLL
            for (int n = 0; n < DP / 8; n++)
                for (int i = 0; i < 4 * RT; i++) o[i / 4][n][i % 4] *= shrink[i / 2];
        }
        __syncthreads();
        if (here) mix<DP, BN, RT>(o, s, v);
        __syncthreads();
    }
    cu_cp_async_wait<0>();
    for (int i = 0; i < 2 * RT; i++) {
        const int row = lane_row<RT>(i);
        if (a.lse_out && row < t.n && threadIdx.x % 4 == 0)
            a.lse_out[(t.b * a.T + t.at + row) * a.H + t.h] = (top[i] + log2f(sum[i])) / LOG2E;
        sum[i] = sum[i] > 0 ? 1.0f / sum[i] : sum[i]; /* NaN stays */
    }
    __syncthreads();
    if (a.o) drain<DP, RT>(q, o, sum, place{(half *)a.o + at, ldq, a.D, t.n});
}

/* ---- backward ---- */

/* What a query has to say about its probabilities. */
struct query {
    struct span range; /* empty past the end */
    float lse, delta;  /* lse in units of log2 */
};

CU_FN struct query query_at(const struct attn *a, const struct attn_tile *t, int i)
{
    if (i >= t->n) return {{0, 0}, 0, 0};
    const int64_t at = (t->b * a->T + t->at + i) * a->H + t->h;
    return {attn_range(a, t->b, t->at + i), a->lse[at] * LOG2E, a->delta[at]};
}

template <int DP, int BN, int RT>
CU_KERNEL void __launch_bounds__(THREADS, 2) mma_dq(struct attn a)
{
    enum { HIGH = 16 * RT * WARPS_OF_TILE };
    CU_SHARED(half, q);
    half *dy = q + HIGH * DP, *k = dy + HIGH * DP, *v = k + BN * DP;
    const struct attn_tile t = attn_queries(&a, HIGH);
    const struct span all = attn_hull(&a, t.b, t.at, HIGH);
    const int64_t ldq = a.H * a.D, ldk = a.G * a.D, at = attn_q_at(&a, t.b, t.at, t.h);
    float dq[RT][DP / 8][4] = {}, p[RT][BN / 8][4], ds[RT][BN / 8][4], scale[2 * RT];
    struct query row[2 * RT];
    struct span range[2 * RT];
    for (int i = 0; i < 2 * RT; i++) {
        row[i] = query_at(&a, &t, lane_row<RT>(i));
        range[i] = row[i].range;
        scale[i] = a.scale;
    }
    fetch<DP>(q, HIGH, (const half *)a.q + at, ldq, t.n, a.D);
    fetch<DP>(dy, HIGH, (const half *)a.dy + at, ldq, t.n, a.D);
    for (int k0 = all.lo / BN * BN; k0 < all.hi; k0 += BN) {
        const int n = (int)min((int64_t)BN, a.S - k0);
        const int64_t from = attn_k_at(&a, t.b, k0, t.g);
        __syncthreads();
        fetch<DP>(k, BN, (const half *)a.k + from, ldk, n, a.D);
        fetch<DP>(v, BN, (const half *)a.v + from, ldk, n, a.D);
        cu_cp_async_commit();
        cu_cp_async_wait<0>();
        __syncthreads();
        if (!reaches<RT>(range, k0, BN)) continue;
        scores<DP, BN, RT>(p, q, k);
        scores<DP, BN, RT>(ds, dy, v);
        scale_rows<BN, RT>(&a, &t, k0, p);
        CU_UNROLL
        for (int j = 0; j < BN / 8; j++)
            for (int i = 0; i < 4 * RT; i++) {
                const int key = k0 + lane_column(j, i);
                const struct query *w = &row[i / 2];
                const bool seen = key >= w->range.lo && key < w->range.hi;
                float *d = &ds[i / 4][j][i % 4];
                *d = seen ? exp2f(p[i / 4][j][i % 4] - w->lse) * (*d - w->delta) : 0.0f;
            }
        mix<DP, BN, RT>(dq, ds, k);
    }
    cu_cp_async_wait<0>();
    __syncthreads();
    drain<DP, RT>(q, dq, scale, place{(half *)a.dq + at, ldq, a.D, t.n});
}

/* Scores lie the other way round: rows are keys, columns queries. */
template <int DP, int BN>
CU_KERNEL void __launch_bounds__(THREADS, 2) mma_dkv(struct attn a)
{
    CU_SHARED(half, k);
    half *v = k + ATTN_TILE * DP, *q = v + ATTN_TILE * DP, *dy = q + BN * DP;
    struct query *columns = (struct query *)(dy + BN * DP); /* [BN] */
    const struct attn_tile t = attn_keys(&a);
    const int64_t ldq = a.H * a.D, ldk = a.G * a.D, at = attn_k_at(&a, t.b, t.at, t.g);
    const float scale[2] = {a.scale, a.scale}, one[2] = {1, 1};
    float dk[1][DP / 8][4] = {}, dv[1][DP / 8][4] = {}, p[1][BN / 8][4], ds[1][BN / 8][4];
    struct attn_tile u = t;
    fetch<DP>(k, ATTN_TILE, (const half *)a.k + at, ldk, t.n, a.D);
    fetch<DP>(v, ATTN_TILE, (const half *)a.v + at, ldk, t.n, a.D);
    for (u.h = t.h; u.h < t.h + a.H / a.G; u.h++) {
        for (u.at = 0; u.at < a.T; u.at += BN) {
            const struct span all = attn_hull(&a, t.b, u.at, BN);
            if (all.hi <= t.at || all.lo >= t.at + t.n) continue;
            u.n = (int)min((int64_t)BN, a.T - u.at);
            const int64_t from = attn_q_at(&a, u.b, u.at, u.h);
            __syncthreads();
            if (threadIdx.x < BN) columns[threadIdx.x] = query_at(&a, &u, (int)threadIdx.x);
            fetch<DP>(q, BN, (const half *)a.q + from, ldq, u.n, a.D);
            fetch<DP>(dy, BN, (const half *)a.dy + from, ldq, u.n, a.D);
            cu_cp_async_commit();
            cu_cp_async_wait<0>();
            __syncthreads();
            scores<DP, BN, 1>(p, k, q);
            scores<DP, BN, 1>(ds, v, dy);
            CU_UNROLL
            for (int j = 0; j < BN / 8; j++)
                for (int i = 0; i < 4; i++) {
                    const int column = lane_column(j, i), key = (int)t.at + lane_row<1>(i / 2);
                    const struct query *w = &columns[column];
                    const bool seen = key >= w->range.lo && key < w->range.hi;
                    float score = p[0][j][i] * (a.scale * LOG2E);
                    if (a.bias && seen)
                        score += LOG2E * attn_bias(&a, u.h, u.at + column, key);
                    p[0][j][i] = seen ? exp2f(score - w->lse) : 0.0f;
                    ds[0][j][i] = seen ? p[0][j][i] * (ds[0][j][i] - w->delta) : 0.0f;
                }
            mix<DP, BN, 1>(dv, p, dy);
            mix<DP, BN, 1>(dk, ds, q);
        }
    }
    cu_cp_async_wait<0>();
    __syncthreads();
    if (a.dk) drain<DP, 1>(k, dk, scale, place{(half *)a.dk + at, ldk, a.D, t.n});
    if (a.dv) drain<DP, 1>(v, dv, one, place{(half *)a.dv + at, ldk, a.D, t.n});
}

/* ---- launches ---- */

/* Bytes of a block's tiles: `rows` rows in all. */
static size_t tile_bytes(int rows, int width)
{
    return (size_t)rows * (size_t)width * sizeof(half);
}

template <int DP, int RT> static void forward(const struct attn *a, struct exec *x)
{
    enum { HIGH = 16 * RT * WARPS_OF_TILE, BN = 64 };
    const unsigned blocks = (unsigned)(a->B * a->H * tiles(a->T, HIGH));
    CU_LAUNCH(x, (mma_forward<DP, RT>), blocks, THREADS, tile_bytes(HIGH + 2 * BN, DP), *a);
}

template <int DP, int BN, int RT> static void backward_queries(const struct attn *a, struct exec *x)
{
    enum { HIGH = 16 * RT * WARPS_OF_TILE };
    const unsigned blocks = (unsigned)(a->B * a->H * tiles(a->T, HIGH));
    CU_LAUNCH(x, (mma_dq<DP, BN, RT>), blocks, THREADS, tile_bytes(2 * HIGH + 2 * BN, DP), *a);
}

template <int DP, int BN> static void backward_keys(const struct attn *a, struct exec *x)
{
    const unsigned blocks = (unsigned)(a->B * a->G * tiles(a->S, ATTN_TILE));
    const size_t bytes = tile_bytes(2 * ATTN_TILE + 2 * BN, DP) + BN * sizeof(struct query);
    CU_LAUNCH(x, (mma_dkv<DP, BN>), blocks, THREADS, bytes, *a);
}

void attn_mma(const struct attn *a, struct exec *x)
{
    if (a->D <= 64) forward<64, 2>(a, x);
    else forward<128, 1>(a, x);
}

void attn_mma_bwd(const struct attn *a, struct exec *x)
{
    const bool narrow = a->D <= 64;
    if (a->dq && narrow) backward_queries<64, 32, 2>(a, x);
    else if (a->dq) backward_queries<128, 32, 1>(a, x);
    if (!a->dk && !a->dv) return;
    if (narrow) backward_keys<64, 64>(a, x);
    else backward_keys<128, 32>(a, x);
}
