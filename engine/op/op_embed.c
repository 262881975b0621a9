/* Reading and writing whole rows: embeddings, row selection, key/value caches. */
#include "engine/op/op_rules.h"

/* Only the rows that are named travel, not the whole table. */
static int64_t moved(const struct tensor *rows, const struct tensor *index)
{
    return 2 * rows->count * (int64_t)dtype_size(rows->dtype) +
           index->count * (int64_t)sizeof(int32_t);
}

const char sign_embed[] = "i:N a:VC > c:NC";

int shape_embed(const void *attrs, const struct tensor *const *in, struct tensor *out,
                struct err *e)
{
    if (rules_shape(sign_embed, in, out, e)) return -1;
    return rules_compute(((const struct attrs_embed *)attrs)->compute, &out[0], e);
}

void cost_embed(const void *attrs, const struct tensor *const *in,
                const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    const int64_t item = (int64_t)dtype_size(in[1]->dtype), n = in[0]->count * in[1]->shape[1];
    rules_cost(0, in, out, c);
    c->bytes = n * (item + (int64_t)dtype_size(out[0]->dtype)) +
               in[0]->count * (int64_t)sizeof(int32_t);
}

void grad_embed(struct tape *t, const struct node *n, const int *dout, const bool *want, int *din)
{
    if (!want[1]) return;
    const struct attrs_rows a = {t->tensors[n->in[1]].shape[0]};
    din[1] = tape_record(t, OP_EMBED_DW, &a, sizeof a, (int[]){n->in[0], dout[0]}, 2, NULL);
}

/* A result whose row count is an attribute. */
static int scatter(const char *signature, char letter, const void *attrs,
                   const struct tensor *const *in, struct tensor *out, struct err *e)
{
    int64_t s[RULES_LETTERS], rows = ((const struct attrs_rows *)attrs)->rows;
    if (rows < 0) return err_set(e, E_ARG, "%lld rows", (long long)rows);
    rules_free(s);
    s[letter - 'A'] = rows;
    return rules_match(signature, s, in, out, e);
}

const char sign_embed_dw[] = "i:N c:NC > f:VC";

int shape_embed_dw(const void *attrs, const struct tensor *const *in, struct tensor *out,
                   struct err *e)
{
    return scatter(sign_embed_dw, 'V', attrs, in, out, e);
}

/* Workspace: the ids in sorted order, and where each row's ids begin and end. */
void cost_embed_dw(const void *attrs, const struct tensor *const *in,
                   const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)threads;
    rules_cost((double)in[1]->count, in, out, c);
    c->ws_bytes = 8 * (in[0]->count + ((const struct attrs_rows *)attrs)->rows + 1);
}

RULES_SHAPE(rows, "c:NC i:M > c:MC")

void cost_rows(const void *attrs, const struct tensor *const *in,
               const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(0, in, out, c);
    c->bytes = moved(out[0], in[1]);
}

void grad_rows(struct tape *t, const struct node *n, const int *dout, const bool *want, int *din)
{
    if (!want[0]) return;
    const struct attrs_rows a = {t->tensors[n->in[0]].shape[0]};
    din[0] = tape_record(t, OP_ROWS_DX, &a, sizeof a, (int[]){dout[0], n->in[1]}, 2, NULL);
}

const char sign_rows_dx[] = "c:MC i:M > c:NC";

int shape_rows_dx(const void *attrs, const struct tensor *const *in, struct tensor *out,
                  struct err *e)
{
    return scatter(sign_rows_dx, 'N', attrs, in, out, e);
}

void cost_rows_dx(const void *attrs, const struct tensor *const *in,
                  const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(0, in, out, c);
}

RULES_SHAPE(kv_store, "c:BSGD c:BTGD i:BT > c:BSGD")

void cost_kv_store(const void *attrs, const struct tensor *const *in,
                   const struct tensor *const *out, int threads, struct op_cost *c)
{
    (void)attrs;
    (void)threads;
    rules_cost(0, in, out, c);
    c->bytes = moved(in[1], in[2]);
}
