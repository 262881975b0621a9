/* peft.h: LoRA adapters in the layout that peft.PeftModel.from_pretrained reads.
 *
 * A folder with adapter_config.json and adapter_model.safetensors (lora-baselines sections 3, 4).
 * PEFT loads leniently: a wrong name is a warning and an adapter that does nothing. So this side
 * is strict both ways: target_modules must select exactly the modules of the file, every module
 * has an A [r, in] and a B [out, r], and a setting that graft does not apply (DoRA, rank patterns,
 * saved modules, a setting it has never heard of that is switched on) is refused by name.
 */
#ifndef GRAFT_PEFT_H
#define GRAFT_PEFT_H

#include "engine/base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct peft_module {
    const char *name;   /* path in the model: model.layers.0.self_attn.q_proj */
    int64_t in, out;
    const float *A, *B; /* [r, in], [out, r], row-major */
};

struct peft_adapter {
    const char *base_model;            /* hub id or path; NULL: not said */
    const char *task_type;             /* "CAUSAL_LM"; NULL: none */
    int64_t r;
    double alpha, dropout;
    bool rslora;
    bool fan_in_fan_out;               /* the base weights are stored [in, out] (Conv1D) */
    const char *const *targets;        /* module paths, or suffixes of whole components */
    int ntargets;
    const struct peft_module *modules; /* sorted by name after peft_read */
    int nmodules;
};

/* Both files into the existing folder dir. Borrows everything. E_BUG if the targets do not select
 * exactly the modules. On failure neither file remains. */
int peft_write(const char *dir, const struct peft_adapter *a, struct err *e);

/* Reads a folder; half-precision factors become f32. NULL on failure. */
struct peft_adapter *peft_read(const char *dir, struct err *e);
void peft_free(struct peft_adapter *a); /* only for what peft_read gave; NULL is fine */

double peft_scaling(const struct peft_adapter *a); /* alpha/r, or alpha/sqrt(r) for rsLoRA */

/* Whether the targets select a module of the base model, by PEFT's rule: equal to the path, or a
 * suffix of it that starts after a dot. A loader asks this of every linear module of the base:
 * the answer must be yes exactly for those that the file has (peft_find). */
bool peft_selects(const struct peft_adapter *a, const char *module);
const struct peft_module *peft_find(const struct peft_adapter *a, const char *module);

#endif
