#include "engine/op/op_rules.h"

#include <string.h>

struct match {
    int64_t *sizes;
    const struct tensor *any; /* bound to '*' */
    bool computes;            /* a compute tensor was seen; all have dtype `compute` */
    enum dtype compute;
    struct err *e;
};

void rules_free(int64_t sizes[RULES_LETTERS])
{
    for (int i = 0; i < RULES_LETTERS; i++) sizes[i] = -1;
}

static int word_length(const char *dims)
{
    return (int)strcspn(dims, " ");
}

static const struct { char letter; unsigned types; const char *text; } kinds[] = {
    {'f', 1u << DT_F32, "F32"},
    {'i', 1u << DT_I32, "I32"},
    {'a', 1u << DT_F32 | 1u << DT_BF16 | 1u << DT_F16, "F32, BF16 or F16"},
    {'c', 1u << DT_F32 | 1u << DT_BF16, "F32 or BF16"},
};

static int check_type(struct match *m, char letter, const struct tensor *x, int index)
{
    int k = 0;
    while (kinds[k].letter != letter) k++;
    if (!(kinds[k].types >> x->dtype & 1))
        return err_set(m->e, E_ARG, "input %d is %s where %s is needed", index,
                       dtype_name(x->dtype), kinds[k].text);
    if (letter != 'c') return 0;
    if (!m->computes) m->compute = x->dtype;
    m->computes = true;
    if (m->compute == x->dtype) return 0;
    return err_set(m->e, E_ARG, "input %d is %s, an earlier one %s: an operation computes in one",
                   index, dtype_name(x->dtype), dtype_name(m->compute));
}

static int bind_any(struct match *m, const struct tensor *x, int index)
{
    if (!m->any) m->any = x;
    if (x->rank == m->any->rank && memcmp(x->shape, m->any->shape, sizeof x->shape) == 0) return 0;
    return err_set(m->e, E_ARG, "the shape of input %d differs from the first", index);
}

static int bind(struct match *m, const char *dims, const struct tensor *x, int index)
{
    int rank = word_length(dims);
    if (dims[0] == '*') return bind_any(m, x, index);
    if (x->rank != rank)
        return err_set(m->e, E_ARG, "input %d has %d dimensions where [%.*s] is needed", index,
                       x->rank, rank, dims);
    for (int i = 0; i < rank; i++) {
        bool digit = dims[i] >= '0' && dims[i] <= '9';
        int64_t fixed = dims[i] - '0', *size = digit ? &fixed : &m->sizes[dims[i] - 'A'];
        if (*size < 0) *size = x->shape[i];
        if (*size != x->shape[i])
            return err_set(m->e, E_ARG, "dimension %d of input %d ([%.*s]) is %lld, not %lld", i,
                           index, rank, dims, (long long)x->shape[i], (long long)*size);
    }
    return 0;
}

static void make(const struct match *m, char letter, const char *dims, struct tensor *x)
{
    x->dtype = letter == 'c' ? m->compute : DT_F32;
    if (dims[0] == '*') {
        x->rank = m->any->rank;
        memcpy(x->shape, m->any->shape, sizeof x->shape);
        return;
    }
    x->rank = word_length(dims);
    for (int i = 0; i < x->rank; i++)
        x->shape[i] = dims[i] <= '9' ? dims[i] - '0' : m->sizes[dims[i] - 'A'];
}

int rules_match(const char *signature, int64_t sizes[RULES_LETTERS],
                const struct tensor *const *in, struct tensor *out, struct err *e)
{
    struct match m = {.sizes = sizes, .compute = DT_F32, .e = e};
    bool outputs = false;
    int index = 0;
    for (const char *w = signature; *w; w += word_length(w), w += *w == ' ') {
        if (*w == '>') {
            outputs = true;
            index = 0;
            continue;
        }
        if (outputs) {
            make(&m, *w, w + 2, &out[index]);
        } else if (in[index]) {
            if (check_type(&m, *w, in[index], index)) return -1;
            if (bind(&m, w + 2, in[index], index)) return -1;
        }
        index++;
    }
    return 0;
}

int rules_shape(const char *signature, const struct tensor *const *in, struct tensor *out,
                struct err *e)
{
    int64_t sizes[RULES_LETTERS];
    rules_free(sizes);
    return rules_match(signature, sizes, in, out, e);
}

int rules_compute(int dtype, struct tensor *out, struct err *e)
{
    if (dtype != DT_F32 && dtype != DT_BF16)
        return err_set(e, E_ARG, "it cannot compute in dtype %d", dtype);
    out->dtype = (enum dtype)dtype;
    return 0;
}

static int64_t sum_bytes(const struct tensor *const *x, int n)
{
    int64_t bytes = 0;
    for (int i = 0; i < n; i++)
        if (x[i]) bytes += x[i]->count * (int64_t)dtype_size(x[i]->dtype);
    return bytes;
}

void rules_cost(double flops, const struct tensor *const *in, const struct tensor *const *out,
                struct op_cost *c)
{
    c->flops = flops < 0x1p62 ? (int64_t)flops : (int64_t)1 << 62;
    c->bytes = sum_bytes(in, NODE_IN) + sum_bytes(out, NODE_OUT);
    c->ws_bytes = 0;
}

int64_t rules_partials(int64_t columns)
{
    return 64 * 1024 + 256 * columns * (int64_t)sizeof(float);
}
