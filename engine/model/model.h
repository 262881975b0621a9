/* model.h: a transformers-style model folder as parameters, sites and a builder of tapes.
 *
 * model_open() reads config.json and maps the weights; every tensor must be there with its shape,
 * and none may be left over. Nothing is copied: frozen weights stay in the mapped file. The order
 * of use is open -> (a method unfreezes or adds parameters) -> model_alloc() -> record.
 *
 * Two names: a tensor is called what the checkpoint calls it, and results keep that name; a site
 * has the path of its module in the class of transformers with the head, whatever the checkpoint
 * leaves out, so that PEFT finds it.
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

/* What a head is for, in the words of those who load the result. */
struct model_task {
    const char *peft;       /* task_type, or NULL */
    const char *pipeline;   /* pipeline_tag of a model card */
    const char *auto_class; /* of transformers */
};
extern const struct model_task task_causal_lm, task_seq_cls, task_image_cls;

/* One model_type of config.json: how its tensors are called, and how a pass is recorded. */
struct arch {
    const char *model_type;
    const struct model_task *task;
    const char *const *architectures; /* classes whose files it reads, NULL-terminated; NULL: load
                                         judges by itself */
    const char *prefix;  /* of the base model inside the class with the head, as "model."; a
                            checkpoint of the base model alone does without */
    const char *const *ignored;  /* patterns (fnmatch) of tensors that nobody reads, or NULL */
    const char *const *apart; /* modules that PEFT could adapt but that are no sites, or NULL */
    bool npz;            /* reads a .npz too: load fills the parameters from it (model.npz) */
    int (*load)(struct model *m, struct err *e); /* config, then tensors and sites */
    void (*fill)(struct model *m); /* tables, once there is storage; NULL: none */
    void (*record)(struct model *m, struct tape *t, const struct model_shape *s,
                   struct model_io *io); /* failures stick to the tape */
};
extern const struct arch arch_llama, arch_mistral, arch_qwen2, arch_qwen3;
extern const struct arch arch_gpt2, arch_opt, arch_roberta, arch_vit, arch_timm;

struct model {
    char dir[FS_PATH_MAX];
    struct hf_config cfg;
    const struct arch *arch;
    struct params params;   /* of the model and of what methods add */
    int ntensors;           /* the first so many parameters are the checkpoint's tensors */
    struct site *sites;     /* [nsites], in forward order */
    int nsites, cap_sites;
    void *layout;           /* of the architecture: which parameter plays which part; mem_free */
    struct st *st;          /* NULL if init is random, or from the .npz */
    char npz[FS_PATH_MAX];  /* the file, or "" */
    bool random;
    int64_t labels;         /* of a new head, 0: as config.json says, the head as in the file */
    bool bare;              /* the checkpoint's names lack arch->prefix */
    uint64_t seed;
    struct arena copies;    /* of tensors that their file does not align */
    /* Set by arch->load: */
    int64_t max_length;     /* tokens of the longest sequence */
    int64_t image[3];       /* channels, height, width that it reads; 0: it reads text */
    int64_t classes;        /* of a classifier of images */
    int64_t cache_layers, cache_heads, cache_width; /* of a key-value cache; 0: no generation */
    int64_t window;         /* what model_io.window is cut to */
    int64_t first_place;    /* row of the table of positions that position 0 has */
    const struct param *tied; /* the embedding that is the head too, or NULL */
    double init_std;        /* of fresh matrices */
};

struct model_options {
    bool random;   /* as transformers initialises: needs config.json alone */
    uint64_t seed;
    int64_t labels; /* > 0: of a classifier, a fresh head for that many classes */
};

/* Err names the tensor and both shapes when file and config disagree. */
struct model *model_open(const char *dir, const struct model_options *o, struct err *e);
int model_alloc(struct model *m, struct err *e);
void model_free(struct model *m); /* NULL is fine */
int64_t model_parameters(const struct model *m); /* elements of the checkpoint's tensors */
/* E_UNSUPPORTED unless the model is for that task. */
int model_expect(const struct model *m, const struct model_task *task, struct err *e);
/* In which type a result stores a tensor of the checkpoint: as the base does. */
enum dtype model_stored(const struct model *m, const struct param *p);

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
    int64_t rows;              /* > 0: logits of that many positions (a classifier: of all B rows)
                                  instead of the loss */
    struct model_cache *cache; /* keys live there (range then indexes the cache), or NULL */
    bool train;                /* dropout is on */
};

/* Tensor ids of the inputs to write and of the results; -1 where the model or the shape has none.
 * Of a text, ids, pos and range are its own; place, window and types follow from them and from the
 * model's facts above (graph_feed_tokens). */
struct model_io {
    int ids;    /* i32 [B*T] */
    int pos;    /* i32 [B,T] */
    int range;  /* i32 [B,T,2] keys each query attends, see ATTN */
    int place;  /* i32 [B*T] rows of the table of positions: pos + first_place */
    int window; /* i32 [B,T,2] range cut to its last model.window keys */
    int types;  /* i32 [B*T] token types: 0 */
    int image;  /* f32 [B,I,Y,X] */
    int target; /* i32 [B*T] next token or -1; of a classifier i32 [B] */
    int weight; /* f32 [1] factor on the summed loss */
    int loss;   /* f32 [1] */
    int hits;   /* f32 [1] */
    int idx;    /* i32 [rows] positions (b*T + t) whose logits are wanted */
    int logits; /* f32 [rows, V], of a classifier [B, classes] */
};
int model_record(struct model *m, struct tape *t, const struct model_shape *s,
                 struct model_io *io, struct err *e);

/* For architectures. Adds the parameter of a checkpoint tensor, by its name in the class with the
 * head; NULL on failure. */
struct param *model_tensor(struct model *m, const char *name, int rank, const int64_t *shape,
                           struct err *e);
/* The same of a head: starts fresh where the checkpoint lacks it, or model.labels asks for it. */
struct param *model_fresh(struct model *m, const char *name, int rank, const int64_t *shape,
                          struct err *e);
void model_shape_text(char out[96], int rank, const int64_t *shape); /* "[2, 3]" */
/* A constant that is no tensor of the checkpoint, f32 [n]: arch.fill computes it. Added last. */
struct param *model_table(struct model *m, const char *name, int64_t n, struct err *e);
/* Adds <path>.weight, its bias if any, and the site. NULL on failure. */
enum site_flags { SITE_BIAS = 1, SITE_WT = 2 /* stored [in, out] */ };
struct site *model_site(struct model *m, const char *path, int64_t in, int64_t out,
                        unsigned flags, struct err *e);

#endif
