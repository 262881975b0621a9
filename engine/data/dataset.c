#include "engine/data/dataset.h"

#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/data/encode.h"
#include "engine/data/pack.h"

#include <math.h>
#include <string.h>

/* All documents end to end: document i is [start[i], start[i + 1]) of ids and trained. Packed row k
 * is the documents [first[k], first[k + 1]); before packing each is a row. */
struct dataset {
    int32_t *ids;
    uint8_t *trained;
    int64_t *start;        /* [n + 1] */
    int64_t n;
    int64_t *first;        /* [rows + 1], or NULL */
    int64_t rows;
    int64_t cap_tokens, cap_rows;
    int64_t truncated, cut, skipped;
};

void dataset_free(struct dataset *d)
{
    if (!d) return;
    mem_free(d->ids);
    mem_free(d->trained);
    mem_free(d->start);
    mem_free(d->first);
    mem_free(d);
}

static int resize(void **p, int64_t count, size_t size, struct err *e)
{
    int64_t bytes;
    if (!mul_ok(&bytes, count, (int64_t)size)) return err_set(e, E_NOMEM, "out of memory");
    void *q = mem_realloc(*p, (size_t)bytes, e);
    if (!q) return -1;
    *p = q;
    return 0;
}

static int reserve(struct dataset *d, int64_t rows, int64_t tokens, struct err *e)
{
    if (rows + 1 > d->cap_rows) {
        int64_t cap = 2 * rows + 64;
        if (resize((void **)&d->start, cap, sizeof *d->start, e)) return -1;
        d->cap_rows = cap;
    }
    if (tokens > d->cap_tokens) {
        int64_t cap = tokens + tokens / 2 + 1024;
        if (resize((void **)&d->ids, cap, sizeof *d->ids, e) ||
            resize((void **)&d->trained, cap, sizeof *d->trained, e))
            return -1;
        d->cap_tokens = cap;
    }
    return 0;
}

static struct dataset *empty(struct err *e)
{
    struct dataset *d = mem_zalloc(sizeof *d, e);
    if (!d) return NULL;
    if (reserve(d, 0, 0, e)) {
        dataset_free(d);
        return NULL;
    }
    d->start[0] = 0;
    return d;
}

static void append(struct dataset *d, const int32_t *ids, const uint8_t *trained, int64_t n)
{
    int64_t at = d->start[d->n];
    memcpy(d->ids + at, ids, (size_t)n * sizeof *ids);
    memcpy(d->trained + at, trained, (size_t)n);
    d->start[++d->n] = at + n;
}

static int add(struct dataset *d, const struct encoding *x, int64_t max_length, struct err *e)
{
    int64_t n = x->ids.n < max_length ? x->ids.n : max_length, at = d->start[d->n], loss = 0;
    if (reserve(d, d->n + 1, at + n, e)) return -1;
    d->truncated += n < x->ids.n;
    d->cut += x->ids.n - n;
    for (int64_t i = 0; i < n; i++) {
        d->ids[at + i] = x->ids.v[i];
        d->trained[at + i] = i > 0 && x->trained.v[i] != 0; /* nothing predicts token 0 */
        loss += d->trained[at + i];
    }
    if (loss)
        d->start[++d->n] = at + n;
    else
        d->skipped++;
    return 0;
}

static int first_problem(void *ctx, const struct rows_problem *p, struct err *e)
{
    (void)ctx;
    return err_set(e, E_FORMAT, "line %lld, column %lld: %s%s%s", (long long)p->line,
                   (long long)p->column, p->field, *p->field ? ": " : "", p->reason);
}

static int read_rows(struct dataset *d, struct rows *r, const struct tok *t,
                     const struct dataset_options *o, struct err *e)
{
    struct encoding x = {0};
    struct row row;
    int rc;
    while ((rc = rows_next(r, &row, e)) > 0) {
        int bad = encode_row(&x, t, &row, o, e) || add(d, &x, o->max_length, e);
        json_decref(row.json);
        if (bad) {
            rc = err_wrap(e, "line %lld", (long long)row.line);
            break;
        }
    }
    encode_clear(&x);
    return rc;
}

struct dataset *dataset_open(const char *path, const struct tok *t,
                             const struct dataset_options *o, struct err *e)
{
    struct rows r;
    if (o->max_length < 2) {
        err_set(e, E_RANGE, "max_length is %lld; it must be at least 2", (long long)o->max_length);
        err_param(e, "max_length");
        return NULL;
    }
    struct dataset *d = empty(e);
    if (!d) return NULL;
    int rc = rows_open(&r, path, first_problem, NULL, e);
    if (!rc) {
        rc = read_rows(d, &r, t, o, e);
        rows_close(&r);
    }
    if (!rc && d->n == 0)
        rc = err_set(e, E_ARG, "none of the %lld rows has a token to train within max_length %lld",
                     (long long)d->skipped, (long long)o->max_length);
    if (!rc) return d;
    err_wrap(e, "%s", path);
    dataset_free(d);
    return NULL;
}

int64_t dataset_count(const struct dataset *d)
{
    return d->first ? d->rows : d->n;
}

int64_t dataset_documents(const struct dataset *d)
{
    return d->n;
}

struct example dataset_get(const struct dataset *d, int64_t i)
{
    int64_t from = d->first ? d->first[i] : i, to = d->first ? d->first[i + 1] : i + 1;
    int64_t at = d->start[from];
    return (struct example){d->ids + at, d->trained + at, d->start[to] - at, d->start + from,
                            to - from};
}

int64_t dataset_cut_tokens(const struct dataset *d)
{
    return d->cut;
}

int64_t dataset_truncated(const struct dataset *d)
{
    return d->truncated;
}

int64_t dataset_skipped(const struct dataset *d)
{
    return d->skipped;
}

int64_t dataset_tokens(const struct dataset *d)
{
    return d->start[d->n];
}

/* Moves the rows marked in `taken` from d to `to`, which has room for them; the rest close up. */
static void move_rows(struct dataset *d, struct dataset *to, const uint8_t *taken)
{
    int64_t n = d->n, at = 0, kept = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t from = d->start[i], len = d->start[i + 1] - from;
        if (taken[i]) {
            append(to, d->ids + from, d->trained + from, len);
            continue;
        }
        memmove(d->ids + at, d->ids + from, (size_t)len * sizeof *d->ids);
        memmove(d->trained + at, d->trained + from, (size_t)len);
        d->start[kept++] = at; /* kept <= i: start[i + 1] is still to be read */
        at += len;
    }
    d->start[kept] = at;
    d->n = kept;
}

struct dataset *dataset_split(struct dataset *d, double fraction, uint64_t seed, struct err *e)
{
    struct dataset *to = NULL;
    uint8_t *taken = NULL;
    int64_t n = d->n, tokens = 0;
    if (d->first) {
        err_set(e, E_BUG, "packed rows are not split");
        return NULL;
    }
    if (!(fraction > 0 && fraction < 1)) {
        err_set(e, E_RANGE, "the fraction to split off is %g; it must be between 0 and 1",
                fraction);
        return NULL;
    }
    if (n < 2) {
        err_set(e, E_ARG, "a dataset of %lld row cannot be split", (long long)n);
        return NULL;
    }
    int64_t k = llround((double)n * fraction);
    k = k < 1 ? 1 : k > n - 1 ? n - 1 : k;
    taken = mem_array(n, 1, e);
    if (!taken) return NULL;
    for (int64_t i = n - k; i < n; i++) taken[rng_permute(seed, RNG_SPLIT, n, i)] = 1;
    for (int64_t i = 0; i < n; i++) tokens += taken[i] ? d->start[i + 1] - d->start[i] : 0;
    to = empty(e);
    if (to && reserve(to, k, tokens, e)) {
        dataset_free(to);
        to = NULL;
    }
    if (to) move_rows(d, to, taken);
    mem_free(taken);
    return to;
}

static int copy_packed(struct dataset *to, const struct dataset *d, const struct pack *p,
                       struct err *e)
{
    if (reserve(to, d->n, d->start[d->n], e)) return -1;
    for (int64_t i = 0; i < d->n; i++) {
        int64_t from = d->start[p->doc[i]], n = d->start[p->doc[i] + 1] - from;
        append(to, d->ids + from, d->trained + from, n);
    }
    return 0;
}

int dataset_pack(struct dataset *d, int64_t max_length, uint64_t seed, struct err *e)
{
    struct dataset *to = NULL;
    struct pack p = {0};
    int rc = -1;
    if (d->first || d->n < 1) return err_set(e, E_BUG, "there is nothing to pack");
    int64_t *length = mem_array(d->n, sizeof *length, e);
    if (!length) return -1;
    for (int64_t i = 0; i < d->n; i++) length[i] = d->start[i + 1] - d->start[i];
    if (pack_make(&p, length, d->n, max_length, seed, e) || !(to = empty(e)) ||
        copy_packed(to, d, &p, e))
        goto out;
    /* The new arrays take the place of the old ones, which go with `to`. */
    struct dataset old = *d;
    *d = *to;
    d->truncated = old.truncated;
    d->cut = old.cut;
    d->skipped = old.skipped;
    d->rows = p.rows;
    d->first = p.first;
    p.first = NULL;
    *to = old;
    rc = 0;
out:
    dataset_free(to);
    pack_clear(&p);
    mem_free(length);
    return rc;
}
