#include "tests/lib/refbatch.h"

#include "engine/base/mem.h"

#include <string.h>

/* One block, as batch_clear() frees it. */
static int alloc(struct batch *b, const int32_t *ids, struct err *e)
{
    int64_t N = b->cap = b->B * b->T;
    if (!(b->ids = mem_array(5 * N, sizeof *b->ids, e))) return -1;
    b->target = b->ids + N;
    b->pos = b->ids + 2 * N;
    b->range = b->ids + 3 * N;
    memcpy(b->ids, ids, (size_t)N * sizeof *ids);
    return 0;
}

int refbatch_fill(struct batch *b, const struct st *ref, struct err *e)
{
    const struct st_tensor *ids = st_find(ref, "ids"), *lengths = st_find(ref, "lengths");
    const struct st_tensor *labels = st_find(ref, "labels");
    if (!ids || !lengths || !labels) return err_set(e, E_FORMAT, "no ids, lengths and labels");
    bool classes = labels->rank == 1;
    const int32_t *length = lengths->data, *label = labels->data;
    b->B = ids->shape[0];
    b->T = ids->shape[1];
    if (alloc(b, ids->data, e)) return -1;
    for (int64_t n = 0; n < b->B * b->T; n++) {
        int32_t t = (int32_t)(n % b->T), len = length[n / b->T];
        b->pos[n] = t < len ? t : 0;
        b->range[2 * n + 1] = t >= len ? 0 : classes ? len : t + 1;
        if (!classes) b->target[n] = t + 1 < len ? label[n + 1] : -1;
        b->trained += !classes && b->target[n] >= 0;
    }
    if (!classes) return 0;
    memcpy(b->target, label, (size_t)b->B * sizeof *label);
    b->trained = b->B;
    return 0;
}
