/* ROPE: rotation by position. A warp per row [H,D]; the angles of up to ANGLES pairs are computed
 * once for all heads. */
#include "engine/cuda/vec.cuh"

enum { ANGLES = 64 };

template <typename T> struct rope {
    const T *x;
    T *y; /* may be x */
    const int32_t *pos;
    const float *freq;
    int64_t N, H, half;
    float sign;
};

template <typename T> CU_KERNEL void rope_kernel(struct rope<T> a)
{
    CU_ARRAY(float, cosines, [WARPS][ANGLES]);
    CU_ARRAY(float, sines, [WARPS][ANGLES]);
    float *cosine = cosines[threadIdx.x / 32], *sine = sines[threadIdx.x / 32];
    EACH_ROW(n, a.N) {
        for (int64_t i0 = 0; i0 < a.half; i0 += ANGLES) {
            const int m = (int)min((int64_t)ANGLES, a.half - i0), vecs = (m + VEC - 1) / VEC;
            __syncwarp();
            for (int i = (int)threadIdx.x % 32; i < m; i += 32) {
                /* The angle is rounded to float, as the reference implementations do. */
                mx_sincos((float)a.pos[n] * a.freq[i0 + i], &sine[i], &cosine[i]);
                sine[i] *= a.sign;
            }
            __syncwarp();
            for (int64_t k = threadIdx.x % 32; k < a.H * vecs; k += 32) {
                const int i = (int)(k % vecs) * VEC;
                const int64_t at = (n * a.H + k / vecs) * 2 * a.half + i0 + i;
                float lo[VEC], hi[VEC], u[VEC], v[VEC];
                vec_load(a.x + at, m - i, lo);
                vec_load(a.x + at + a.half, m - i, hi);
                for (int j = 0; j < VEC; j++) {
                    float c = i + j < m ? cosine[i + j] : 0, s = i + j < m ? sine[i + j] : 0;
                    u[j] = lo[j] * c - hi[j] * s;
                    v[j] = hi[j] * c + lo[j] * s;
                }
                vec_store(a.y + at, m - i, u);
                vec_store(a.y + at + a.half, m - i, v);
            }
        }
    }
}

int cuda_rope(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    const struct attrs_rope *attrs = (const struct attrs_rope *)s->attrs;
    const int64_t *d = s->tin[0]->shape;
    if (!s->out[0]) return 0;
    CU_COMPUTE(s->tin[0]->dtype, T, {
        struct rope<T> a = {(const T *)s->in[0], (T *)s->out[0], (const int32_t *)s->in[1],
                            (const float *)s->in[2], d[0], d[1], d[2] / 2, attrs->sign};
        CU_LAUNCH(x, rope_kernel<T>, row_blocks(a.N), CU_THREADS, 0, a);
    });
    return 0;
}
