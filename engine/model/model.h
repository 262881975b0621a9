/* model.h: a transformers-style model folder as parameters, sites and a builder of tapes.
 *
 * model_open() reads config.json and maps the weights; every tensor must be there with its shape,
 * and none may be left over. Nothing is copied: frozen weights stay in the mapped file. The order
 * of use is open -> (a method unfreezes or adds parameters) -> model_alloc() -> record.
 * A model never names a method or a device. One owner, not thread-safe.
 */
#ifndef GRAFT_MODEL_H
#define GRAFT_MODEL_H

#include "engine/base/arena.h"
#include "engine/base/err.h"
#include "engine/base/fs.h"
#include "engine/fmt/hfconfig.h"
#include "engine/fmt/safetensors.h"
#include "engine/model/site.h"

struct model;
struct model_shape;
struct model_io;

/* One family of architectures: how its tensors are called, and how a pass is recorded. */
struct arch {
    const char *name;
    int (*load)(struct model *m, struct err *e);
    void (*fill)(struct model *m); /* tables, once there is storage */
    void (*record)(struct model *m, struct tape *t, const struct model_shape *s,
                   struct model_io *io); /* failures stick to the tape */
};
extern const struct arch arch_llama;

struct model {
    char dir[FS_PATH_MAX];
    struct hf_config cfg;
    const struct arch *arch;
    struct params params;   /* of the model and of what methods add */
    int ntensors;           /* the first so many parameters are the checkpoint's tensors */
    struct site *sites;     /* [nsites], in forward order */
    int nsites, cap_sites;
    void *layout;           /* of the architecture: which parameter plays which part */
    struct st *st;          /* NULL if init is random */
    bool random;
    uint64_t seed;
    struct arena copies;    /* of tensors that their file does not align */
};

struct model_options {
    bool random;   /* normal(0, initializer_range), norms 1: needs config.json alone */
    uint64_t seed;
};

/* Err names the tensor and both shapes when file and config disagree. */
struct model *model_open(const char *dir, const struct model_options *o, struct err *e);
int model_alloc(struct model *m, struct err *e);
void model_free(struct model *m); /* NULL is fine */
int64_t model_parameters(const struct model *m); /* elements of the checkpoint's tensors */

/* Keys and values of one generation, [B, S, G, D] per block. */
struct model_cache {
    struct params params;
    int64_t B, S;
};
int model_cache_init(struct model_cache *c, const struct model *m, int64_t B, int64_t S,
                     struct err *e);
void model_cache_clear(struct model_cache *c);

struct model_shape {
    int64_t B, T;              /* rows and tokens per row of one pass */
    int64_t rows;              /* > 0: logits of that many positions instead of the loss */
    struct model_cache *cache; /* keys live there (range then indexes the cache), or NULL */
    bool train;                /* dropout is on */
};

/* Tensor ids of the inputs to write and of the results; -1 where the shape has none. */
struct model_io {
    int ids;    /* i32 [B*T] */
    int pos;    /* i32 [B,T] */
    int range;  /* i32 [B,T,2] keys each query attends, see ATTN */
    int target; /* i32 [B*T] next token or -1 */
    int weight; /* f32 [1] factor on the summed loss */
    int loss;   /* f32 [1] */
    int hits;   /* f32 [1] */
    int idx;    /* i32 [rows] positions (b*T + t) whose logits are wanted */
    int logits; /* f32 [rows, V] */
};
int model_record(struct model *m, struct tape *t, const struct model_shape *s,
                 struct model_io *io, struct err *e);

/* For architectures. Adds the parameter of a checkpoint tensor; NULL on failure. */
struct param *model_tensor(struct model *m, const char *name, int rank, const int64_t *shape,
                           struct err *e);
/* A constant that is no tensor of the checkpoint, f32 [n]: arch.fill computes it. Added last. */
struct param *model_table(struct model *m, const char *name, int64_t n, struct err *e);
/* Adds <path>.weight [out,in], its bias if any, and the site. NULL on failure. */
struct site *model_site(struct model *m, const char *path, int64_t in, int64_t out, bool bias,
                        struct err *e);

#endif
