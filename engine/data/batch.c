#include "engine/base/mem.h"
#include "engine/data/dataset.h"
#include "engine/data/labelled.h"

#include <string.h>

enum { ROUND = 8, INTS = 5 }; /* int32 per position: id, target, position, two of the range */

static int reserve(struct batch *b, int64_t positions, struct err *e)
{
    int64_t ints;
    if (positions <= b->cap) return 0;
    if (!mul_ok(&ints, positions, INTS)) return err_set(e, E_NOMEM, "out of memory");
    int32_t *p = mem_array(ints, sizeof *p, e);
    if (!p) return -1;
    mem_free(b->ids);
    b->ids = p; /* the one block; the others point into it */
    b->target = p + positions;
    b->pos = p + 2 * positions;
    b->range = p + 3 * positions;
    b->cap = positions;
    return 0;
}

/* The document at [from, to) of a row that begins at `at` in the batch. */
static void fill_document(struct batch *b, int64_t at, int64_t from, int64_t to)
{
    for (int64_t t = from; t < to; t++) {
        b->pos[at + t] = (int32_t)(t - from);
        b->range[2 * (at + t)] = (int32_t)from;
        b->range[2 * (at + t) + 1] = (int32_t)t + 1;
    }
}

static void fill_row(struct batch *b, int64_t row, const struct example *x)
{
    const int64_t whole[] = {0, x->n}, *start = x->start ? x->start : whole;
    int64_t at = row * b->T, docs = x->start ? x->docs : 1;
    memcpy(b->ids + at, x->ids, (size_t)x->n * sizeof *b->ids);
    for (int64_t k = 0; k < docs; k++)
        fill_document(b, at, start[k] - start[0], start[k + 1] - start[0]);
    for (int64_t t = 0; t + 1 < x->n; t++) {
        if (!x->trained[t + 1]) continue;
        b->target[at + t] = x->ids[t + 1];
        b->trained++;
    }
    b->tokens += x->n;
}

/* Makes room for n rows of up to `longest` tokens, all of it padding so far. */
static int start(struct batch *b, int64_t n, int64_t longest, struct err *e)
{
    int64_t T = (longest + ROUND - 1) / ROUND * ROUND, positions;
    if (T > INT32_MAX || !mul_ok(&positions, n, T))
        return err_set(e, E_LIMIT, "a batch of %lld x %lld tokens", (long long)n, (long long)T);
    if (reserve(b, positions, e)) return -1;
    b->B = n;
    b->T = T;
    b->trained = b->tokens = 0;
    memset(b->ids, 0, (size_t)positions * sizeof *b->ids);
    memset(b->target, 0xff, (size_t)positions * sizeof *b->target); /* -1 */
    memset(b->pos, 0, (size_t)positions * sizeof *b->pos);
    memset(b->range, 0, 2 * (size_t)positions * sizeof *b->range);
    return 0;
}

int batch_one(struct batch *b, const struct example *x, struct err *e)
{
    if (x->n < 1) return err_set(e, E_BUG, "a batch needs at least one token");
    if (start(b, 1, x->n, e)) return -1;
    fill_row(b, 0, x);
    return 0;
}

int batch_fill(struct batch *b, const struct dataset *d, const int64_t *index, int64_t n,
               struct err *e)
{
    int64_t longest = 1;
    if (n < 1) return err_set(e, E_BUG, "a batch needs at least one example");
    for (int64_t i = 0; i < n; i++) {
        if (index[i] < 0 || index[i] >= dataset_count(d))
            return err_set(e, E_BUG, "there is no example %lld", (long long)index[i]);
        int64_t len = dataset_get(d, index[i]).n;
        if (len > longest) longest = len;
    }
    if (start(b, n, longest, e)) return -1;
    for (int64_t i = 0; i < n; i++) {
        struct example x = dataset_get(d, index[i]);
        fill_row(b, i, &x);
    }
    return 0;
}

int labelled_fill(struct batch *b, const struct labelled *d, const int64_t *index, int64_t n,
                  struct err *e)
{
    int64_t longest = 1, len;
    int32_t class;
    if (n < 1) return err_set(e, E_BUG, "a batch needs at least one row");
    for (int64_t i = 0; i < n; i++) {
        if (index[i] < 0 || index[i] >= labelled_count(d))
            return err_set(e, E_BUG, "there is no row %lld", (long long)index[i]);
        labelled_get(d, index[i], &len, &class);
        if (len > longest) longest = len;
    }
    if (start(b, n, longest, e)) return -1;
    for (int64_t i = 0; i < n; i++) {
        const int32_t *ids = labelled_get(d, index[i], &len, &class);
        int64_t at = i * b->T;
        memcpy(b->ids + at, ids, (size_t)len * sizeof *ids);
        for (int64_t t = 0; t < len; t++) {
            b->pos[at + t] = (int32_t)t;
            b->range[2 * (at + t) + 1] = (int32_t)len;
        }
        b->target[i] = class;
        b->tokens += len;
    }
    b->trained = n;
    return 0;
}

void batch_clear(struct batch *b)
{
    mem_free(b->ids);
    *b = (struct batch){0};
}
