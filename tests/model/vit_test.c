/* The Vision Transformer against numbers made by transformers and timm (golden/make_vit_golden.py),
 * in the three layouts of its weights, and what a folder may not look like. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/hash.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/base/str.h"
#include "engine/engine.h"
#include "engine/fmt/npz.h"
#include "engine/job/graph.h"
#include "engine/method/method.h"

#include <archive.h>
#include <archive_entry.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN "tests/model/golden/vit/"
enum { LABELS = 5 };

#define OK(call) \
    do { \
        if (call) fail_msg("%s", e.msg); \
    } while (0)

struct golden {
    struct model *model;
    struct exec *exec;
    struct graphs graphs;
    struct st *ref;
    int64_t B;
};

static const void *tensor(const struct golden *g, const char *name)
{
    const struct st_tensor *t = st_find(g->ref, name);
    if (!t) fail_msg("the reference has no %s", name);
    return t->data;
}

/* The model of `dir`, judged by the reference of golden folder `name`. */
static void open_golden(struct golden *g, const char *dir, const char *name, bool trained)
{
    struct err e = ERR_INIT;
    const struct model_options o = {.seed = 3};
    struct adaptation a = {.method = &method_full};
    char path[256];
    *g = (struct golden){0};
    if (!(g->model = model_open(dir, &o, &e))) fail_msg("%s", e.msg);
    a.model = g->model;
    if (trained) OK(method_full.attach(&a, &e));
    OK(model_alloc(g->model, &e));
    assert_non_null(g->exec = exec_new_cpu(2, &e));
    g->exec->poison = true;
    graphs_init(&g->graphs, g->model, g->exec);
    snprintf(path, sizeof path, GOLDEN "%s/reference.safetensors", name);
    if (!(g->ref = st_open(path, &e))) fail_msg("%s", e.msg);
    g->B = st_find(g->ref, "image")->shape[0];
}

static void close_golden(struct golden *g)
{
    exec_free(g->exec);
    graphs_clear(&g->graphs);
    model_free(g->model);
    st_close(g->ref);
}

static double relative(const float *a, const float *b, int64_t n)
{
    double d = 0, s = 0;
    for (int64_t i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        s += (double)b[i] * b[i];
    }
    return sqrt(d / (s > 0 ? s : 1));
}

static void run_logits(struct golden *g, float *out)
{
    struct err e = ERR_INIT;
    const struct graph_key k = {.kind = GRAPH_LOGITS, .B = g->B, .rows = g->B};
    struct graph *p = graphs_bind(&g->graphs, &k, &e);
    if (!p) fail_msg("%s", e.msg);
    OK(graph_feed_images(g->exec, p, tensor(g, "image"), NULL, 0, &e));
    OK(exec_run(g->exec, PHASE_STEP, 0, &e));
    OK(exec_read(g->exec, p->io.logits, out, (size_t)(g->B * LABELS) * sizeof *out, &e));
}

/* Loss and gradients of the reference's batch. */
static float run_loss(struct golden *g, enum graph_kind kind)
{
    struct err e = ERR_INIT;
    float loss;
    const struct graph_key k = {.kind = kind, .B = g->B};
    struct graph *p = graphs_bind(&g->graphs, &k, &e);
    if (!p) fail_msg("%s", e.msg);
    OK(graph_feed_images(g->exec, p, tensor(g, "image"), tensor(g, "labels"),
                         1.0f / (float)g->B, &e));
    OK(exec_run(g->exec, PHASE_STEP, 0, &e));
    OK(exec_read(g->exec, p->io.loss, &loss, sizeof loss, &e));
    return loss;
}

static const char *const folders[] = {"hf", "timm", "clip", "distilled"};
enum { FOLDERS = sizeof folders / sizeof *folders };

static void logits_equal_those_of_transformers_and_timm(void **state)
{
    (void)state;
    for (int m = 0; m < FOLDERS; m++) {
        struct golden g;
        char dir[64];
        float got[16];
        snprintf(dir, sizeof dir, GOLDEN "%s", folders[m]);
        open_golden(&g, dir, folders[m], false);
        run_logits(&g, got);
        double d = relative(got, tensor(&g, "logits"), g.B * LABELS);
        print_message("%-10s logits %.2g\n", folders[m], d);
        assert_true(d <= 1e-5); /* the project's bar; f32 against f32 gives about 3e-7 */
        close_golden(&g);
    }
}

static void gradients_of_all_weights_equal_those_of_transformers_and_timm(void **state)
{
    (void)state;
    for (int m = 0; m < FOLDERS; m++) {
        struct golden g;
        char dir[64], name[PARAM_NAME + 8];
        double worst = 0;
        snprintf(dir, sizeof dir, GOLDEN "%s", folders[m]);
        open_golden(&g, dir, folders[m], true);
        assert_float_equal(run_loss(&g, GRAPH_TRAIN), *(const float *)tensor(&g, "loss"), 1e-5);
        for (int i = 0; i < g.model->ntensors; i++) {
            const struct param *w = g.model->params.items[i];
            snprintf(name, sizeof name, "grad.%s", w->name);
            double d = relative(w->grad, tensor(&g, name), w->count);
            /* Moving all keys alike changes no score: that gradient is 0, and rounding. */
            if (str_ends(w->name, "key.bias")) {
                for (int64_t k = 0; k < w->count; k++) assert_true(fabsf(w->grad[k]) < 1e-6f);
                continue;
            }
            if (d > worst) worst = d;
            if (d > 1e-4) fail_msg("%s: gradient of %s is off by %g", folders[m], w->name, d);
        }
        print_message("%-10s gradients %.2g\n", folders[m], worst);
        close_golden(&g);
    }
}

/* ---- folders made from the golden ones ---- */

static char *folder(const char *config)
{
    static char dir[64];
    struct err e = ERR_INIT;
    struct buf b;
    char to[FS_PATH_MAX];
    snprintf(dir, sizeof dir, "/tmp/graft-vit-XXXXXX");
    assert_non_null(mkdtemp(dir));
    buf_init(&b, 1 << 20);
    OK(fs_read_file(config, &b, &e));
    snprintf(to, sizeof to, "%s/config.json", dir);
    OK(fs_write_file(to, b.data, b.len, &e));
    buf_clear(&b);
    return dir;
}

static void copy_into(const char *dir, const char *from, const char *name)
{
    struct err e = ERR_INIT;
    struct buf b;
    char to[FS_PATH_MAX];
    buf_init(&b, 1 << 20);
    OK(fs_read_file(from, &b, &e));
    snprintf(to, sizeof to, "%s/%s", dir, name);
    OK(fs_write_file(to, b.data, b.len, &e));
    buf_clear(&b);
}

/* config.json of dir with `key` (a path with dots) set to the JSON `value`, or without it. */
static void set_config(const char *dir, const char *key, const char *value)
{
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX], part[64];
    snprintf(path, sizeof path, "%s/config.json", dir);
    json_t *top = jx_load_file(path, 1 << 20, &e), *o = top;
    assert_non_null(top);
    while (strchr(key, '.')) {
        size_t n = strcspn(key, ".");
        snprintf(part, sizeof part, "%.*s", (int)n, key);
        o = json_object_get(o, part);
        assert_non_null(o);
        key += n + 1;
    }
    json_t *v = value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL;
    if (value) assert_int_equal(json_object_set_new(o, key, v), 0);
    else json_object_del(o, key);
    char *text = jx_dump(top, &e);
    OK(fs_write_file(path, text, strlen(text), &e));
    mem_free(text);
    json_decref(top);
}

static void the_same_weights_give_the_same_logits_in_every_layout(void **state)
{
    (void)state;
    /* Where the names and the order of the sums are the same, so is every bit. */
    static const struct {
        const char *config, *weights, *stored, *exactly;
    } cases[] = {
        {GOLDEN "timm/config.json", GOLDEN "timm/model.safetensors", "model.safetensors", NULL},
        {GOLDEN "npz/config.json", GOLDEN "npz/ViT.npz", "ViT-B_16.npz", "timm"},
        {GOLDEN "hf/config.json", GOLDEN "npz/ViT.npz", "imagenet21k.npz", "hf"},
    };
    struct golden g;
    float hf[16], got[16], same[16];
    open_golden(&g, GOLDEN "hf", "hf", false);
    run_logits(&g, hf);
    close_golden(&g);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = ERR_INIT;
        char other[64];
        const char *dir = folder(cases[i].config);
        copy_into(dir, cases[i].weights, cases[i].stored);
        open_golden(&g, dir, "hf", false);
        run_logits(&g, got);
        assert_true(relative(got, hf, g.B * LABELS) < 1e-6); /* a few roundings */
        close_golden(&g);
        fs_rmtree(dir, &e);
        if (!cases[i].exactly) continue;
        snprintf(other, sizeof other, GOLDEN "%s", cases[i].exactly);
        open_golden(&g, other, "hf", false);
        run_logits(&g, same);
        assert_memory_equal(got, same, (size_t)(g.B * LABELS) * sizeof *got);
        close_golden(&g);
    }
}

static void recomputing_and_threads_change_no_bit(void **state)
{
    (void)state;
    for (int m = 0; m < FOLDERS; m++) {
        char dir[64], first[65], hex[65];
        int64_t bytes[RECOMPUTE_COUNT];
        snprintf(dir, sizeof dir, GOLDEN "%s", folders[m]);
        for (int run = 0; run < 2 * RECOMPUTE_COUNT; run++) {
            struct golden g;
            struct err e = ERR_INIT;
            int policy = run / 2;
            open_golden(&g, dir, folders[m], true);
            exec_free(g.exec);
            assert_non_null(g.exec = g.graphs.exec = exec_new_cpu(run % 2 ? 5 : 1, &e));
            g.graphs.recompute = (enum recompute)policy;
            run_loss(&g, GRAPH_TRAIN);
            struct hash *h = hash_new("SHA256", &e);
            for (int i = 0; i < g.model->ntensors; i++) {
                const struct param *w = g.model->params.items[i];
                OK(hash_add(h, w->grad, (size_t)w->count * sizeof(float), &e));
            }
            OK(hash_hex(h, hex, &e));
            hash_free(h);
            if (run == 0) memcpy(first, hex, sizeof hex);
            assert_string_equal(hex, first);
            bytes[policy] = g.graphs.bound->report.step_bytes;
            close_golden(&g);
        }
        assert_true(bytes[RECOMPUTE_CHEAP] < bytes[RECOMPUTE_NONE]);
        assert_true(bytes[RECOMPUTE_BLOCK] < bytes[RECOMPUTE_CHEAP]);
    }
}

/* For a device that computes in bf16: its kernels are tested elsewhere, the recording here. */
static void a_pass_in_bf16_is_recorded_with_gradients_in_f32(void **state)
{
    (void)state;
    for (int m = 0; m < FOLDERS; m++) {
        struct golden g;
        struct err e = ERR_INIT;
        struct model_io io;
        const struct model_shape s = {.B = 2, .train = true};
        char dir[64];
        int halves = 0;
        snprintf(dir, sizeof dir, GOLDEN "%s", folders[m]);
        open_golden(&g, dir, folders[m], true);
        struct tape *t = tape_new(&e);
        t->compute = DT_BF16;
        OK(model_record(g.model, t, &s, &io, &e));
        OK(tape_backward(t, io.loss, &e));
        for (int i = 0; i < t->ntensors; i++) {
            halves += t->tensors[i].dtype == DT_BF16;
            if (t->tensors[i].slot == SLOT_GRAD) assert_int_equal(t->tensors[i].dtype, DT_F32);
        }
        assert_true(halves > 50);
        assert_int_equal(t->tensors[io.loss].dtype, DT_F32);
        tape_free(t);
        close_golden(&g);
    }
}

/* The loss along one direction of all weights, and the gradients' word for its slope. */
static double slope(struct golden *g, float **save, const float *along, double h)
{
    double sum = 0;
    int64_t at = 0;
    for (int i = 0; i < g->model->ntensors; i++) {
        const struct param *w = g->model->params.items[i];
        float *v = w->data;
        for (int64_t k = 0; k < w->count; k++) {
            sum += (double)w->grad[k] * along[at + k];
            v[k] = (float)(save[i][k] + h * along[at + k]);
        }
        at += w->count;
    }
    return sum;
}

static void gradients_are_the_slope_of_the_loss(void **state)
{
    (void)state;
    struct golden g;
    struct err e = ERR_INIT;
    open_golden(&g, GOLDEN "distilled", "distilled", true);
    int n = g.model->ntensors;
    float **save = mem_array(n, sizeof *save, &e);
    float *along = mem_array(model_parameters(g.model), sizeof *along, &e);
    for (int i = 0; i < n; i++) {
        const struct param *w = g.model->params.items[i];
        assert_non_null(save[i] = mem_dup(w->data, (size_t)w->count * sizeof(float), &e));
    }
    for (uint32_t d = 0; d < 8; d++) {
        static const double at[4] = {1, -1, 2, -2}, c[4] = {8, -8, -1, 1};
        const double h = 1e-3; /* rounding of the loss / h and h^4 are both about 1e-4 */
        double difference = 0;
        rng_fill_normal(along, model_parameters(g.model), 1, 5, RNG_USER, d);
        run_loss(&g, GRAPH_TRAIN);
        double want = slope(&g, save, along, 0);
        for (int k = 0; k < 4; k++) {
            slope(&g, save, along, at[k] * h);
            difference += c[k] * (double)run_loss(&g, GRAPH_LOSS) / (12 * h);
        }
        slope(&g, save, along, 0);
        if (fabs(difference - want) > 2e-3 * (1 + fabs(want)))
            fail_msg("direction %u: slope %g, gradients say %g", d, difference, want);
    }
    for (int i = 0; i < n; i++) mem_free(save[i]);
    mem_free(save);
    mem_free(along);
    close_golden(&g);
}

/* ---- checkpoints with another head, or none ---- */

/* The golden weights, named as ViTModel alone names them, with its pooler and without the head. */
static void write_bare(const char *dir)
{
    struct err e = ERR_INIT;
    struct st *s = st_open(GOLDEN "hf/model.safetensors", &e);
    char path[FS_PATH_MAX];
    const float zeros[16] = {0};
    assert_non_null(s);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    struct st_writer *w = st_writer_new(path, &e);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < st_count(s); i++) {
            const struct st_tensor *t = st_at(s, i);
            if (!str_starts(t->name, "vit.")) continue;
            if (pass == 0) OK(st_writer_add(w, t->name + 4, t->dtype, t->rank, t->shape, &e));
            else OK(st_writer_put(w, t->data, (size_t)t->bytes, &e));
        }
        if (pass == 0) OK(st_writer_add(w, "pooler.dense.bias", DT_F32, 1, &(int64_t){16}, &e));
        else OK(st_writer_put(w, zeros, sizeof zeros, &e));
    }
    OK(st_writer_publish(w, NULL, &e));
    st_close(s);
    set_config(dir, "architectures", "[\"ViTModel\"]");
}

static void a_bare_checkpoint_gets_a_fresh_head(void **state)
{
    (void)state;
    struct golden g;
    struct err e = ERR_INIT;
    float got[16], first;
    const char *dir = folder(GOLDEN "hf/config.json");
    write_bare(dir);
    open_golden(&g, dir, "hf", false);
    struct param *w = params_find(&g.model->params, "classifier.weight");
    struct param *b = params_find(&g.model->params, "classifier.bias");
    assert_non_null(w);
    assert_int_equal(w->shape[0], LABELS);
    first = *(float *)w->data;
    assert_true(first != 0 && fabsf(first) < 0.12f); /* 6 deviations of 0.02 */
    assert_true(*(float *)b->data == 0);
    /* With the head of the golden model it is the golden model. */
    struct st *s = st_open(GOLDEN "hf/model.safetensors", &e);
    memcpy(w->data, st_find(s, "classifier.weight")->data, (size_t)w->count * sizeof(float));
    memcpy(b->data, st_find(s, "classifier.bias")->data, (size_t)b->count * sizeof(float));
    run_logits(&g, got);
    assert_true(relative(got, tensor(&g, "logits"), g.B * LABELS) <= 1e-5);
    st_close(s);
    close_golden(&g);
    fs_rmtree(dir, &e);
}

static void another_number_of_labels_starts_a_fresh_head(void **state)
{
    (void)state;
    static const char *const dirs[] = {GOLDEN "hf", GOLDEN "timm", GOLDEN "npz",
                                       GOLDEN "../roberta"};
    static const char *const heads[] = {"classifier.weight", "head.weight", "head.weight",
                                        "classifier.out_proj.weight"};
    for (int i = 0; i < 4; i++) {
        struct err e = ERR_INIT;
        struct model *m[3];
        for (int k = 0; k < 3; k++) {
            const struct model_options o = {.labels = 7, .seed = k == 2 ? 2 : 1};
            if (!(m[k] = model_open(dirs[i], &o, &e))) fail_msg("%s", e.msg);
            OK(model_alloc(m[k], &e));
        }
        const struct param *w[3];
        for (int k = 0; k < 3; k++) w[k] = params_find(&m[k]->params, heads[i]);
        assert_int_equal(w[0]->shape[0], 7);
        assert_memory_equal(w[0]->data, w[1]->data, (size_t)w[0]->count * sizeof(float));
        assert_true(memcmp(w[0]->data, w[2]->data, (size_t)w[0]->count * sizeof(float)) != 0);
        for (int k = 0; k < 3; k++) model_free(m[k]);
    }
    const struct model_options o = {.labels = 7};
    struct err e = ERR_INIT;
    assert_null(model_open(GOLDEN "../llama", &o, &e));
    assert_string_equal(e.param, "labels");
}

/* ---- what is known without numbers ---- */

static void sizes_of_timm_come_from_the_weights_and_the_name(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct golden g;
    float got[16];
    static const char *const keys[] = {"embed_dim", "depth", "patch_size", "mlp_ratio",
                                       "in_chans"};
    char key[64];
    const char *dir = folder(GOLDEN "timm/config.json");
    copy_into(dir, GOLDEN "timm/model.safetensors", "model.safetensors");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        snprintf(key, sizeof key, "model_args.%s", keys[i]);
        set_config(dir, key, NULL);
    }
    open_golden(&g, dir, "timm", false);
    run_logits(&g, got);
    assert_true(relative(got, tensor(&g, "logits"), g.B * LABELS) <= 1e-5);
    close_golden(&g);
    fs_rmtree(dir, &e);
}

static void random_weights_need_only_the_config(void **state)
{
    (void)state;
    /* ViT-B/16, ViT-Ti/16 and DeiT-S/16 distilled, as published: 86.6, 5.7 and 22.4 million. */
    static const struct {
        const char *config;
        int64_t parameters;
    } models[] = {
        {"{\"model_type\": \"vit\", \"num_labels\": 1000}", 86567656},
        {"{\"architecture\": \"vit_tiny_patch16_224\"}", 5717416},
        {"{\"architecture\": \"vit_tiny_patch16_224.augreg_in21k\", \"num_classes\": 10}", 5526346},
        {"{\"architecture\": \"deit_small_distilled_patch16_224\"}", 22436432},
    };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char dir[] = "/tmp/graft-vit-XXXXXX", path[64];
        struct err e = ERR_INIT;
        const struct model_options o = {.random = true};
        assert_non_null(mkdtemp(dir));
        snprintf(path, sizeof path, "%s/config.json", dir);
        OK(fs_write_file(path, models[i].config, strlen(models[i].config), &e));
        struct model *m = model_open(dir, &o, &e);
        if (!m) fail_msg("%s", e.msg);
        assert_int_equal(model_parameters(m), models[i].parameters);
        model_free(m);
        fs_rmtree(dir, &e);
    }
}

static void without_labels_a_model_is_described_but_not_run(void **state)
{
    (void)state;
    static const char config[] = "{\"architecture\": \"vit_tiny_patch16_224\","
                                 " \"num_classes\": 0}";
    char dir[] = "/tmp/graft-vit-XXXXXX", path[64];
    struct err e = ERR_INIT;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/config.json", dir);
    OK(fs_write_file(path, config, strlen(config), &e));
    for (int labels = 0; labels <= 3; labels += 3) {
        const struct model_options o = {.random = true, .labels = labels};
        const struct model_shape s = {.B = 1};
        struct model_io io;
        struct model *m = model_open(dir, &o, &e);
        if (!m) fail_msg("%s", e.msg);
        assert_int_equal(m->classes, labels);
        struct tape *t = tape_new(&e);
        assert_int_equal(model_record(m, t, &s, &io, &e), labels ? 0 : -1);
        if (!labels) assert_non_null(strstr(e.msg, "how many labels"));
        tape_free(t);
        model_free(m);
    }
    fs_rmtree(dir, &e);
}

static void sites_have_the_paths_of_their_modules(void **state)
{
    (void)state;
    static const char *const hf[] = {"vit.layers.1.attention.q_proj",
                                     "vit.layers.1.attention.k_proj",
                                     "vit.layers.1.attention.v_proj",
                                     "vit.layers.1.attention.o_proj", "vit.layers.1.mlp.fc1",
                                     "vit.layers.1.mlp.fc2"};
    static const char *const timm[] = {"blocks.1.attn.qkv", "blocks.1.attn.proj",
                                       "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"};
    struct golden g;
    open_golden(&g, GOLDEN "hf", "hf", false);
    assert_int_equal(g.model->nsites, 12);
    for (int i = 0; i < 6; i++) assert_string_equal(g.model->sites[6 + i].path, hf[i]);
    assert_string_equal(g.model->sites[6].w->name,
                        "vit.encoder.layer.1.attention.attention.query.weight");
    close_golden(&g);
    open_golden(&g, GOLDEN "timm", "timm", false);
    assert_int_equal(g.model->nsites, 8);
    for (int i = 0; i < 4; i++) assert_string_equal(g.model->sites[4 + i].path, timm[i]);
    assert_int_equal(g.model->sites[4].out, 48);
    close_golden(&g);
}

/* ---- folders that are refused ---- */

static void a_config_beyond_the_builder_is_refused_by_field(void **state)
{
    (void)state;
    static const struct {
        const char *of, *key, *value, *param, *says;
    } bad[] = {
        {"hf", "hidden_act", "\"mish\"", "hidden_act", "must be"},
        {"hf", "num_attention_heads", "3", "num_attention_heads", "divide"},
        {"hf", "patch_size", "[4, 2]", "patch_size", "square"},
        {"hf", "image_size", "[12, 18]", "image_size", "multiple"},
        {"hf", "image_size", "[12, 24]", "image_size", "[1, 16, 16]"},
        {"hf", "image_size", "\"big\"", "image_size", ""},
        {"hf", "image_size", "[12]", "image_size", "two"},
        {"hf", "problem_type", "\"regression\"", "problem_type", "single_label"},
        {"hf", "head_dim", "8", "head_dim", ""},
        {"hf", "architectures", "[\"ViTForMaskedImageModeling\"]", "architectures", ""},
        {"timm", "architecture", "\"resnet50\"", "architecture", "resnet50"},
        {"timm", "architecture", "\"vit_base_patch16_reg4_gap_256\"", "architecture", "reg4"},
        {"timm", "architecture", "\"vit_base_patch16_224_miil\"", "architecture", "miil"},
        {"timm", "architecture", "\"vit_base_patch14_dinov2\"", "architecture", "dinov2"},
        {"timm", "architecture", "\"vit_base_patch16\"", "architecture", ""},
        {"timm", "architecture", "\"vit_base_patchx_224\"", "architecture", ""},
        {"timm", "model_args.init_values", "1e-5", "model_args.init_values", "is set"},
        {"timm", "model_args.reg_tokens", "4", "model_args.reg_tokens", "is set"},
        {"timm", "model_args.class_token", "false", "model_args.class_token", "is set"},
        {"timm", "model_args.fc_norm", "true", "model_args.fc_norm", "is set"},
        {"timm", "model_args.qk_norm", "true", "model_args.qk_norm", "is set"},
        {"timm", "model_args.norm_layer", "\"rmsnorm\"", "model_args.norm_layer", "is set"},
        {"timm", "model_args.global_pool", "\"avg\"", "model_args.global_pool", "token"},
        {"timm", "global_pool", "\"avg\"", "global_pool", "token"},
        {"timm", "model_args.pos_embed", "\"none\"", "model_args.pos_embed", "learn"},
        {"timm", "model_args.window", "7", "model_args.window", "not known"},
        {"timm", "model_args.img_size", "[12, 24]", "img_size", "[1, 16, 16]"},
        {"timm", "model_args.act_layer", "\"mish\"", "model_args.act_layer", "must be"},
        {"npz", "model_args.img_size", "[12, 24]", "image_size", "pos_embedding"},
        {"npz", "model_args.num_heads", "2", "", "[16, 2, 8]"},
        {"npz", "model_args.qkv_bias", "false", "", "variant"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const struct model_options o = {0};
        struct err e = ERR_INIT;
        bool npz = str_eq(bad[i].of, "npz");
        char from[64];
        snprintf(from, sizeof from, GOLDEN "%s/config.json", bad[i].of);
        const char *dir = folder(from);
        snprintf(from, sizeof from, GOLDEN "%s/%s", bad[i].of,
                 npz ? "ViT.npz" : "model.safetensors");
        copy_into(dir, from, npz ? "ViT.npz" : "model.safetensors");
        set_config(dir, bad[i].key, bad[i].value);
        struct model *m = model_open(dir, &o, &e);
        if (m) fail_msg("%s = %s is accepted", bad[i].key, bad[i].value);
        if (strcmp(e.param, bad[i].param) || !strstr(e.msg, bad[i].says))
            fail_msg("%s = %s: param '%s', '%s'", bad[i].key, bad[i].value, e.param, e.msg);
        fs_rmtree(dir, &e);
    }
}

/* How write_npz spoils the golden archive. */
enum spoil { MISSING, EXTRA, MISSHAPEN, DOUBLE, INNER };

static void put_array(struct archive *z, const char *name, const struct npz_array *a, bool flat,
                      bool wide)
{
    struct archive_entry *entry = archive_entry_new();
    char header[128], full[PARAM_NAME], shape[64] = "";
    for (int i = 0; i < a->rank && !flat; i++)
        snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%lld,",
                 (long long)a->shape[i]);
    if (flat) snprintf(shape, sizeof shape, "%lld,", (long long)a->count);
    int n = snprintf(header, sizeof header,
                     "\x93NUMPY\x01%c%c%c{'descr': '<f%d', 'fortran_order': False, 'shape': (%s)}",
                     0, 'x', 0, wide ? 8 : 4, shape);
    header[8] = (char)(n - 10);
    size_t bytes = (size_t)a->bytes << wide;
    char *zeros = calloc(1, bytes);
    snprintf(full, sizeof full, "%s.npy", name);
    archive_entry_set_pathname(entry, full);
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_size(entry, (la_int64_t)((size_t)n + bytes));
    assert_int_equal(archive_write_header(z, entry), ARCHIVE_OK);
    assert_int_equal(archive_write_data(z, header, (size_t)n), n);
    assert_int_equal(archive_write_data(z, wide ? zeros : a->data, bytes), (la_ssize_t)bytes);
    archive_entry_free(entry);
    free(zeros);
}

static void write_npz(const char *dir, enum spoil how)
{
    struct err e = ERR_INIT;
    char path[FS_PATH_MAX];
    struct npz *from = npz_open(GOLDEN "npz/ViT.npz", 1 << 20, &e);
    struct archive *z = archive_write_new();
    static const char victim[] =
        "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/kernel";
    assert_non_null(from);
    snprintf(path, sizeof path, "%s/ViT.npz", dir);
    assert_int_equal(archive_write_set_format_zip(z), ARCHIVE_OK);
    assert_int_equal(archive_write_open_filename(z, path), ARCHIVE_OK);
    for (int i = 0; i < npz_count(from); i++) {
        const struct npz_array *a = npz_at(from, i);
        bool it = str_eq(a->name, victim);
        if (it && how == MISSING) continue;
        put_array(z, a->name, a, it && how == MISSHAPEN, it && how == DOUBLE);
    }
    if (how == EXTRA) put_array(z, "Transformer/encoderblock_2/x", npz_at(from, 0), false, false);
    if (how == INNER) put_array(z, "pre_logits/bias", npz_at(from, 0), false, false);
    assert_int_equal(archive_write_close(z), ARCHIVE_OK);
    archive_write_free(z);
    npz_close(from);
}

static void a_wrong_array_of_an_npz_is_refused_by_name_and_shapes(void **state)
{
    (void)state;
    static const char *const said[][3] = {
        [MISSING] = {"encoderblock_1/MultiHeadDotProductAttention_1/out/kernel", "missing", ""},
        [EXTRA] = {"Transformer/encoderblock_2/x", "not in a ViT", ""},
        [MISSHAPEN] = {"MultiHeadDotProductAttention_1/out/kernel", "[256]", "[4, 4, 16]"},
        [DOUBLE] = {"MultiHeadDotProductAttention_1/out/kernel", "F64", "F16"},
        [INNER] = {"pre_logits/bias", "new head", ""},
    };
    for (int how = MISSING; how <= INNER; how++) {
        const struct model_options same = {0}, other = {.labels = 3};
        struct err e = ERR_INIT;
        const char *dir = folder(GOLDEN "npz/config.json");
        write_npz(dir, (enum spoil)how);
        assert_null(model_open(dir, &same, &e));
        for (int k = 0; k < 3; k++)
            if (!strstr(e.msg, said[how][k])) fail_msg("'%s' lacks '%s'", e.msg, said[how][k]);
        /* What leads to the old head alone is left out with it. */
        struct model *m = model_open(dir, &other, &e);
        assert_int_equal(m != NULL, how == INNER);
        model_free(m);
        fs_rmtree(dir, &e);
    }
}

static void every_failed_allocation_is_an_error_and_no_leak(void **state)
{
    (void)state;
    const struct model_options o = {0};
    struct err e = ERR_INIT;
    int failures = 0;
    mem_hook_libraries();
    size_t live = mem_live();
    for (int64_t n = 1;; n++) {
        fault_arm(FAULT_MEM, n, false);
        struct model *m = model_open(GOLDEN "npz", &o, &e);
        fault_arm(FAULT_MEM, 0, false);
        model_free(m);
        assert_int_equal(mem_live(), live);
        if (m) break;
        if (e.code != E_NOMEM) fail_msg("allocation %lld: %s", (long long)n, e.msg);
        failures++;
    }
    assert_true(failures > 200);
}

static void two_npz_files_are_no_model(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    const struct model_options o = {0};
    const char *dir = folder(GOLDEN "npz/config.json");
    copy_into(dir, GOLDEN "npz/ViT.npz", "a.npz");
    copy_into(dir, GOLDEN "npz/ViT.npz", "b.npz");
    assert_null(model_open(dir, &o, &e));
    assert_non_null(strstr(e.msg, "2 .npz files"));
    fs_rmtree(dir, &e);
}

static void a_folder_is_described_and_text_is_not_asked_of_it(void **state)
{
    (void)state;
    static const char *const dirs[] = {GOLDEN "hf", GOLDEN "timm", GOLDEN "npz"};
    for (int i = 0; i < 3; i++) {
        struct err e = ERR_INIT;
        double nll;
        int64_t n;
        json_t *r = engine_check_model(dirs[i], &e);
        if (!r) fail_msg("%s", e.msg);
        assert_string_equal(json_string_value(json_object_get(r, "model_type")),
                            i ? "timm" : "vit");
        assert_int_equal(json_integer_value(json_object_get(r, "parameters")), 5093);
        assert_int_equal(json_integer_value(json_object_get(r, "labels")), LABELS);
        assert_int_equal(json_integer_value(json_object_get(r, "channels")), 3);
        json_t *size = json_object_get(r, "image_size");
        assert_int_equal(json_integer_value(json_array_get(size, 0)), 12);
        assert_int_equal(json_integer_value(json_array_get(size, 1)), 20);
        assert_null(json_object_get(r, "vocab_size"));
        json_decref(r);
        assert_int_equal(engine_score(dirs[i], NULL, "a cat", 1, &nll, &n, &e), -1);
        assert_int_equal(e.code, E_UNSUPPORTED);
        assert_non_null(strstr(e.msg, "model of images"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_equal_those_of_transformers_and_timm),
        cmocka_unit_test(gradients_of_all_weights_equal_those_of_transformers_and_timm),
        cmocka_unit_test(the_same_weights_give_the_same_logits_in_every_layout),
        cmocka_unit_test(a_pass_in_bf16_is_recorded_with_gradients_in_f32),
        cmocka_unit_test(recomputing_and_threads_change_no_bit),
        cmocka_unit_test(gradients_are_the_slope_of_the_loss),
        cmocka_unit_test(a_bare_checkpoint_gets_a_fresh_head),
        cmocka_unit_test(another_number_of_labels_starts_a_fresh_head),
        cmocka_unit_test(sizes_of_timm_come_from_the_weights_and_the_name),
        cmocka_unit_test(random_weights_need_only_the_config),
        cmocka_unit_test(without_labels_a_model_is_described_but_not_run),
        cmocka_unit_test(sites_have_the_paths_of_their_modules),
        cmocka_unit_test(a_config_beyond_the_builder_is_refused_by_field),
        cmocka_unit_test(a_wrong_array_of_an_npz_is_refused_by_name_and_shapes),
        cmocka_unit_test(every_failed_allocation_is_an_error_and_no_leak),
        cmocka_unit_test(two_npz_files_are_no_model),
        cmocka_unit_test(a_folder_is_described_and_text_is_not_asked_of_it),
    };
    return cmocka_run_group_tests_name("vit", tests, NULL, NULL);
}
