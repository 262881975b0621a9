#include "engine/job/session.h"

#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"

#include <string.h>

enum { DEFAULT_MAX_LENGTH = 1024 };

static int open_tokenizer(struct session *s, const char *dir, struct err *e)
{
    char path[FS_PATH_MAX];
    size_t before = mem_live();
    if (fs_join(path, dir, "tokenizer.json", e) || !(s->tok = tok_open(path, e))) return -1;
    s->tok_bytes = (int64_t)(mem_live() - before);
    if (tok_size(s->tok) <= s->model->cfg.vocab_size) return 0;
    return err_set(e, E_FORMAT, "tokenizer.json has ids up to %d, but the model knows %lld tokens",
                   tok_size(s->tok) - 1, (long long)s->model->cfg.vocab_size);
}

static struct exec *open_exec(const struct session_options *o, struct err *e)
{
    struct exec *x = o->device == SESSION_CPU ? NULL : exec_new_cuda(o->threads, e);
    if (x || o->device == SESSION_CUDA) return x;
    if (o->device == SESSION_AUTO && e->code != E_DEVICE) return NULL;
    err_clear(e); /* no GPU */
    return exec_new_cpu(o->threads, e);
}

static int check_compute(const struct session *s, struct err *e)
{
    if (!s->exec || !s->graphs.compute) return 0;
    if (s->exec->device->dtypes >> DT_BF16 & 1) return 0;
    err_set(e, E_UNSUPPORTED, "precision bf16 needs a GPU; this job runs on the %s",
            s->exec->device->name);
    return err_param(e, "precision");
}

int session_open(struct session *s, const struct session_options *o, struct err *e)
{
    const struct model_options mo = {.random = o->random, .seed = o->seed};
    *s = (struct session){0};
    if (!(s->model = model_open(o->dir, &mo, e))) goto fail;
    if (s->model->image[0] && !o->images) {
        err_set(e, E_UNSUPPORTED, "%s is a model of images (%s); this needs one of text", o->dir,
                s->model->cfg.model_type);
        goto fail;
    }
    if (!s->model->image[0] && open_tokenizer(s, o->dir, e)) goto fail;
    if (o->threads && !(s->exec = open_exec(o, e))) goto fail;
    if (s->exec) s->exec->seed = o->seed;
    graphs_init(&s->graphs, s->model, s->exec);
    if (!s->exec && o->device == SESSION_CUDA) s->graphs.ws = cuda_ws;
    s->graphs.compute = o->bf16 ? DT_BF16 : DT_F32;
    if (check_compute(s, e)) goto fail;
    return 0;
fail:
    session_close(s);
    return -1;
}

int session_ready(struct session *s, const char *adapter_dir, struct err *e)
{
    return adapter_dir ? method_load_adapter(&s->adapt, s->model, adapter_dir, e)
                       : model_alloc(s->model, e);
}

void session_close(struct session *s)
{
    exec_free(s->exec);
    graphs_clear(&s->graphs);
    method_end(&s->adapt);
    tok_free(s->tok);
    model_free(s->model);
    *s = (struct session){0};
}

int session_loss(struct session *s, const struct batch *b, double *nll, double *hits,
                 struct err *e)
{
    const struct graph_key k = {.kind = GRAPH_LOSS, .B = b->B, .T = b->T};
    float sum, right;
    struct graph *g = graphs_bind(&s->graphs, &k, e);
    if (!g || graph_feed(s->exec, g, b, 1.0f, e) || exec_run(s->exec, PHASE_STEP, 0, e) ||
        exec_read(s->exec, g->io.loss, &sum, sizeof sum, e) ||
        exec_read(s->exec, g->io.hits, &right, sizeof right, e))
        return -1;
    *nll = sum;
    *hits = right;
    return 0;
}

/* A batch of one row in which every token is predicted from those before it. */
static int one_row(struct batch *b, const int32_t *ids, int64_t n, struct err *e)
{
    uint8_t *trained = mem_array(n, 1, e);
    if (!trained) return -1;
    memset(trained, 1, (size_t)n);
    const struct example x = {.ids = ids, .trained = trained, .n = n};
    int rc = batch_one(b, &x, e);
    mem_free(trained);
    return rc;
}

float *session_logits(struct session *s, const int32_t *ids, int64_t n, struct err *e)
{
    struct batch b = {0};
    int32_t *idx = mem_array(n, sizeof *idx, e);
    float *out = mem_array(n * s->model->cfg.vocab_size, sizeof *out, e);
    size_t bytes = (size_t)(n * s->model->cfg.vocab_size) * sizeof *out;
    struct graph_key k = {.kind = GRAPH_LOGITS, .B = 1, .rows = n};
    struct graph *g;
    int rc = -1;
    if (!idx || !out || one_row(&b, ids, n, e)) goto out;
    k.T = b.T;
    if (!(g = graphs_bind(&s->graphs, &k, e))) goto out;
    for (int64_t i = 0; i < n; i++) idx[i] = (int32_t)i;
    if (graph_feed_tokens(s->exec, g, b.ids, b.pos, b.range, e) ||
        exec_write(s->exec, g->io.idx, idx, (size_t)n * sizeof *idx, e) ||
        exec_run(s->exec, PHASE_STEP, 0, e) || exec_read(s->exec, g->io.logits, out, bytes, e))
        goto out;
    rc = 0;
out:
    batch_clear(&b);
    mem_free(idx);
    if (!rc) return out;
    mem_free(out);
    return NULL;
}

int session_score(struct session *s, const char *text, double *nll, int64_t *tokens,
                  struct err *e)
{
    int64_t window = s->model->max_length, count = 0;
    double sum = 0, one, hits;
    struct ids ids = {0};
    struct batch b = {0};
    int rc = -1;
    if (tok_encode(s->tok, text, strlen(text), true, &ids, e)) goto out;
    if (ids.n < 2) {
        err_set(e, E_ARG, "the text has %lld tokens; at least 2 are needed", (long long)ids.n);
        err_param(e, "text");
        goto out;
    }
    for (int64_t from = 0; from < ids.n; from += window) {
        int64_t n = ids.n - from < window ? ids.n - from : window;
        if (n < 2) break; /* a last token alone predicts nothing */
        if (one_row(&b, ids.v + from, n, e) || session_loss(s, &b, &one, &hits, e)) goto out;
        sum += one;
        count += n - 1;
    }
    *nll = sum / (double)count;
    *tokens = count;
    rc = 0;
out:
    batch_clear(&b);
    ids_clear(&ids);
    return rc;
}

int session_pick_length(const struct session *s, int64_t asked, int64_t *length, struct err *e)
{
    int64_t most = s->model->max_length;
    *length = asked ? asked : most < DEFAULT_MAX_LENGTH ? most : DEFAULT_MAX_LENGTH;
    if (*length >= 2 && *length <= most) return 0;
    return err_set(e, E_RANGE, "max_length is %lld; this model takes 2 to %lld tokens",
                   (long long)*length, (long long)most);
}

int session_pick_chat(const struct session *s, const char *name, enum chat_template *chat,
                      struct err *e)
{
    *chat = CHAT_NONE;
    if (str_eq(name, "none")) return 0;
    if (str_eq(name, "auto")) return chat_detect(s->model->dir, chat, e);
    return chat_parse(name, chat) ? 0 : err_set(e, E_ARG, "no chat template %.40s", name);
}

int32_t session_eos(const struct session *s)
{
    return s->model->cfg.neos ? (int32_t)s->model->cfg.eos[0] : -1;
}

bool session_ends(const struct session *s, int32_t id)
{
    for (int i = 0; i < s->model->cfg.neos; i++)
        if (s->model->cfg.eos[i] == id) return true;
    return false;
}
