"""graft's random numbers (engine/base/rng.h) written a second time, from their definition."""
import numpy as np

INIT, ORDER = 1, 2  # streams


def philox(key, ctr):
    """Philox4x32-10; ctr: four arrays of uint32 of one shape. Returns the same."""
    c = [np.asarray(x, dtype=np.uint64) for x in ctr]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    m = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), p1 & m,
             (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), p0 & m]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [x.astype(np.uint32) for x in c]


def uniform(n, lo, hi, seed, stream, step):
    """n float32 in [lo, hi)."""
    block = np.arange((n + 3) // 4, dtype=np.uint64)
    low = block & np.uint64(0xFFFFFFFF)
    words = philox(seed, [low, block >> np.uint64(32), np.full_like(low, step),
                          np.full_like(low, stream)])
    u = np.stack(words, axis=1).reshape(-1)[:n]
    unit = (u >> np.uint32(8)).astype(np.float32) * np.float32(2.0 ** -24)
    lo, hi = np.float32(lo), np.float32(hi)
    return lo + (hi - lo) * unit


def permute(seed, epoch, n, i):
    """Where position i of an epoch points: a Feistel network that walks until it is below n."""
    if n <= 1:
        return 0
    half = 1
    while 1 << (2 * half) < n:
        half += 1
    mask, x = (1 << half) - 1, i
    while True:
        left, right = x >> half & mask, x & mask
        for r in range(6):
            w = int(philox(seed, [[right], [r], [epoch], [ORDER]])[0][0])
            left, right = right, left ^ (w & mask)
        x = left << half | right
        if x < n:
            return x


def rows_of_step(seed, step, rows, window):
    """The rows that optimiser step `step` (from 0) takes; the last of an epoch takes the rest."""
    per_epoch = -(-rows // window)
    epoch, first = step // per_epoch, step % per_epoch * window
    return [permute(seed, epoch, rows, i) for i in range(first, min(first + window, rows))]
