/* rng.h: counter-based random numbers (Philox4x32-10, Salmon et al. 2011) and a keyed shuffle.
 *
 * A number is a pure function of (seed, stream, step, index): nothing to store in a checkpoint,
 * nothing to fast-forward, the same for any thread count. No other generator exists in graft.
 */
#ifndef GRAFT_RNG_H
#define GRAFT_RNG_H

#include <stdint.h>

/* Names of streams, so that two uses of one seed never share numbers. */
enum rng_stream {
    RNG_INIT = 1,    /* weights; step = index of the parameter */
    RNG_ORDER = 2,   /* order of the data; step = epoch */
    RNG_DROPOUT = 3, /* step = optimiser step, plus the node's own id */
    RNG_SAMPLE = 4,  /* text generation; step = position */
    RNG_SPLIT = 5,   /* validation split */
    RNG_PACK = 6,    /* documents of the same length into rows */
    RNG_USER = 16    /* methods count up from here */
};

/* Four 32-bit words for one counter. */
void rng_philox(uint64_t key, const uint32_t ctr[4], uint32_t out[4]);

/* 32 random bits number `index` of (seed, stream, step). */
uint32_t rng_u32(uint64_t seed, uint32_t stream, uint32_t step, uint64_t index);
/* Uniform in [0,1) with 24 bits, and in [lo,hi). */
float rng_uniform(uint64_t seed, uint32_t stream, uint32_t step, uint64_t index);
/* out[i] = uniform in [lo,hi) / N(0,std^2) for i in [0,n). Normals by Box-Muller in double. */
void rng_fill_uniform(float *out, int64_t n, float lo, float hi, uint64_t seed, uint32_t stream,
                      uint32_t step);
void rng_fill_normal(float *out, int64_t n, float std, uint64_t seed, uint32_t stream,
                     uint32_t step);

/* A permutation of [0,n): where position i of epoch `epoch` points. Feistel walk, no table. */
int64_t rng_permute(uint64_t seed, uint32_t epoch, int64_t n, int64_t i);

#endif
