/* Workspaces of the CUDA kernels. Compiled into the program too, which plans without a device. */
#include "engine/cuda/cuda.h"
#include "engine/op/op.h"

enum { ALIGN = 256, LOGITS_BYTES = 512 << 20, LOGITS_ROWS = 128, LINE = 8 };

/* k_loss.cu: rows of logits, whole vectors of them, a loss and a hit for each; the totals. With few
 * rows the products that make and use logits would not fill a GPU, so up to LOGITS_BYTES. */
static int64_t loss_bytes(int64_t rows, int64_t vocabulary, bool logits)
{
    int64_t line = logits ? (vocabulary + LINE - 1) / LINE * LINE : 0;
    int64_t row = (line + 2) * (int64_t)sizeof(float);
    int64_t most = LOGITS_BYTES / row / LOGITS_ROWS * LOGITS_ROWS;
    if (most < LOGITS_ROWS) most = LOGITS_ROWS;
    return (logits && rows > most ? most : rows) * row + 2 * (int64_t)sizeof(double);
}

/* A copy of t in the type of x, unless it has that type. */
static int64_t copy_bytes(const struct tensor *t, const struct tensor *x)
{
    int64_t bytes = t ? t->count * (int64_t)dtype_size(x->dtype) : 0;
    return t && t->dtype != x->dtype ? (bytes + ALIGN - 1) / ALIGN * ALIGN : 0;
}

int64_t cuda_ws(int op, const void *attrs, const struct tensor *const *in,
                const struct tensor *const *out, int64_t asked)
{
    (void)attrs;
    (void)out;
    switch (op) {
    case OP_LINEAR: return copy_bytes(in[1], in[0]) + copy_bytes(in[2], in[0]);
    case OP_LINEAR_DX: return copy_bytes(in[1], in[0]);
    case OP_LINEAR_DW:
    case OP_ATTN:
    case OP_EMBED_DW: return 0;
    case OP_ATTN_BWD: return in[6]->count * (int64_t)sizeof(float);
    case OP_LINEAR_CE:
        return copy_bytes(in[1], in[0]) + loss_bytes(in[0]->shape[0], in[1]->shape[0], true);
    case OP_CE: return loss_bytes(in[0]->shape[0], in[0]->shape[1], false);
    default: return asked;
    }
}
