/* hfconfig.h: config.json: what all families share, and the means to read the rest strictly.
 *
 * A family reads its own fields from `json` with the helpers below (engine/model). Its rules are
 * these: every number has a range, so that a builder may multiply three of them freely; what the
 * builder does not do is E_UNSUPPORTED, and err.param names the field: nothing is ignored that
 * would change a result; a missing field gets transformers' default where that does not depend on
 * a particular checkpoint. Both spellings of the type are read: torch_dtype and dtype.
 */
#ifndef GRAFT_HFCONFIG_H
#define GRAFT_HFCONFIG_H

#include "engine/base/err.h"
#include "engine/core/dtype.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HF_EOS_MAX = 16, HF_REQUIRED = -1 };

struct hf_config {
    const char *model_type;   /* borrowed from json; "timm" for a config.json of timm */
    const char *architecture; /* the first of `architectures`, or timm's `architecture`; borrowed;
                                 NULL: not said */
    int64_t vocab_size;       /* 0: reads no tokens */
    int64_t bos;              /* -1: none */
    int neos;
    int64_t eos[HF_EOS_MAX];  /* any of them ends an answer */
    enum dtype dtype;         /* of the checkpoint; F32 if it does not say */
    json_t *json;             /* owned: the file as parsed */
};

int hfconfig_load(struct hf_config *c, const char *dir, struct err *e); /* dir/config.json */
int hfconfig_parse(struct hf_config *c, const json_t *json, struct err *e);
void hfconfig_clear(struct hf_config *c);

/* One integer field of a family's struct: the largest values keep every product of three of them,
 * times 8 bytes, below 2^63. */
struct hf_number {
    const char *key;
    size_t at; /* offset of the int64_t */
    int64_t lo, hi, fallback; /* HF_REQUIRED: no default */
};
int hfconfig_numbers(const json_t *o, const struct hf_number *list, size_t n, void *into,
                     struct err *e);

bool hfconfig_given(const json_t *o, const char *key); /* there and not null */
/* Both return -1: "'<key>' <what>" as E_UNSUPPORTED or E_ARG, with err.param. */
int hfconfig_unsupported(struct err *e, const char *key, const char *what);
int hfconfig_wrong(struct err *e, const char *key, const char *what);
/* Puts the name of an object before the field that was found wrong in it: -1. */
int hfconfig_inside(struct err *e, const char *object);
bool hfconfig_among(const char *const *list, const char *key); /* NULL-terminated */
/* E_UNSUPPORTED for the first of the NULL-terminated keys that is set (not null or false). */
int hfconfig_refuse(const json_t *o, const char *const *keys, struct err *e);

#endif
