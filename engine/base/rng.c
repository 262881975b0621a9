#include "engine/base/rng.h"

#include <math.h>

void rng_philox(uint64_t key, const uint32_t ctr[4], uint32_t out[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3];
    for (int i = 0; i < 10; i++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

static void block(uint64_t seed, uint32_t stream, uint32_t step, uint64_t blk, uint32_t out[4])
{
    uint32_t ctr[4] = {(uint32_t)blk, (uint32_t)(blk >> 32), step, stream};
    rng_philox(seed, ctr, out);
}

uint32_t rng_u32(uint64_t seed, uint32_t stream, uint32_t step, uint64_t index)
{
    uint32_t w[4];
    block(seed, stream, step, index / 4, w);
    return w[index % 4];
}

static float to_unit(uint32_t w)
{
    return (float)(w >> 8) * 0x1p-24f;
}

float rng_uniform(uint64_t seed, uint32_t stream, uint32_t step, uint64_t index)
{
    return to_unit(rng_u32(seed, stream, step, index));
}

void rng_fill_uniform(float *out, int64_t n, float lo, float hi, uint64_t seed, uint32_t stream,
                      uint32_t step)
{
    uint32_t w[4];
    for (int64_t i = 0; i < n; i++) {
        if (i % 4 == 0) block(seed, stream, step, (uint64_t)i / 4, w);
        out[i] = lo + (hi - lo) * to_unit(w[i % 4]);
    }
}

void rng_fill_normal(float *out, int64_t n, float std, uint64_t seed, uint32_t stream,
                     uint32_t step)
{
    uint32_t w[4];
    for (int64_t i = 0; i < n; i += 2) {
        if (i % 4 == 0) block(seed, stream, step, (uint64_t)i / 4, w);
        /* u1 in (0,1]: the logarithm is finite. */
        double u1 = ((double)w[i % 4] + 1.0) * 0x1p-32;
        double u2 = (double)w[i % 4 + 1] * 0x1p-32;
        double r = sqrt(-2.0 * log(u1)), a = 6.283185307179586 * u2;
        out[i] = (float)(r * cos(a)) * std;
        if (i + 1 < n) out[i + 1] = (float)(r * sin(a)) * std;
    }
}

int64_t rng_permute(uint64_t seed, uint32_t epoch, int64_t n, int64_t i)
{
    if (n <= 1) return 0;
    int half = 1;
    while (half < 31 && (int64_t)1 << (2 * half) < n) half++;
    uint32_t mask = (uint32_t)(((uint64_t)1 << half) - 1);
    uint64_t x = (uint64_t)i;
    /* Cycle walking: the domain is less than 4n, so this ends after a few rounds on average. */
    do {
        uint32_t l = (uint32_t)(x >> half) & mask, r = (uint32_t)x & mask;
        for (uint32_t round = 0; round < 6; round++) {
            uint32_t ctr[4] = {r, round, epoch, RNG_ORDER}, w[4];
            rng_philox(seed, ctr, w);
            uint32_t t = l ^ (w[0] & mask);
            l = r;
            r = t;
        }
        x = (uint64_t)l << half | r;
    } while (x >= (uint64_t)n);
    return (int64_t)x;
}
