/* trial.h: a model under a method, ready to train: what benchmarks run. */
#ifndef GRAFT_TRIAL_H
#define GRAFT_TRIAL_H

#include "engine/base/fs.h"
#include "engine/job/graph.h"
#include "engine/method/method.h"

struct trial_options {
    const char *config;   /* text of config.json, for random weights */
    const char *method;
    const char *settings; /* JSON object; NULL: defaults */
    int64_t B, T;         /* T: of text */
    const char *dir;      /* a model folder to load instead */
    const char *train;    /* parameters whose names start so are trained too; NULL: none */
};

struct trial {
    char dir[FS_PATH_MAX];
    struct exec *exec; /* borrowed */
    struct model *model;
    struct adaptation adapt;
    struct graphs graphs;
    json_t *schema, *settings;
    int32_t *ids, *target, *pos, *range; /* of images: target[B] alone */
    float *images;                       /* or NULL */
    int64_t B, T, steps;
};

/* Ends the process with a message if it fails, as everything here does. x may be NULL: nothing is
 * run then. */
void trial_start(struct trial *t, const struct trial_options *o, struct exec *x);
void trial_end(struct trial *t);

/* Binds the training pass and feeds the batch. */
struct graph *trial_pass(struct trial *t);
/* One whole optimiser step as train.c does it; returns the loss. */
double trial_step(struct trial *t);

#endif
