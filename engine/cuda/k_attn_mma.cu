/* Attention in bf16 on tensor cores: products in bf16 with f32 sums, softmax in f32.
 *
 * A block is four warps with 16 rows each of its own tile (queries; for dk and dv keys) and goes
 * through the other side by tiles of BN rows. Tiles lie in shared memory as rows of DP elements,
 * zeros behind column D, in chunks of 16 bytes whose number is XORed with the row's: so eight rows
 * of one column lie in eight different banks. Results stay in registers as cu_mma_bf16 leaves them:
 * lane 4 g + q of a warp has rows g and g + 8, columns 2 q, 2 q + 1 of each eight.
 *
 * For heads wider than 64 the backward kernels take half as many rows at a time: their two score
 * tiles, two results and four operand tiles then still fit into registers and 48 KiB. */
#include "engine/cuda/attn.cuh"

enum { THREADS = 128, STRIP = 16 }; /* rows of a warp */

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

/* s = rows of a times the BN rows of b, over DP columns. */
template <int DP, int BN>
CU_FN void scores(float s[BN / 8][4], half *a, int row, half *b)
{
    CU_UNROLL
    for (int n = 0; n < BN / 8; n++)
        for (int i = 0; i < 4; i++) s[n][i] = 0;
    CU_UNROLL
    for (int k = 0; k < DP / 16; k++) {
        uint32_t x[4], y[4];
        cu_ldmatrix4(x, left_at<DP>(a, row, k));
        CU_UNROLL
        for (int n = 0; n < BN / 16; n++) {
            cu_ldmatrix4(y, right_at<DP>(b, 16 * n, k));
            cu_mma_bf16(s[2 * n], x, y);
            cu_mma_bf16(s[2 * n + 1], x, y + 2);
        }
    }
}

/* o += s v, v a tile of BN rows. */
template <int DP, int BN>
CU_FN void mix(float o[DP / 8][4], const float s[BN / 8][4], half *v)
{
    CU_UNROLL
    for (int k = 0; k < BN / 16; k++) {
        const float *lo = s[2 * k], *hi = s[2 * k + 1];
        const uint32_t x[4] = {cu_pack_bf16(lo[0], lo[1]), cu_pack_bf16(lo[2], lo[3]),
                               cu_pack_bf16(hi[0], hi[1]), cu_pack_bf16(hi[2], hi[3])};
        CU_UNROLL
        for (int n = 0; n < DP / 16; n++) {
            uint32_t y[4];
            cu_ldmatrix4_t(y, left_at<DP>(v, 16 * k, n));
            cu_mma_bf16(o[2 * n], x, y);
            cu_mma_bf16(o[2 * n + 1], x, y + 2);
        }
    }
}

/* ---- rows and columns of a lane ---- */

CU_FN int warp_row(void)
{
    return (int)threadIdx.x / 32 * STRIP;
}

/* Row of elements 2 i and 2 i + 1 of a quad, in the tile. */
CU_FN int lane_row(int i)
{
    return warp_row() + (int)threadIdx.x % 32 / 4 + 8 * i;
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

/* Writes the warp's 16 rows of a result, times k[row]: through its rows of a tile that nobody else
 * reads, so that memory is written by whole chunks. */
template <int DP>
CU_FN void drain(half *tile, const float o[DP / 8][4], const float k[2], half *p, int64_t ld,
                 int n, int64_t D)
{
    const bool whole = D % 8 == 0 && (uintptr_t)p % 16 == 0;
    CU_UNROLL
    for (int c = 0; c < DP / 8; c++)
        for (int i = 0; i < 2; i++) {
            half *to = chunk<DP>(tile, lane_row(i), c) + lane_column(0, 0);
            *(uint32_t *)to = cu_pack_bf16(o[c][2 * i] * k[i], o[c][2 * i + 1] * k[i]);
        }
    __syncwarp();
    for (int i = (int)threadIdx.x % 32; i < STRIP * (DP / 8); i += 32) {
        const int r = warp_row() + i / (DP / 8), c = i % (DP / 8);
        const half *from = chunk<DP>(tile, r, c);
        half *to = p + r * ld + 8 * c;
        if (r >= n || 8 * c >= D) continue;
        if (whole) {
            *(uint4 *)to = *(const uint4 *)from;
            continue;
        }
        for (int j = 0; j < 8 && 8 * c + j < D; j++) to[j] = from[j];
    }
}

/* ---- forward ---- */

/* Scores of the warp's rows against the keys from k0, in units of log2; -inf outside of ranges. */
template <int BN>
CU_FN void mask(const struct attn *a, const struct attn_tile *t, const struct span range[2],
                int k0, float s[BN / 8][4])
{
    const float scale = a->scale * LOG2E;
    CU_UNROLL
    for (int n = 0; n < BN / 8; n++)
        for (int i = 0; i < 4; i++) {
            const int key = k0 + lane_column(n, i);
            const bool seen = key >= range[i / 2].lo && key < range[i / 2].hi;
            s[n][i] = seen ? s[n][i] * scale : -INFINITY;
            if (a->bias && seen)
                s[n][i] += LOG2E * attn_bias(a, t->h, t->at + lane_row(i / 2), key);
        }
}

struct softmax {
    float top[2], sum[2];
};

/* Turns scores into 2^(score - max) and returns in shrink what earlier terms are multiplied by. */
template <int BN> CU_FN void weigh(float s[BN / 8][4], struct softmax *m, float shrink[2])
{
    for (int i = 0; i < 2; i++) {
        float now = m->top[i], part = 0;
        CU_UNROLL
        for (int n = 0; n < BN / 8; n++) now = fmaxf(now, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
        now = quad_max(now);
        /* Of a row that has seen nothing, or only NaN (which stays), or only -inf. */
        const float base = now == -INFINITY ? 0.0f : now;
        shrink[i] = exp2f(m->top[i] - base);
        CU_UNROLL
        for (int n = 0; n < BN / 8; n++)
            for (int j = 2 * i; j < 2 * i + 2; j++) {
                s[n][j] = exp2f(s[n][j] - base);
                part += s[n][j];
            }
        m->sum[i] = m->sum[i] * shrink[i] + quad_sum(part);
        m->top[i] = now;
    }
}

/* Whether any of the warp's rows sees a key of [k0, k0 + n). */
CU_FN bool reaches(const struct span range[2], int k0, int n)
{
    bool any = false;
    for (int i = 0; i < 2; i++) any |= range[i].lo < k0 + n && range[i].hi > k0;
    return __any_sync(0xffffffffu, any);
}

template <int DP>
CU_KERNEL void __launch_bounds__(THREADS, DP == 64 ? 3 : 2) mma_forward(struct attn a)
{
    enum { BN = ATTN_TILE };
    CU_SHARED(half, q);
    half *k = q + BN * DP, *v = k + BN * DP;
    const struct attn_tile t = attn_queries(&a);
    const struct span all = attn_hull(&a, t.b, t.at, ATTN_TILE);
    const int64_t ldq = a.H * a.D, ldk = a.G * a.D, at = attn_q_at(&a, t.b, t.at, t.h);
    const half *keys = (const half *)a.k + attn_k_at(&a, t.b, 0, t.g);
    const half *values = (const half *)a.v + attn_k_at(&a, t.b, 0, t.g);
    struct softmax m = {{-INFINITY, -INFINITY}, {0, 0}};
    float o[DP / 8][4] = {{0}}, s[BN / 8][4];
    struct span range[2];
    for (int i = 0; i < 2; i++)
        range[i] = lane_row(i) < t.n ? attn_range(&a, t.b, t.at + lane_row(i)) : span{0, 0};
    int k0 = all.lo / BN * BN;
    fetch<DP>(q, ATTN_TILE, (const half *)a.q + at, ldq, t.n, a.D);
    if (k0 < all.hi) fetch<DP>(k, BN, keys + k0 * ldk, ldk, (int)min((int64_t)BN, a.S - k0), a.D);
    cu_cp_async_commit();
    for (; k0 < all.hi; k0 += BN) {
        const int next = k0 + BN;
        const bool here = reaches(range, k0, BN);
        fetch<DP>(v, BN, values + k0 * ldk, ldk, (int)min((int64_t)BN, a.S - k0), a.D);
        cu_cp_async_commit();
        cu_cp_async_wait<1>();
        __syncthreads();
        if (here) scores<DP, BN>(s, q, warp_row(), k);
        __syncthreads();
        if (next < all.hi)
            fetch<DP>(k, BN, keys + next * ldk, ldk, (int)min((int64_t)BN, a.S - next), a.D);
        cu_cp_async_commit();
        cu_cp_async_wait<1>();
        if (here) {
            float shrink[2];
            mask<BN>(&a, &t, range, k0, s);
            weigh<BN>(s, &m, shrink);
            CU_UNROLL
            for (int n = 0; n < DP / 8; n++)
                for (int i = 0; i < 4; i++) o[n][i] *= shrink[i / 2];
        }
        __syncthreads();
        if (here) mix<DP, BN>(o, s, v);
        __syncthreads();
    }
    cu_cp_async_wait<0>();
    float norm[2];
    for (int i = 0; i < 2; i++) {
        norm[i] = m.sum[i] > 0 ? 1.0f / m.sum[i] : m.sum[i]; /* NaN stays */
        if (a.lse_out && lane_row(i) < t.n && threadIdx.x % 4 == 0)
            a.lse_out[(at + lane_row(i) * ldq) / a.D] = (m.top[i] + log2f(m.sum[i])) / LOG2E;
    }
    __syncthreads();
    if (a.o) drain<DP>(q, o, norm, (half *)a.o + at, ldq, t.n, a.D);
}

/* ---- backward ---- */

/* What a query has to say about its probabilities. */
struct query {
    struct span range; /* empty past the end */
    float lse, delta;  /* lse in units of log2 */
    int64_t bias;      /* of its row, for key 0 */
};

CU_FN struct query query_at(const struct attn *a, const struct attn_tile *t, int i)
{
    if (i >= t->n) return {{0, 0}, 0, 0, 0};
    const int64_t at = (t->b * a->T + t->at + i) * a->H + t->h;
    return {attn_range(a, t->b, t->at + i), a->lse[at] * LOG2E, a->delta[at],
            (t->h * a->T + t->at + i) * a->S};
}

/* From a product q k and a product dy v: the probability *p, and its gradient with respect to the
 * score in *dp. */
CU_FN void probability(const struct attn *a, const struct query *q, int key, float *p, float *dp)
{
    const bool seen = key >= q->range.lo && key < q->range.hi;
    float s = *p * (a->scale * LOG2E);
    if (a->bias && seen) s += LOG2E * vec_any(a->bias, a->bias_type, q->bias + key);
    *p = seen ? exp2f(s - q->lse) : 0.0f;
    *dp = seen ? *p * (*dp - q->delta) : 0.0f;
}

template <int DP, int BN>
CU_KERNEL void __launch_bounds__(THREADS, DP == 64 ? 3 : 2) mma_dq(struct attn a)
{
    CU_SHARED(half, q);
    half *dy = q + ATTN_TILE * DP, *k = dy + ATTN_TILE * DP, *v = k + BN * DP;
    const struct attn_tile t = attn_queries(&a);
    const struct span all = attn_hull(&a, t.b, t.at, ATTN_TILE);
    const int64_t ldq = a.H * a.D, ldk = a.G * a.D, at = attn_q_at(&a, t.b, t.at, t.h);
    const float scale[2] = {a.scale, a.scale};
    float dq[DP / 8][4] = {{0}}, p[BN / 8][4], ds[BN / 8][4];
    struct query row[2];
    struct span range[2];
    for (int i = 0; i < 2; i++) {
        row[i] = query_at(&a, &t, lane_row(i));
        range[i] = row[i].range;
    }
    fetch<DP>(q, ATTN_TILE, (const half *)a.q + at, ldq, t.n, a.D);
    fetch<DP>(dy, ATTN_TILE, (const half *)a.dy + at, ldq, t.n, a.D);
    for (int k0 = all.lo / BN * BN; k0 < all.hi; k0 += BN) {
        const int n = (int)min((int64_t)BN, a.S - k0);
        const int64_t from = attn_k_at(&a, t.b, k0, t.g);
        __syncthreads();
        fetch<DP>(k, BN, (const half *)a.k + from, ldk, n, a.D);
        fetch<DP>(v, BN, (const half *)a.v + from, ldk, n, a.D);
        cu_cp_async_commit();
        cu_cp_async_wait<0>();
        __syncthreads();
        if (!reaches(range, k0, BN)) continue;
        scores<DP, BN>(p, q, warp_row(), k);
        scores<DP, BN>(ds, dy, warp_row(), v);
        CU_UNROLL
        for (int j = 0; j < BN / 8; j++)
            for (int i = 0; i < 4; i++)
                probability(&a, &row[i / 2], k0 + lane_column(j, i), &p[j][i], &ds[j][i]);
        mix<DP, BN>(dq, ds, k);
    }
    cu_cp_async_wait<0>();
    __syncthreads();
    drain<DP>(q, dq, scale, (half *)a.dq + at, ldq, t.n, a.D);
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
    float dk[DP / 8][4] = {{0}}, dv[DP / 8][4] = {{0}}, p[BN / 8][4], ds[BN / 8][4];
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
            scores<DP, BN>(p, k, warp_row(), q);
            scores<DP, BN>(ds, v, warp_row(), dy);
            CU_UNROLL
            for (int j = 0; j < BN / 8; j++)
                for (int i = 0; i < 4; i++)
                    probability(&a, &columns[lane_column(j, i)], (int)t.at + lane_row(i / 2),
                                &p[j][i], &ds[j][i]);
            mix<DP, BN>(dv, p, dy);
            mix<DP, BN>(dk, ds, q);
        }
    }
    cu_cp_async_wait<0>();
    __syncthreads();
    if (a.dk) drain<DP>(k, dk, scale, (half *)a.dk + at, ldk, t.n, a.D);
    if (a.dv) drain<DP>(v, dv, one, (half *)a.dv + at, ldk, t.n, a.D);
}

/* ---- launches ---- */

static unsigned query_blocks(const struct attn *a)
{
    return (unsigned)(a->B * a->H * tiles(a->T, ATTN_TILE));
}

static unsigned key_blocks(const struct attn *a)
{
    return (unsigned)(a->B * a->G * tiles(a->S, ATTN_TILE));
}

/* Bytes of a block's tiles: `rows` rows in all. */
static size_t tile_bytes(int rows, int width)
{
    return (size_t)rows * (size_t)width * sizeof(half);
}

void attn_mma(const struct attn *a, struct exec *x)
{
    if (a->D <= 64)
        CU_LAUNCH(x, mma_forward<64>, query_blocks(a), THREADS, tile_bytes(192, 64), *a);
    else
        CU_LAUNCH(x, mma_forward<128>, query_blocks(a), THREADS, tile_bytes(192, 128), *a);
}

template <int DP, int BN> static void backward(const struct attn *a, struct exec *x)
{
    const size_t bytes = tile_bytes(2 * ATTN_TILE + 2 * BN, DP);
    if (a->dq) CU_LAUNCH(x, (mma_dq<DP, BN>), query_blocks(a), THREADS, bytes, *a);
    if (a->dk || a->dv)
        CU_LAUNCH(x, (mma_dkv<DP, BN>), key_blocks(a), THREADS, bytes + BN * sizeof(struct query),
                  *a);
}

void attn_mma_bwd(const struct attn *a, struct exec *x)
{
    if (a->D <= 64) backward<64, 64>(a, x);
    else backward<128, 32>(a, x);
}
