/* Columns, patches and rows put elsewhere: no arithmetic but the sum over a batch in PREFIX_DW. */
#include "engine/op/op_rules.h"

#include "engine/base/mem.h"

static int inside(const char *what, int64_t at, int64_t n, int64_t total, struct err *e)
{
    if (at >= 0 && n >= 0 && at <= total && n <= total - at) return 0;
    return err_set(e, E_ARG, "%s %lld to %lld of %lld", what, (long long)at,
                   (long long)at + (long long)n, (long long)total);
}

const char sign_slice[] = "c:NC > c:NC"; /* the rule narrows it */

int shape_slice(const void *attrs, const struct tensor *const *in, struct tensor *out,
                struct err *e)
{
    const struct attrs_slice *a = attrs;
    if (rules_shape(sign_slice, in, out, e)) return -1;
    if (inside("columns", a->at, a->width, in[0]->shape[1], e)) return -1;
    out[0].shape[1] = a->width;
    return 0;
}

/* Only the columns of the slice travel. */
void cost_slice(const void *attrs, const struct tensor *const *in,
                const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)threads;
    rules_cost(0, in, out, c);
    c->bytes = 2 * in[0]->shape[0] * ((const struct attrs_slice *)attrs)->width *
               (int64_t)dtype_size(in[0]->dtype);
}

void grad_slice(struct tape *t, const struct node *n, const int *dout, const bool *want, int *din)
{
    const struct attrs_slice a = {((const struct attrs_slice *)(const void *)n->attrs)->at,
                                  t->tensors[n->in[0]].shape[1]};
    if (want[0]) din[0] = tape_record(t, OP_SLICE_DX, &a, sizeof a, dout, 1, NULL);
}

const char sign_slice_dx[] = "c:NW > c:NW"; /* the rule widens it */

int shape_slice_dx(const void *attrs, const struct tensor *const *in, struct tensor *out,
                   struct err *e)
{
    const struct attrs_slice *a = attrs;
    if (rules_shape(sign_slice_dx, in, out, e)) return -1;
    if (inside("columns", a->at, in[0]->shape[1], a->width, e)) return -1;
    out[0].shape[1] = a->width;
    return 0;
}

void cost_slice_dx(const void *attrs, const struct tensor *const *in,
                   const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(0, in, out, c);
}

const char sign_patches[] = "f:BIYX > c:BI"; /* the rule says how many and how wide */

int shape_patches(const void *attrs, const struct tensor *const *in, struct tensor *out,
                  struct err *e)
{
    const struct attrs_patches *a = attrs;
    if (rules_shape(sign_patches, in, out, e)) return -1;
    int64_t y = in[0]->shape[2], x = in[0]->shape[3], size = a->size, area;
    if (size < 1 || y % size || x % size)
        return err_set(e, E_ARG, "an image of %lld x %lld is not a multiple of patches of %lld",
                       (long long)y, (long long)x, (long long)size);
    if (!mul_ok(&area, size, size) || !mul_ok(&out[0].shape[0], in[0]->shape[0], y / size) ||
        !mul_ok(&out[0].shape[0], out[0].shape[0], x / size) ||
        !mul_ok(&out[0].shape[1], in[0]->shape[1], area))
        return err_set(e, E_LIMIT, "the image is too large");
    return rules_compute(a->compute, &out[0], e);
}

void cost_patches(const void *attrs, const struct tensor *const *in,
                  const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(0, in, out, c);
}

const char sign_prefix[] = "a:PC c:BTC > c:BTC"; /* the rule adds P to T */

int shape_prefix(const void *attrs, const struct tensor *const *in, struct tensor *out,
                 struct err *e)
{
    (void)attrs;
    if (rules_shape(sign_prefix, in, out, e)) return -1;
    out[0].shape[1] += in[0]->shape[0];
    return 0;
}

void cost_prefix(const void *attrs, const struct tensor *const *in,
                 const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(0, in, out, c);
}

void grad_prefix(struct tape *t, const struct node *n, const int *dout, const bool *want,
                 int *din)
{
    const struct attrs_rows a = {t->tensors[n->in[0]].shape[0]};
    if (want[0]) din[0] = tape_record(t, OP_PREFIX_DW, &a, sizeof a, dout, 1, NULL);
    if (want[1]) din[1] = tape_record(t, OP_PREFIX_DX, &a, sizeof a, dout, 1, NULL);
}

const char sign_prefix_dx[] = "c:BTC > c:BTC"; /* the rule takes the rows off T */

int shape_prefix_dx(const void *attrs, const struct tensor *const *in, struct tensor *out,
                    struct err *e)
{
    int64_t rows = ((const struct attrs_rows *)attrs)->rows;
    if (rules_shape(sign_prefix_dx, in, out, e)) return -1;
    if (inside("rows", 0, rows, in[0]->shape[1], e)) return -1;
    out[0].shape[1] -= rows;
    return 0;
}

void cost_prefix_dx(const void *attrs, const struct tensor *const *in,
                    const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(0, in, out, c);
}

const char sign_prefix_dw[] = "c:BTC > f:PC";

int shape_prefix_dw(const void *attrs, const struct tensor *const *in, struct tensor *out,
                    struct err *e)
{
    int64_t s[RULES_LETTERS], rows = ((const struct attrs_rows *)attrs)->rows;
    rules_free(s);
    s['P' - 'A'] = rows;
    if (rules_match(sign_prefix_dw, s, in, out, e)) return -1;
    return inside("rows", 0, rows, in[0]->shape[1], e);
}

void cost_prefix_dw(const void *attrs, const struct tensor *const *in,
                    const struct tensor *const *out, int threads, struct op_cost *c)
{
    int64_t rows = ((const struct attrs_rows *)attrs)->rows;
    double terms = (double)rows * (double)in[0]->shape[0] * (double)in[0]->shape[2];
    (void)threads;
    rules_cost(terms, in, out, c);
}
