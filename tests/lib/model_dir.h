/* model_dir.h: a tiny but complete Llama folder in the layout of transformers, for tests: one layer
 * of width 8, byte-level tokenizer without merges, weights from a fixed recipe. */
#ifndef GRAFT_TEST_MODEL_DIR_H
#define GRAFT_TEST_MODEL_DIR_H

#include <stddef.h>

/* Creates the folder with config.json, tokenizer.json and model.safetensors. Asserts. */
void model_dir_write(const char *dir);
/* One of the three, to be uploaded: malloc'd bytes. */
char *model_dir_file(const char *name, size_t *n);

#endif
