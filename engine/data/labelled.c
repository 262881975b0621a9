#include "engine/data/labelled.h"

#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/data/rows.h"

#include <stdio.h>
#include <string.h>

/* All rows end to end: row i is [start[i], start[i + 1]) of ids. */
struct labelled {
    struct ids ids, label; /* label: its class, one per row */
    int64_t *start;        /* [n + 1] */
    int64_t n, cap;
    int64_t truncated;
    json_t *labels;        /* list */
    json_t *classes;       /* label as text -> class */
};

void labelled_free(struct labelled *d)
{
    if (!d) return;
    ids_clear(&d->ids);
    ids_clear(&d->label);
    mem_free(d->start);
    json_decref(d->labels);
    json_decref(d->classes);
    mem_free(d);
}

int64_t labelled_count(const struct labelled *d)
{
    return d->n;
}

int64_t labelled_truncated(const struct labelled *d)
{
    return d->truncated;
}

const json_t *labelled_labels(const struct labelled *d)
{
    return d->labels;
}

const int32_t *labelled_get(const struct labelled *d, int64_t i, int64_t *n, int32_t *label)
{
    *n = d->start[i + 1] - d->start[i];
    *label = d->label.v[i];
    return d->ids.v + d->start[i];
}

/* ---- rows to ids ---- */

/* How much of each text stays where both may have `most` tokens together: the shorter one whole if
 * it is at most half of them. */
static void share(int64_t most, int64_t *a, int64_t *b)
{
    bool swap = *a > *b;
    int64_t less = swap ? *b : *a, more = swap ? *a : *b;
    if (less + more <= most) return;
    if (2 * less <= most) {
        more = most - less;
    } else {
        less = most / 2;
        more = less + most % 2;
    }
    *a = swap ? more : less;
    *b = swap ? less : more;
}

int labelled_encode(const struct tok *t, const char *text, const char *pair, int64_t max_length,
                    struct ids *out, bool *cut, struct err *e)
{
    struct ids a = {0}, b = {0};
    int64_t most = max_length - tok_join_added(t, pair != NULL), whole;
    int rc = -1;
    if (most < 1) {
        err_set(e, E_RANGE, "max_length is %lld; the tokenizer alone adds %d tokens",
                (long long)max_length, tok_join_added(t, pair != NULL));
        return err_param(e, "max_length");
    }
    if (tok_encode(t, text, strlen(text), false, &a, e) ||
        (pair && tok_encode(t, pair, strlen(pair), false, &b, e)))
        goto out;
    whole = a.n + b.n;
    if (pair) share(most, &a.n, &b.n);
    else if (a.n > most) a.n = most;
    *cut = a.n + b.n < whole;
    rc = tok_join(t, &a, pair ? &b : NULL, out, e);
out:
    ids_clear(&a);
    ids_clear(&b);
    return rc;
}

static int reserve(struct labelled *d, struct err *e)
{
    int64_t cap = 2 * d->n + 64, bytes;
    if (d->n + 1 < d->cap) return 0;
    if (!mul_ok(&bytes, cap, (int64_t)sizeof *d->start))
        return err_set(e, E_NOMEM, "out of memory");
    void *p = mem_realloc(d->start, (size_t)bytes, e);
    if (!p) return -1;
    d->start = p;
    d->cap = cap;
    return 0;
}

static const char *label_text(const json_t *label, char number[32])
{
    snprintf(number, 32, "%lld", (long long)json_integer_value(label));
    return json_is_string(label) ? json_string_value(label) : number;
}

/* The class of a label; one that is not known becomes a new one, unless they are given. */
static int class_of(struct labelled *d, const json_t *label, bool given, int32_t *class,
                    struct err *e)
{
    char number[32];
    const char *key = label_text(label, number);
    const json_t *known = json_object_get(d->classes, key);
    *class = (int32_t)json_integer_value(known);
    if (known) return 0;
    if (given)
        return err_set(e, E_FORMAT, "label: '%.80s' is not a label of the training file", key);
    *class = (int32_t)json_object_size(d->classes);
    return json_object_set_new(d->classes, key, json_integer(*class))
               ? err_set(e, E_NOMEM, "out of memory")
               : 0;
}

static int add(struct labelled *d, const struct tok *t, const struct row *row,
               const struct labelled_options *o, struct err *e)
{
    const json_t *text = json_object_get(row->json, "text");
    const json_t *pair = json_object_get(row->json, "text_pair");
    int32_t class;
    bool cut = false;
    if (row->shape != ROW_LABEL)
        return err_set(e, E_FORMAT, "a classifier needs rows of 'text' and 'label', not '%s' rows",
                       rows_shape_name(row->shape));
    if (reserve(d, e) ||
        class_of(d, json_object_get(row->json, "label"), o->labels != NULL, &class, e) ||
        labelled_encode(t, json_string_value(text), json_string_value(pair), o->max_length,
                        &d->ids, &cut, e) ||
        ids_push(&d->label, class, e))
        return -1;
    d->truncated += cut;
    d->start[++d->n] = d->ids.n;
    return 0;
}

/* ---- the whole file ---- */

static int first_problem(void *ctx, const struct rows_problem *p, struct err *e)
{
    (void)ctx;
    return err_set(e, E_FORMAT, "line %lld, column %lld: %s%s%s", (long long)p->line,
                   (long long)p->column, p->field, *p->field ? ": " : "", p->reason);
}

static int read_rows(struct labelled *d, struct rows *r, const struct tok *t,
                     const struct labelled_options *o, struct err *e)
{
    struct row row;
    int rc;
    while ((rc = rows_next(r, &row, e)) > 0) {
        int bad = add(d, t, &row, o, e);
        json_decref(row.json);
        if (bad) return err_wrap(e, "line %lld", (long long)row.line);
    }
    return rc;
}

/* Classes by the order of the sorted labels; until now they were numbered as they came. */
static int sort_classes(struct labelled *d, const struct rows *r, struct err *e)
{
    char number[32];
    const json_t *label;
    size_t i, n = json_object_size(d->classes);
    if (!(d->labels = rows_labels(r, e))) return -1;
    int32_t *place = mem_array((int64_t)n, sizeof *place, e);
    if (!place) return -1;
    json_array_foreach(d->labels, i, label) {
        const json_t *came = json_object_get(d->classes, label_text(label, number));
        place[json_integer_value(came)] = (int32_t)i;
    }
    for (int64_t k = 0; k < d->n; k++) d->label.v[k] = place[d->label.v[k]];
    mem_free(place);
    return 0;
}

static int take_labels(struct labelled *d, const json_t *given, struct err *e)
{
    char number[32];
    json_t *label;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)given, i, label) {
        if (json_object_set_new(d->classes, label_text(label, number),
                                json_integer((json_int_t)i)))
            return err_set(e, E_NOMEM, "out of memory");
    }
    d->labels = json_incref((json_t *)(uintptr_t)given);
    return 0;
}

struct labelled *labelled_open(const char *path, const struct tok *t,
                               const struct labelled_options *o, struct err *e)
{
    struct rows r;
    struct labelled *d = mem_zalloc(sizeof *d, e);
    if (!d) return NULL;
    int rc = reserve(d, e);
    if (!rc && !(d->classes = json_object())) rc = err_set(e, E_NOMEM, "out of memory");
    if (!rc) d->start[0] = 0;
    if (!rc && o->labels) rc = take_labels(d, o->labels, e);
    if (!rc && !(rc = rows_open(&r, path, first_problem, NULL, e))) {
        rc = read_rows(d, &r, t, o, e);
        if (!rc && !o->labels) rc = sort_classes(d, &r, e);
        rows_close(&r);
    }
    if (!rc && json_array_size(d->labels) < 2)
        rc = err_set(e, E_ARG, "a classifier needs at least two labels; all rows have the same");
    if (!rc) return d;
    err_wrap(e, "%s", path);
    labelled_free(d);
    return NULL;
}
