#include "engine/model/site.h"

#include "engine/op/op.h"

int site_linear(struct tape *t, const struct site *s, int x, int add)
{
    int w = tape_param(t, s->w, SLOT_DATA);
    int bias = s->bias ? tape_param(t, s->bias, SLOT_DATA) : -1;
    return op_linear_wt(t, x, w, bias, add, &(struct attrs_linear){.alpha = 1, .wt = s->wt});
}

int site_apply(struct tape *t, struct site *s, int x, int add)
{
    return s->apply ? s->apply(t, s, x, add) : site_linear(t, s, x, add);
}
