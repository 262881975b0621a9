/* engine.h: the only engine header that service/ may include.
 *
 * The engine runs one job described by a folder, or answers questions about models, methods and
 * data. It knows nothing of HTTP, SQL or queues, opens no socket, and never exits the process.
 * All JSON values returned are new references. Not thread-safe: one call at a time per process.
 *
 * job.json (immutable, every default resolved, written by whoever creates the job):
 *   {"version": 1,
 *    "id": "ftjob-...",                 id in messages
 *    "seed": 42,                        0 .. 2147483647
 *    "model": {"id": "default/llama", "path": "/abs/folder", "init": "pretrained" | "random"},
 *    "method": "lora",
 *    "settings": {...},                 exactly the properties of the method's schema
 *    "training_file": "/abs/file.jsonl",
 *    "validation_file": null,           or a path; null: settings.validation_split decides
 *    "result_id": "default/name",       hub id of the merged result; the adapter is <id>-adapter
 *    "threads": 0,                      0: as many as the machine allows
 *    "device": "auto",                  "cpu", "cuda", or a GPU if there is one; may be left out
 *    "precision": "f32"}                or "bf16", of activations, on a GPU; may be left out
 *
 * Layout of a job folder (design section 2):
 *   job.json  attempts/<n>/{events.jsonl,metrics.jsonl,log.txt,exit.json,checkpoints/step-N/}
 *   result/   appears whole or not at all: graft.json, metrics.csv, samples.json,
 *             adapter/ (PEFT; adapter methods), merged/ (transformers layout), each with README.md
 */
#ifndef GRAFT_ENGINE_H
#define GRAFT_ENGINE_H

#include "engine/base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Exit contract of a worker: the process exit code and exit.json's "code". */
enum engine_exit {
    EXIT_DONE = 0,
    EXIT_USER = 10,      /* the job or its data are wrong: no retry */
    EXIT_NUMERIC = 11,   /* NaN or Inf: no retry */
    EXIT_TRANSIENT = 20, /* I/O, disk full, memory: retry */
    EXIT_DEVMEM = 30,    /* the plan does not fit: no retry */
    EXIT_CANCELLED = 40,
    EXIT_PAUSED = 41,    /* checkpoint written */
    EXIT_PREEMPTED = 50  /* checkpoint written; run again */
};

enum engine_want { WANT_NONE, WANT_PAUSE, WANT_CANCEL, WANT_PREEMPT };

struct engine_progress {
    const char *phase;       /* "loading" "tokenizing" "training" "evaluating" "exporting" */
    int64_t step, total_steps;
    double epoch;
    double train_loss;       /* of this step; NaN if none yet */
    double learning_rate, grad_norm;
    double tokens_per_s;     /* trained + context tokens, since the last report */
    int64_t tokens;          /* so far: context tokens put through the model */
    double eta_s;            /* NaN if unknown */
};

/* Callbacks from the thread that called engine_run; all optional. */
struct engine_hooks {
    void *ctx;
    void (*progress)(void *ctx, const struct engine_progress *p);
    /* level: "info" "warn" "error"; type: "message" "metrics"; data: borrowed or NULL. */
    void (*event)(void *ctx, const char *level, const char *type, const char *message,
                  json_t *data);
    enum engine_want (*want)(void *ctx); /* asked once per step */
};

/* Runs attempt `attempt` (>= 1) of the job in `dir`, from the newest complete checkpoint of any
 * earlier attempt. Writes attempts/<attempt>/ and, at the end, result/. If result/ already exists
 * and is complete, returns EXIT_DONE at once. On anything but EXIT_DONE *e says why.
 * Same job.json, same inputs: same bytes in result/, whatever the threads, pauses and crashes. */
enum engine_exit engine_run(const char *dir, int attempt, const struct engine_hooks *hooks,
                            struct err *e);

/* What it would take, without running:
 *   "peak_bytes"        of the whole process, and its parts: "bytes": {"process", "weights",
 *                       "trainable", "gradients", "moments", "activations", "workspace", "finish"}
 *   "fits"              into "free_bytes" of "memory_bytes"; if not, "advice": what to change
 *   "recompute"         the policy it would take
 *   "flops_per_step", "seconds_per_step", "seconds" (of the job, without samples and export),
 *   "steps", "rows", "parameters", "trainable_parameters"
 *   "result_bytes"      and "results": {"adapter"?, "merged", "checkpoint"} on disk
 * Seconds come from a measurement of this device, kept in cache_dir/profile.json. */
json_t *engine_plan(const json_t *job, const char *cache_dir, struct err *e);

/* [{"name", "title", "paper", "kind", "inputs": [...], "schema": {JSON Schema}}], per method. */
json_t *engine_methods(struct err *e);

/* Checks `settings` (an object, may be NULL: all defaults; the string "auto" stands for a
 * property's default) against the method's schema and returns it with every default filled in.
 * err.param is the dotted name of the property at fault. E_NOTFOUND: no such method, and the
 * message lists those that exist. */
json_t *engine_settings(const char *method, const json_t *settings, struct err *e);

/* Opens every file of a model folder the way a job would (config.json, safetensors headers and
 * shapes, tokenizer.json) and describes it: {"model_type", "architecture", "parameters",
 * "dtype", "bytes", "files": [...]}, and of a model of text "max_length" and "vocab_size", of
 * images "channels", "image_size": [height, width] and "labels". */
json_t *engine_check_model(const char *dir, struct err *e);

/* One uploaded file on its own, by kind of content: "jsonl" (a data set, in CSV too),
 * "safetensors", "json" (any JSON object), "tokenizer". Reports every problem at once (first 50):
 * {"ok", "format", "rows", "problems": [{"line", "column", "field", "reason"}], "more": n}, of a
 * data set also "container" ("jsonl" | "csv") and, if its rows have labels, "labels".
 * NULL only if the check itself could not be done. */
json_t *engine_check_file(const char *path, const char *kind, struct err *e);

/* How the rows of a data set become tokens for a model. ask: {"model": folder, "rows": how many are
 * shown (0..100; 0: none, and the whole file is read and counted), "max_length" (0: the model's, at
 * most 1024), "chat_template" (a name, "none" or "auto")}, all but model optional. The answer is
 * dataset_preview's: a report as of engine_check_file, counts, and the rows asked for in "data".
 * Errors that name a field of ask are the caller's. */
json_t *engine_preview(const char *path, const json_t *ask, struct err *e);

/* A token source for prompts: greedy if temperature is 0. Returns the text after the prompt.
 * Loads model (and adapter folder, may be NULL) for this one call. mem_free the result. */
struct engine_generate {
    const char *model_dir, *adapter_dir, *prompt;
    int max_tokens;
    double temperature, top_p;
    uint64_t seed;
    int threads;
};
char *engine_generate(const struct engine_generate *g, struct err *e);

/* Mean negative log-likelihood per token (nats) of text, with the tokenizer's own leading special
 * tokens; *tokens receives how many were predicted. */
int engine_score(const char *model_dir, const char *adapter_dir, const char *text, int threads,
                 double *nll, int64_t *tokens, struct err *e);

#endif
