/* Full fine-tuning: every weight of the checkpoint is trained, in f32 masters. */
#include "engine/method/method.h"

#include <string.h>

static const char properties[] =
"{\"learning_rate\": {\"type\": \"number\", \"exclusiveMinimum\": 0, \"maximum\": 10,"
"  \"default\": 2e-5, \"description\": \"Peak learning rate.\"}}";

static const char *const inputs[] = {"text", "completion", "messages", NULL};

static int full_attach(struct adaptation *a, struct err *e)
{
    (void)e;
    for (int i = 0; i < a->model->ntensors; i++) {
        struct param *p = a->model->params.items[i];
        p->kind = PARAM_TRAINABLE;
        p->group = p->rank < 2; /* norms and biases do not decay */
    }
    return 0;
}

static int full_init(struct adaptation *a, struct err *e)
{
    (void)a;
    (void)e;
    return 0; /* training starts from the checkpoint */
}

static int full_merge(const struct adaptation *a, const struct param *p, float *w, struct err *e)
{
    (void)a;
    (void)e;
    memcpy(w, p->data, (size_t)p->count * sizeof *w);
    return 0;
}

static void full_detach(struct adaptation *a)
{
    (void)a;
}

const struct method method_full = {
    .name = "full",
    .title = "Full fine-tuning of all weights",
    .paper = "",
    .kind = "full",
    .inputs = inputs,
    .properties = properties,
    .attach = full_attach,
    .init = full_init,
    .merge = full_merge,
    .detach = full_detach,
};
