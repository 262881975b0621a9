/* LINEAR and its gradients: each is one product (cu_gemm). With attrs.wt the weight is stored
 * [K,M] instead of [M,K], which only turns a factor round. */
#include "engine/cuda/kernel.cuh"

static const struct attrs_linear *attrs_of(const struct step *s)
{
    return (const struct attrs_linear *)s->attrs;
}

int cuda_linear(const struct step *s, struct exec *x, struct err *e)
{
    const bool wt = attrs_of(s)->wt;
    struct cu_gemm g = {};
    if (!s->out[0]) return 0;
    g.m = s->tin[0]->shape[0];
    g.k = s->tin[0]->shape[1];
    g.n = s->tin[1]->shape[wt ? 1 : 0];
    g.a = s->in[0];
    g.ta = s->tin[0]->dtype;
    g.b = s->in[1];
    g.tb = s->tin[1]->dtype;
    g.bt = !wt;
    g.c = s->out[0];
    g.tc = s->tout[0]->dtype;
    g.alpha = attrs_of(s)->alpha;
    g.bias = s->in[2];
    g.tbias = s->in[2] ? s->tin[2]->dtype : DT_F32;
    g.add = s->in[3];
    return cu_gemm(x, &g, e);
}

/* dx[N,K] = alpha dy[N,M] w */
int cuda_linear_dx(const struct step *s, struct exec *x, struct err *e)
{
    const bool wt = attrs_of(s)->wt;
    struct cu_gemm g = {};
    if (!s->out[0]) return 0;
    g.m = s->tin[0]->shape[0];
    g.k = s->tin[0]->shape[1];
    g.n = s->tin[1]->shape[wt ? 0 : 1];
    g.a = s->in[0];
    g.ta = s->tin[0]->dtype;
    g.b = s->in[1];
    g.tb = s->tin[1]->dtype;
    g.bt = wt;
    g.c = s->out[0];
    g.tc = s->tout[0]->dtype;
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
    g.a = s->in[left];
    g.ta = s->tin[left]->dtype;
    g.at = true;
    g.b = s->in[right];
    g.tb = s->tin[right]->dtype;
    g.c = s->out[0];
    g.tc = s->tout[0]->dtype;
    g.alpha = attrs_of(s)->alpha;
    g.accum = accumulates(s, 0);
    return cu_gemm(x, &g, e);
}
