/* What graft's readers and writers make of files, for the Python tests to compare.
 *
 *   st_dump list PATH                 tensors of a file or model folder, as JSON
 *   st_dump verdicts                  one path per line on stdin: "ok" or "<error code> <message>"
 *   st_dump rewrite FROM TO BYTES     a model through reader and writer, shards of BYTES
 *   st_dump config DIR                config.json as graft understands it, as JSON
 *   st_dump peft FROM TO              an adapter through reader and writer
 *   st_dump card DIR                  a model card whose every string is hostile
 */
#include "engine/base/hash.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/fmt/card.h"
#include "engine/fmt/peft.h"
#include "engine/fmt/safetensors.h"
#include "engine/model/llama_config.h"

#include <stdio.h>
#include <string.h>

static int show(json_t *o, struct err *e)
{
    char *text = o ? jx_dump(o, e) : NULL;
    json_decref(o);
    if (!text) return -1;
    puts(text);
    mem_free(text);
    return 0;
}

static struct st *open_any(const char *path, struct err *e)
{
    return fs_is_dir(path) ? st_open_model(path, e) : st_open(path, e);
}

static json_t *describe(const struct st_tensor *t, struct err *e)
{
    char sha[65];
    json_t *shape = json_array();
    for (int i = 0; i < t->rank; i++) json_array_append_new(shape, json_integer(t->shape[i]));
    if (hash_sha256(t->data, (size_t)t->bytes, sha, e)) return NULL;
    return jx_pack(e, "{s:s, s:o, s:s}", "dtype", t->dtype_name, "shape", shape, "sha256", sha);
}

static int list(char **argv, struct err *e)
{
    struct st *s = open_any(argv[0], e);
    if (!s) return -1;
    json_t *tensors = json_object();
    const char *format = st_metadata(s, "format");
    for (int i = 0; i < st_count(s); i++)
        if (jx_set(tensors, st_at(s, i)->name, describe(st_at(s, i), e), e)) return -1;
    int rc = show(jx_pack(e, "{s:s?, s:o}", "format", format, "tensors", tensors), e);
    st_close(s);
    return rc;
}

static int verdicts(char **argv, struct err *e)
{
    char path[FS_PATH_MAX];
    (void)argv;
    (void)e;
    while (fgets(path, sizeof path, stdin)) {
        struct err why = ERR_INIT;
        path[strcspn(path, "\n")] = 0;
        struct st *s = st_open(path, &why);
        if (s) puts("ok");
        else printf("%s %s\n", err_name(why.code), why.msg);
        st_close(s);
    }
    return 0;
}

static int copy_tensor(void *ctx, int i, struct st_writer *w, struct err *e)
{
    const struct st_tensor *t = st_at(ctx, i);
    return st_writer_put(w, t->data, (size_t)t->bytes, e);
}

static int rewrite(char **argv, struct err *e)
{
    int64_t bytes;
    struct st *s = open_any(argv[0], e);
    if (!s) return -1;
    struct st_entry *v = mem_array(st_count(s), sizeof *v, e);
    if (!v || !str_int64(argv[2], &bytes)) return -1;
    for (int i = 0; i < st_count(s); i++) {
        const struct st_tensor *t = st_at(s, i);
        v[i] = (struct st_entry){.name = t->name, .dtype = t->dtype, .rank = t->rank};
        memcpy(v[i].shape, t->shape, sizeof t->shape);
    }
    struct st_model m = {argv[1], v, st_count(s), bytes, copy_tensor, s};
    int rc = fs_mkdirs(argv[1], e) ? -1 : st_write_model(&m, e);
    mem_free(v);
    st_close(s);
    return rc;
}

static int config(char **argv, struct err *e)
{
    struct hf_config base;
    struct llama_config c;
    if (hfconfig_load(&base, argv[0], e) || llama_config_parse(&c, &base, e)) return -1;
    json_t *o = jx_pack(
        e, "{s:s, s:I, s:I, s:I, s:i, s:f, s:f, s:f, s:b, s:b, s:b}", "family", base.model_type,
        "head_dim", (json_int_t)c.head_dim, "kv_heads", (json_int_t)c.num_key_value_heads,
        "window", (json_int_t)c.sliding_window, "rope", (int)c.rope, "rope_theta", c.rope_theta,
        "rope_factor", c.rope_factor, "rope_attention", c.rope_attention, "qkv_bias",
        (int)c.qkv_bias, "qk_norm", (int)c.qk_norm, "tied", (int)c.tie_word_embeddings);
    hfconfig_clear(&base);
    return show(o, e);
}

static int peft(char **argv, struct err *e)
{
    struct peft_adapter *a = peft_read(argv[0], e);
    int rc = !a || fs_mkdirs(argv[1], e) ? -1 : peft_write(argv[1], a, e);
    peft_free(a);
    return rc;
}

static int card(char **argv, struct err *e)
{
    static const char hostile[] =
        "a: \"b\" 'c' # d\n---\n- [x](http://y) <b> | `z` \\ {%} \xc3\xa9\x7f";
    static const char *const tags[] = {hostile, "plain"};
    static const struct card_row rows[] = {{hostile, hostile}};
    struct card c = {.title = hostile, .base_model = hostile, .library_name = "peft",
                     .pipeline_tag = "text-generation", .license = "mit", .tags = tags, .ntags = 2,
                     .summary = hostile, .usage = "```\nx", .rows = rows, .nrows = 1};
    return fs_mkdirs(argv[0], e) ? -1 : card_write(argv[0], &c, e);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int args;
        int (*run)(char **argv, struct err *e);
    } commands[] = {{"list", 1, list},     {"verdicts", 0, verdicts}, {"rewrite", 3, rewrite},
                    {"config", 1, config}, {"peft", 2, peft},         {"card", 1, card}};
    struct err e = ERR_INIT;
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(commands[i].name, argv[1]) != 0 || commands[i].args != argc - 2) continue;
        if (!commands[i].run(argv + 2, &e)) return 0;
        fprintf(stderr, "%s: %s\n", err_name(e.code), e.msg);
        return 1;
    }
    fprintf(stderr, "usage: st_dump list|verdicts|rewrite|config|peft|card ...\n");
    return 2;
}
