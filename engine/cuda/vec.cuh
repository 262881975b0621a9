/* vec.cuh: rows and runs of elements by the vector of VEC, for element-wise and row kernels.
 * Private to engine/cuda.
 *
 * A vector is 16 bytes of bf16 or 32 of f32: moved as 128-bit words where the address allows it
 * and the vector is whole, else element by element. So no kernel asks for alignment.
 */
#ifndef GRAFT_VEC_CUH
#define GRAFT_VEC_CUH

#include "engine/cuda/kernel.cuh"

enum { VEC = 8, WARPS = CU_THREADS / 32, VEC_ALIGN = 256 };

CU_FN bool vec_whole(const void *p, int64_t left)
{
    return left >= VEC && (uintptr_t)p % 16 == 0;
}

CU_FN void vec_load_whole(const float *p, float v[VEC])
{
    cu_load4(p, v);
    cu_load4(p + 4, v + 4);
}

template <typename H> CU_FN void vec_load_whole(const H *p, float v[VEC])
{
    const uint4 q = *(const uint4 *)p;
    const uint32_t w[4] = {q.x, q.y, q.z, q.w};
    CU_UNROLL
    for (int i = 0; i < VEC; i++) v[i] = cu_float(H{(uint16_t)(w[i / 2] >> (i % 2 * 16))});
}

CU_FN void vec_store_whole(float *p, const float v[VEC])
{
    cu_store4(p, v);
    cu_store4(p + 4, v + 4);
}

CU_FN void vec_store_whole(struct bf16 *p, const float v[VEC])
{
    *(uint4 *)p = make_uint4(cu_pack_bf16(v[0], v[1]), cu_pack_bf16(v[2], v[3]),
                             cu_pack_bf16(v[4], v[5]), cu_pack_bf16(v[6], v[7]));
}

/* v = p[0..VEC) as far as there are `left` elements, zeros behind. */
template <typename T> CU_FN void vec_load(const T *p, int64_t left, float v[VEC])
{
    if (vec_whole(p, left)) {
        vec_load_whole(p, v);
        return;
    }
    CU_UNROLL
    for (int i = 0; i < VEC; i++) v[i] = i < left ? cu_float(p[i]) : 0.0f;
}

template <typename T> CU_FN void vec_store(T *p, int64_t left, const float v[VEC])
{
    if (vec_whole(p, left)) {
        vec_store_whole(p, v);
        return;
    }
    CU_UNROLL
    for (int i = 0; i < VEC; i++)
        if (i < left) p[i] = cu_to<T>(v[i]);
}

/* p += v, rounded once. */
template <typename T> CU_FN void vec_add(T *p, int64_t left, const float v[VEC])
{
    float sum[VEC];
    vec_load(p, left, sum);
    CU_UNROLL
    for (int i = 0; i < VEC; i++) sum[i] += v[i];
    vec_store(p, left, sum);
}

template <typename T> CU_FN void vec_put(T *p, int64_t left, const float v[VEC], bool add)
{
    if (add) vec_add(p, left, v);
    else vec_store(p, left, v);
}

/* Element i of an array of any float type. */
CU_FN float vec_any(const void *p, enum dtype t, int64_t i)
{
    if (t == DT_BF16) return cu_float(((const struct bf16 *)p)[i]);
    if (t == DT_F16) return cu_float(((const struct f16 *)p)[i]);
    return ((const float *)p)[i];
}

/* for (i over the first elements of this thread's vectors of [0, n)). */
#define EACH_VEC(i, n)                                                                   \
    for (int64_t i = VEC * ((int64_t)blockIdx.x * CU_THREADS + threadIdx.x); i < (n);    \
         i += (int64_t)VEC * CU_THREADS * gridDim.x)

/* The grid that EACH_VEC wants, of CU_THREADS. */
static inline unsigned vec_blocks(int64_t n)
{
    return cu_blocks(n, VEC * CU_THREADS);
}

/* for (r over this warp's rows of [0, n)): a warp per row; and its vectors of a row of `width`. */
#define EACH_ROW(r, n)                                                                   \
    for (int64_t r = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; r < (n);            \
         r += (int64_t)gridDim.x * WARPS)
#define EACH_COLUMN(c, width)                                                            \
    for (int64_t c = VEC * (threadIdx.x % 32); c < (width); c += VEC * 32)

static inline unsigned row_blocks(int64_t n)
{
    return cu_blocks(n, WARPS);
}

/* Input i of step s as a compute tensor of type t: itself if it has that type, else a copy at *ws,
 * which moves on by its bytes, rounded up to VEC_ALIGN (k_elem.cu). NULL if it is left out. */
const void *vec_input(const struct step *s, int i, enum dtype t, struct exec *x, char **ws);

#endif
