/* Kernels that move rows. Indices come from data: a bad one is reported (cu_fault) and its row left
 * out, never a wild read. */
#include "engine/cuda/vec.cuh"

/* ---- copies of rows at regular distances ---- */

/* Row r = (i, j), j < run: from x + i lx + j W to y + i ly + j W. */
struct copy {
    const void *x;
    void *y;
    int64_t rows, W, run, lx, ly;
    bool add;
};

template <typename From, typename To>
CU_KERNEL void copy_kernel(struct copy a)
{
    EACH_ROW(r, a.rows) {
        const From *x = (const From *)a.x + r / a.run * a.lx + r % a.run * a.W;
        To *y = (To *)a.y + r / a.run * a.ly + r % a.run * a.W;
        EACH_COLUMN(c, a.W) {
            float v[VEC];
            vec_load(x + c, a.W - c, v);
            vec_put(y + c, a.W - c, v, a.add);
        }
    }
}

/* Between compute tensors. */
static void copy_rows(struct exec *x, enum dtype t, struct copy a)
{
    CU_COMPUTE(t, T, {
        CU_LAUNCH(x, (copy_kernel<T, T>), row_blocks(a.rows), CU_THREADS, 0, a);
    });
}

template <typename T> CU_KERNEL void zero_kernel(T *y, int64_t n)
{
    EACH_VEC(i, n) {
        const float zero[VEC] = {0};
        vec_store(y + i, n - i, zero);
    }
}

static void zero(struct exec *x, const struct tensor *t, void *y)
{
    int64_t n = t->count;
    CU_COMPUTE(t->dtype, T, {
        CU_LAUNCH(x, zero_kernel<T>, vec_blocks(n), CU_THREADS, 0, (T *)y, n);
    });
}

int cuda_slice(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_slice *a = (const struct attrs_slice *)s->attrs;
    enum dtype t = s->tin[0]->dtype;
    int64_t N = s->tin[0]->shape[0], C = s->tin[0]->shape[1];
    if (!s->out[0]) return 0;
    struct copy k = {(const char *)s->in[0] + a->at * (int64_t)dtype_size(t), s->out[0], N,
                     a->width, 1, C, a->width, false};
    copy_rows(x, t, k);
    return 0;
}

int cuda_slice_dx(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_slice *a = (const struct attrs_slice *)s->attrs;
    enum dtype t = s->tin[0]->dtype;
    int64_t N = s->tin[0]->shape[0], W = s->tin[0]->shape[1];
    if (!s->out[0]) return 0;
    if (!accumulates(s, 0)) zero(x, s->tout[0], s->out[0]);
    struct copy k = {s->in[0], (char *)s->out[0] + a->at * (int64_t)dtype_size(t), N, W, 1, W,
                     a->width, accumulates(s, 0)};
    copy_rows(x, t, k);
    return 0;
}

int cuda_prefix(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    enum dtype t = s->tin[1]->dtype;
    int64_t P = s->tin[0]->shape[0], B = s->tin[1]->shape[0], T1 = s->tin[1]->shape[1];
    int64_t C = s->tin[1]->shape[2], all = (P + T1) * C;
    if (!s->out[0]) return 0;
    struct copy head = {s->in[0], s->out[0], B * P, C, P, 0, all, false};
    struct copy tail = {s->in[1], (char *)s->out[0] + P * C * (int64_t)dtype_size(t), B * T1, C,
                        T1, T1 * C, all, false};
    CU_ANY(s->tin[0]->dtype, From, {
        CU_COMPUTE(t, T, {
            CU_LAUNCH(x, (copy_kernel<From, T>), row_blocks(head.rows), CU_THREADS, 0, head);
        });
    });
    copy_rows(x, t, tail);
    return 0;
}

int cuda_prefix_dx(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_rows *a = (const struct attrs_rows *)s->attrs;
    enum dtype t = s->tin[0]->dtype;
    int64_t B = s->tin[0]->shape[0], C = s->tin[0]->shape[2], T1 = s->tin[0]->shape[1] - a->rows;
    if (!s->out[0]) return 0;
    struct copy k = {(const char *)s->in[0] + a->rows * C * (int64_t)dtype_size(t), s->out[0],
                     B * T1, C, T1, (a->rows + T1) * C, T1 * C, accumulates(s, 0)};
    copy_rows(x, t, k);
    return 0;
}

/* dprefix[p] = sum over the batch, in its order; a prefix is a few rows, so vectors are tasks. */
template <typename T>
CU_KERNEL void prefix_dw_kernel(const T *dy, float *d, int64_t n, int64_t B, int64_t ld, bool add)
{
    EACH_VEC(i, n) {
        float sum[VEC] = {0}, v[VEC];
        for (int64_t b = 0; b < B; b++) {
            vec_load(dy + b * ld + i, n - i, v);
            for (int k = 0; k < VEC; k++) sum[k] += v[k];
        }
        vec_put(d + i, n - i, sum, add);
    }
}

int cuda_prefix_dw(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_rows *a = (const struct attrs_rows *)s->attrs;
    int64_t B = s->tin[0]->shape[0], C = s->tin[0]->shape[2], ld = s->tin[0]->shape[1] * C;
    int64_t n = a->rows * C;
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        CU_LAUNCH(x, prefix_dw_kernel<T>, vec_blocks(n), CU_THREADS, 0, (const T *)s->in[0],
                  (float *)s->out[0], n, B, ld, accumulates(s, 0));
    });
    return 0;
}

/* Sizes of an image and its squares: P = across * (Y/S) of them, I S S columns each. */
struct patches {
    int64_t B, I, Y, X, S, across, down;
};

template <typename T>
CU_KERNEL void patches_kernel(const float *image, T *cols, struct patches a)
{
    const int64_t P = a.across * a.down, square = a.S * a.S, C = a.I * square;
    EACH_ROW(r, a.B * P) {
        const int64_t b = r / P, py = r % P / a.across, px = r % P % a.across;
        for (int64_t c = threadIdx.x % 32; c < C; c += 32) {
            int64_t i = c / square, y = py * a.S + c % square / a.S, x = px * a.S + c % a.S;
            cols[r * C + c] = cu_to<T>(image[((b * a.I + i) * a.Y + y) * a.X + x]);
        }
    }
}

int cuda_patches(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_patches *at = (const struct attrs_patches *)s->attrs;
    const int64_t *d = s->tin[0]->shape;
    struct patches a = {d[0], d[1], d[2], d[3], at->size, d[3] / at->size, d[2] / at->size};
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tout[0]->dtype, T, {
        CU_LAUNCH(x, patches_kernel<T>, row_blocks(a.B * a.across * a.down), CU_THREADS, 0,
                  (const float *)s->in[0], (T *)s->out[0], a);
    });
    return 0;
}

/* ---- rows named by indices ---- */

struct indexed {
    const void *x;
    void *y;
    const int32_t *idx;
    int64_t rows, W, bound;
    int32_t *fault;
    bool add;
};

/* Every lane of a warp looks at the same index. */
CU_FN bool in_bounds(int32_t i, int64_t bound, int32_t *fault)
{
    if (i >= 0 && i < bound) return true;
    *fault = 1;
    return false;
}

/* y[r] = x[idx[r]] */
template <typename From, typename To>
CU_KERNEL void gather_kernel(struct indexed a)
{
    EACH_ROW(r, a.rows) {
        const int32_t i = a.idx[r];
        if (!in_bounds(i, a.bound, a.fault)) continue;
        EACH_COLUMN(c, a.W) {
            float v[VEC];
            vec_load((const From *)a.x + i * a.W + c, a.W - c, v);
            vec_store((To *)a.y + r * a.W + c, a.W - c, v);
        }
    }
}

/* y[idx[r]] = or += x[r] */
template <typename T> CU_KERNEL void scatter_kernel(struct indexed a)
{
    EACH_ROW(r, a.rows) {
        const int32_t i = a.idx[r];
        if (!in_bounds(i, a.bound, a.fault)) continue;
        EACH_COLUMN(c, a.W) {
            float v[VEC];
            vec_load((const T *)a.x + r * a.W + c, a.W - c, v);
            vec_put((T *)a.y + i * a.W + c, a.W - c, v, a.add);
        }
    }
}

int cuda_embed(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct indexed a = {s->in[1], s->out[0], (const int32_t *)s->in[0], s->tin[0]->count,
                        s->tin[1]->shape[1], s->tin[1]->shape[0], cu_fault(x), false};
    if (!s->out[0]) return 0;
    CU_ANY(s->tin[1]->dtype, From, {
        CU_COMPUTE(s->tout[0]->dtype, T, {
            CU_LAUNCH(x, (gather_kernel<From, T>), row_blocks(a.rows), CU_THREADS, 0, a);
        });
    });
    return 0;
}

int cuda_rows(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct indexed a = {s->in[0], s->out[0], (const int32_t *)s->in[1], s->tin[1]->count,
                        width(s->tin[0]), s->tin[0]->shape[0], cu_fault(x), false};
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        CU_LAUNCH(x, (gather_kernel<T, T>), row_blocks(a.rows), CU_THREADS, 0, a);
    });
    return 0;
}

int cuda_rows_dx(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_rows *at = (const struct attrs_rows *)s->attrs;
    struct indexed a = {s->in[0], s->out[0], (const int32_t *)s->in[1], s->tin[1]->count,
                        width(s->tin[0]), at->rows, cu_fault(x), accumulates(s, 0)};
    if (!s->out[0]) return 0;
    if (!a.add) zero(x, s->tout[0], s->out[0]);
    CU_COMPUTE(s->tin[0]->dtype, T, {
        CU_LAUNCH(x, scatter_kernel<T>, row_blocks(a.rows), CU_THREADS, 0, a);
    });
    return 0;
}

/* EMBED_DW: a block owns TABLE_ROWS rows of the table, a strip of columns each thread. It looks
 * through the ids by IDS at a time, lists those that are its own in their order, and adds their
 * rows up row after row. So no two blocks write one element, and the order is that of the ids. */
enum { IDS = 1024, TABLE_ROWS = 32, STRIP = VEC * CU_THREADS, ROUNDS = IDS / CU_THREADS };

struct embed_dw {
    const int32_t *ids;
    const void *dy;
    float *d;
    int64_t N, V, C;
    int32_t *fault;
    bool add;
};

struct found {
    int32_t at[IDS], row[IDS]; /* position among the ids looked at, row of the tile */
    int32_t count[WARPS];
};

/* Lists which of the ids from n0 on name rows [v0, v0 + TABLE_ROWS); returns how many. */
CU_FN int list_ids(const struct embed_dw *a, int64_t n0, int64_t v0, struct found *f)
{
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned mine[ROUNDS];
    int32_t row[ROUNDS];
    int at = 0, total = 0;
    for (int r = 0; r < ROUNDS; r++) {
        int64_t n = n0 + (warp * ROUNDS + r) * 32 + lane;
        int32_t id = n < a->N ? a->ids[n] : (int32_t)v0;
        if (id < 0 || id >= a->V) *a->fault = 1;
        row[r] = (int32_t)(id - v0);
        mine[r] = __ballot_sync(0xffffffffu, n < a->N && row[r] >= 0 && row[r] < TABLE_ROWS);
        at += __popc(mine[r]);
    }
    __syncthreads(); /* the last list has been read */
    if (lane == 0) f->count[warp] = at;
    __syncthreads();
    at = 0;
    for (unsigned w = 0; w < WARPS; w++) {
        if (w < warp) at += f->count[w];
        total += f->count[w];
    }
    for (int r = 0; r < ROUNDS; r++) {
        int to = at + __popc(mine[r] & ((1u << lane) - 1));
        if (mine[r] >> lane & 1) {
            f->at[to] = (int32_t)((warp * ROUNDS + r) * 32 + lane);
            f->row[to] = row[r];
        }
        at += __popc(mine[r]);
    }
    __syncthreads();
    return total;
}

template <typename T> CU_KERNEL void embed_dw_kernel(struct embed_dw a)
{
    CU_ARRAY(struct found, list, [1]);
    const int64_t strips = (a.C + STRIP - 1) / STRIP;
    const int64_t v0 = blockIdx.x / strips * TABLE_ROWS;
    const int64_t c = blockIdx.x % strips * STRIP + VEC * threadIdx.x;
    const int high = (int)min((int64_t)TABLE_ROWS, a.V - v0);
    float sum[VEC], v[VEC];
    for (int r = 0; r < high && !a.add; r++) {
        for (int k = 0; k < VEC; k++) sum[k] = 0;
        vec_store(a.d + (v0 + r) * a.C + c, a.C - c, sum);
    }
    for (int64_t n0 = 0; n0 < a.N; n0 += IDS) {
        int total = list_ids(&a, n0, v0, list);
        for (int r = 0; total && r < high; r++) {
            bool any = false;
            for (int k = 0; k < VEC; k++) sum[k] = 0;
            for (int i = 0; i < total; i++) {
                if (list->row[i] != r) continue;
                vec_load((const T *)a.dy + (n0 + list->at[i]) * a.C + c, a.C - c, v);
                for (int k = 0; k < VEC; k++) sum[k] += v[k];
                any = true;
            }
            if (any) vec_add(a.d + (v0 + r) * a.C + c, a.C - c, sum);
        }
    }
}

int cuda_embed_dw(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_rows *at = (const struct attrs_rows *)s->attrs;
    struct embed_dw a = {(const int32_t *)s->in[0], s->in[1], (float *)s->out[0],
                         s->tin[0]->count, at->rows, s->tin[1]->shape[1], cu_fault(x),
                         accumulates(s, 0)};
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tin[1]->dtype, T, {
        CU_LAUNCH(x, embed_dw_kernel<T>, (unsigned)(tiles(a.V, TABLE_ROWS) * tiles(a.C, STRIP)),
                  CU_THREADS, 0, a);
    });
    return 0;
}

/* KV_STORE: of two rows for one position the later stays. */
template <typename T> CU_KERNEL void kv_store_kernel(struct indexed a, int64_t T1)
{
    EACH_ROW(r, a.rows) {
        const int64_t b = r / T1, end = (b + 1) * T1;
        const int32_t i = a.idx[r];
        bool later = false;
        for (int64_t o = r + 1 + threadIdx.x % 32; o < end; o += 32) later |= a.idx[o] == i;
        if (__any_sync(0xffffffffu, later) || !in_bounds(i, a.bound, a.fault)) continue;
        EACH_COLUMN(c, a.W) {
            float v[VEC];
            vec_load((const T *)a.x + r * a.W + c, a.W - c, v);
            vec_store((T *)a.y + (b * a.bound + i) * a.W + c, a.W - c, v);
        }
    }
}

int cuda_kv_store(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const int64_t *cache = s->tin[0]->shape, *from = s->tin[1]->shape;
    struct indexed a = {s->in[1], s->out[0], (const int32_t *)s->in[2], from[0] * from[1],
                        cache[2] * cache[3], cache[1], cu_fault(x), false};
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        CU_LAUNCH(x, kv_store_kernel<T>, row_blocks(a.rows), CU_THREADS, 0, a, from[1]);
    });
    return 0;
}
