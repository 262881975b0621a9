/* The functions of engine.h that answer questions about models, files and text. */
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/pool.h"
#include "engine/base/str.h"
#include "engine/engine.h"
#include "engine/job/generate.h"
#include "engine/job/session.h"

#include <string.h>

enum { JSON_MAX_BYTES = 64 << 20 };

static json_t *list_files(const char *dir, int64_t *total, struct err *e)
{
    char path[FS_PATH_MAX], **names = NULL;
    int n = 0;
    json_t *out = json_array();
    *total = 0;
    if (!out || fs_list(dir, &names, &n, e)) goto fail;
    for (int i = 0; i < n; i++) {
        if (fs_join(path, dir, names[i], e)) goto fail;
        if (fs_is_dir(path)) continue;
        int64_t bytes = fs_size(path, e);
        if (bytes < 0 || json_array_append_new(out, json_string(names[i]))) goto fail;
        *total += bytes;
    }
    goto out;
fail:
    json_decref(out);
    out = NULL;
out:
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return out;
}

/* What the model reads, and how much of it. */
static json_t *describe_input(const struct model *m, struct err *e)
{
    if (!m->image[0])
        return jx_pack(e, "{s:I, s:I}", "max_length", (json_int_t)m->max_length, "vocab_size",
                       (json_int_t)m->cfg.vocab_size);
    return jx_pack(e, "{s:I, s:[I,I], s:I}", "channels", (json_int_t)m->image[0], "image_size",
                   (json_int_t)m->image[1], (json_int_t)m->image[2], "labels",
                   (json_int_t)m->classes);
}

json_t *engine_check_model(const char *dir, struct err *e)
{
    const struct session_options o = {.dir = dir, .images = true};
    struct session s;
    json_t *out = NULL, *files = NULL, *input = NULL;
    int64_t bytes;
    if (session_open(&s, &o, e)) return NULL;
    const struct hf_config *c = &s.model->cfg;
    if ((input = describe_input(s.model, e)) && (files = list_files(dir, &bytes, e)))
        out = jx_pack(e, "{s:s, s:s?, s:I, s:s, s:I, s:o}", "model_type", c->model_type,
                      "architecture", c->architecture, "parameters",
                      (json_int_t)model_parameters(s.model), "dtype",
                      dtype_name(param_dtype(s.model->params.items[0])), "bytes",
                      (json_int_t)bytes, "files", files);
    if (out && json_object_update_missing(out, input)) {
        err_set(e, E_NOMEM, "out of memory");
        json_decref(out);
        out = NULL;
    }
    json_decref(input);
    session_close(&s);
    return out;
}

/* What is wrong with the file's content is the answer; what kept us from reading it is not. */
static bool is_content(const struct err *e)
{
    return e->code == E_FORMAT || e->code == E_UNSUPPORTED || e->code == E_LIMIT ||
           e->code == E_ARG || e->code == E_RANGE;
}

static json_t *one_problem(const char *kind, const struct err *bad, struct err *e)
{
    json_t *problems = json_array(), *p = NULL;
    if (!problems) return NULL;
    if (bad->code) {
        p = jx_pack(e, "{s:n, s:n, s:s?, s:s}", "line", "column", "field",
                    bad->param[0] ? bad->param : NULL, "reason", bad->msg);
        if (!p || json_array_append_new(problems, p)) {
            json_decref(problems);
            return NULL;
        }
    }
    return jx_pack(e, "{s:b, s:s, s:i, s:o, s:i}", "ok", bad->code == E_OK, "format", kind,
                   "rows", 0, "problems", problems, "more", 0);
}

json_t *engine_check_file(const char *path, const char *kind, struct err *e)
{
    struct err bad = ERR_INIT;
    if (str_eq(kind, "jsonl")) return dataset_check(path, e);
    if (str_eq(kind, "safetensors")) {
        struct st *st = st_open(path, &bad);
        if (st) st_close(st);
    } else if (str_eq(kind, "tokenizer")) {
        struct tok *t = tok_open(path, &bad);
        if (t) tok_free(t);
    } else if (str_eq(kind, "json")) {
        json_t *o = jx_load_file(path, JSON_MAX_BYTES, &bad);
        if (o && !json_is_object(o)) err_set(&bad, E_FORMAT, "the file is not a JSON object");
        json_decref(o);
    } else {
        err_set(e, E_ARG, "no kind of file %.40s; there are: jsonl, safetensors, json, tokenizer",
                kind);
        err_param(e, "kind");
        return NULL;
    }
    if (bad.code && !is_content(&bad)) {
        *e = bad;
        return NULL;
    }
    return one_problem(kind, &bad, e);
}

static int open_for_use(struct session *s, const char *dir, const char *adapter, int threads,
                        struct err *e)
{
    const struct session_options o = {.dir = dir,
                                      .threads = threads ? threads : pool_default_threads()};
    if (session_open(s, &o, e)) return -1;
    if (!model_expect(s->model, &task_causal_lm, e) && !session_ready(s, adapter, e)) return 0;
    session_close(s);
    return -1;
}

char *engine_generate(const struct engine_generate *g, struct err *e)
{
    const struct generate_options o = {.max_tokens = g->max_tokens,
                                       .temperature = g->temperature,
                                       .top_p = g->top_p, .seed = g->seed};
    struct session s;
    if (open_for_use(&s, g->model_dir, g->adapter_dir, g->threads, e)) return NULL;
    char *text = generate_text(&s, CHAT_NONE, g->prompt, &o, e);
    session_close(&s);
    return text;
}

int engine_score(const char *model_dir, const char *adapter_dir, const char *text, int threads,
                 double *nll, int64_t *tokens, struct err *e)
{
    struct session s;
    if (open_for_use(&s, model_dir, adapter_dir, threads, e)) return -1;
    int rc = session_score(&s, text, nll, tokens, e);
    session_close(&s);
    return rc;
}
