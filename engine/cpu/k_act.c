/* ACT and ACT_BWD: a loop per kind over a piece of [0,count). */
#include "engine/cpu/kernel.h"

/* One loop per function, so that each is inlined and vectorised. */
#define EACH(expression)                                \
    ELEMENTWISE                                         \
    for (int64_t i = 0; i < n; i++) y[i] = expression; \
    break

static void act_piece(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    int64_t at = task * ELEMENTS, n = min64(ELEMENTS, s->tin[0]->count - at);
    const float *x = (const float *)s->in[0] + at;
    float *y = (float *)s->out[0] + at;
    switch ((enum act_kind)((const struct attrs_act *)s->attrs)->kind) {
    case ACT_GELU: EACH(mx_gelu(x[i]));
    case ACT_GELU_TANH: EACH(mx_gelu_tanh(x[i]));
    case ACT_QUICK_GELU: EACH(mx_quick_gelu(x[i]));
    case ACT_RELU: EACH(mx_relu(x[i]));
    case ACT_SILU: EACH(mx_silu(x[i]));
    case ACT_TANH: EACH(mx_tanh(x[i]));
    case ACT_KINDS: break;
    }
}

int cpu_act(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct step copy = *s;
    if (s->out[0]) pool_run(x->pool, tiles(s->tin[0]->count, ELEMENTS), act_piece, &copy);
    return 0;
}

static void act_bwd_piece(void *ctx, int64_t task, int thread)
{
    (void)thread;
    const struct step *s = ctx;
    int64_t at = task * ELEMENTS, n = min64(ELEMENTS, s->tin[0]->count - at);
    const float *dy = (const float *)s->in[0] + at, *x = (const float *)s->in[1] + at;
    float *y = (float *)s->out[0] + at;
    switch ((enum act_kind)((const struct attrs_act *)s->attrs)->kind) {
    case ACT_GELU: EACH(dy[i] * mx_gelu_slope(x[i]));
    case ACT_GELU_TANH: EACH(dy[i] * mx_gelu_tanh_slope(x[i]));
    case ACT_QUICK_GELU: EACH(dy[i] * mx_quick_gelu_slope(x[i]));
    case ACT_RELU: EACH(dy[i] * mx_relu_slope(x[i]));
    case ACT_SILU: EACH(dy[i] * mx_silu_slope(x[i]));
    case ACT_TANH: EACH(dy[i] * mx_tanh_slope(x[i]));
    case ACT_KINDS: break;
    }
}

int cpu_act_bwd(const struct step *s, struct exec *x, struct err *e)
{
    (void)e;
    struct step copy = *s;
    if (s->out[0]) pool_run(x->pool, tiles(s->tin[0]->count, ELEMENTS), act_bwd_piece, &copy);
    return 0;
}
