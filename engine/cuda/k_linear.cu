/* LINEAR and its gradients: each is one product (cu_gemm). With attrs.wt the weight is stored
 * [K,M] instead of [M,K], which only turns a factor round.
 *
 * A weight or bias of another type than the activations (an f32 master in a bf16 pass, a frozen
 * bf16 weight in an f32 pass) is converted first, into the workspace (cuda_ws): that costs a
 * fraction of what the product gains from factors of one type. */
#include "engine/cuda/vec.cuh"

static const struct attrs_linear *attrs_of(const struct step *s)
{
    return (const struct attrs_linear *)s->attrs;
}

int cuda_linear(const struct step *s, struct exec *x, struct err *e)
{
    const bool wt = attrs_of(s)->wt;
    const enum dtype t = s->tin[0]->dtype;
    char *ws = (char *)s->ws;
    struct cu_gemm g = {};
    if (!s->out[0]) return 0;
    g.m = s->tin[0]->shape[0];
    g.k = s->tin[0]->shape[1];
    g.n = s->tin[1]->shape[wt ? 1 : 0];
    g.t = g.tc = t;
    g.a = s->in[0];
    g.b = vec_input(s, 1, t, x, &ws);
    g.bt = !wt;
    g.c = s->out[0];
    g.alpha = attrs_of(s)->alpha;
    g.bias = vec_input(s, 2, t, x, &ws);
    g.add = s->in[3];
    return cu_gemm(x, &g, e);
}

/* dx[N,K] = alpha dy[N,M] w */
int cuda_linear_dx(const struct step *s, struct exec *x, struct err *e)
{
    const bool wt = attrs_of(s)->wt;
    const enum dtype t = s->tin[0]->dtype;
    char *ws = (char *)s->ws;
    struct cu_gemm g = {};
    if (!s->out[0]) return 0;
    g.m = s->tin[0]->shape[0];
    g.k = s->tin[0]->shape[1];
    g.n = s->tin[1]->shape[wt ? 0 : 1];
    g.t = g.tc = t;
    g.a = s->in[0];
    g.b = vec_input(s, 1, t, x, &ws);
    g.bt = wt;
    g.c = s->out[0];
    g.alpha = attrs_of(s)->alpha;
    g.accum = accumulates(s, 0);
    return cu_gemm(x, &g, e);
}

/* dw[M,K] = alpha dy[N,M]^T x[N,K], or its transpose. */
int cuda_linear_dw(const struct step *s, struct exec *x, struct err *e)
{
    const int left = attrs_of(s)->wt ? 1 : 0, right = 1 - left;
    struct cu_gemm g = {};
    if (!s->out[0]) return 0;
    g.m = s->tin[left]->shape[1];
    g.k = s->tin[left]->shape[0];
    g.n = s->tin[right]->shape[1];
    g.t = s->tin[0]->dtype;
    g.tc = DT_F32;
    g.a = s->in[left];
    g.at = true;
    g.b = s->in[right];
    g.c = s->out[0];
    g.alpha = attrs_of(s)->alpha;
    g.accum = accumulates(s, 0);
    return cu_gemm(x, &g, e);
}
