/* method.h: one way of adapting a model = one struct method in one file of this folder.
 *
 * A method declares its settings once, as JSON Schema properties; requests are validated,
 * defaults filled, and docs and forms made from them. A job walks through its phases in order:
 *   attach   decides what is trained: hooks sites, adds or unfreezes parameters of the model
 *   (the model's parameters get their storage)
 *   init     fills the values that training starts from
 *   save     writes the adapter folder that PEFT loads (NULL: the method has none)
 *   merge    turns one base weight into the adapted one
 *   detach   unhooks and frees; the model may then be freed
 * A method never names a device or an architecture: it sees sites and parameters.
 */
#ifndef GRAFT_METHOD_H
#define GRAFT_METHOD_H

#include "engine/base/err.h"
#include "engine/model/model.h"

#include <jansson.h>

struct method;

/* One method at work on one model. */
struct adaptation {
    const struct method *method;
    struct model *model;    /* borrowed, outlives the adaptation */
    const json_t *settings; /* borrowed; every property present */
    uint64_t seed;
    void *state;            /* of the method, made by attach */
};

struct method {
    const char *name, *title, *paper, *kind; /* kind: "adapter" or "full" */
    const char *const *inputs;               /* kinds of data, NULL-terminated */
    const char *properties; /* JSON object: property -> schema; overrides the shared settings */
    int (*attach)(struct adaptation *a, struct err *e);
    int (*init)(struct adaptation *a, struct err *e);
    int (*save)(const struct adaptation *a, const char *dir, const char *base_id, struct err *e);
    /* w f32, in the shape of p, holds its base values and receives the adapted ones. */
    int (*merge)(const struct adaptation *a, const struct param *p, float *w, struct err *e);
    /* Instead of attach and init: a saved adapter on a model, frozen, for inference. */
    int (*load)(struct adaptation *a, const char *dir, struct err *e);
    void (*detach)(struct adaptation *a);
};

/* The registry, NULL-terminated. A new method adds itself to the list in method.c. */
extern const struct method *const method_list[];
extern const struct method method_lora, method_full;

const struct method *method_find(const char *name, struct err *e); /* E_NOTFOUND lists all */

/* a->method, model, settings and seed are set by the caller; attach, model_alloc, init. */
int method_begin(struct adaptation *a, struct err *e);
void method_end(struct adaptation *a); /* zeroed or begun: both fine */

/* A PEFT adapter folder on a model that has no storage yet (ends with model_alloc). */
int method_load_adapter(struct adaptation *a, struct model *model, const char *dir,
                        struct err *e);

/* Selects the sites that `target` (a setting: "all-linear", or an array of module paths or
 * suffixes of them) names; take[model->nsites]. E_ARG, with the names there are, for an entry
 * that matches nothing. */
int method_targets(const struct model *m, const json_t *target, bool *take, struct err *e);

/* {"name","title","paper","kind","inputs","schema"} of one method. */
json_t *method_describe(const struct method *m, struct err *e);

#endif
