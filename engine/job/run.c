#include "engine/job/run.h"

#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/job/estimate.h"
#include "engine/job/generate.h"
#include "engine/method/settings.h"

#include <math.h>
#include <string.h>

static const size_t CSV_MAX_BYTES = (size_t)1 << 31;

enum engine_exit run_exit_code(const struct err *e)
{
    switch (e->code) {
    case E_OK: return EXIT_DONE;
    case E_ARG:
    case E_RANGE:
    case E_FORMAT:
    case E_NOTFOUND:
    case E_CONFLICT:
    case E_LIMIT:
    case E_QUOTA:
    case E_AUTH:
    case E_UNSUPPORTED: return EXIT_USER;
    case E_NUMERIC: return EXIT_NUMERIC;
    case E_DEVMEM: return EXIT_DEVMEM;
    case E_CANCELLED: return EXIT_CANCELLED;
    default: return EXIT_TRANSIENT;
    }
}

static int load_data(struct run *r, struct err *e)
{
    const json_t *set = r->job.settings;
    struct dataset_options o = {.max_length = r->max_length, .eos = session_eos(&r->session)};
    double split = settings_real(set, "validation_split");
    bool chat;
    if (dataset_is_chat(r->job.training_file, &chat, e)) goto bad_training;
    /* A template that nobody knows is an error only if there are such rows. */
    if (chat && session_pick_chat(&r->session, settings_str(set, "chat_template"), &o.chat, e))
        return err_param(e, "hyperparameters.chat_template");
    r->chat = o.chat;
    if (!(r->train = dataset_open(r->job.training_file, r->session.tok, &o, e)))
        goto bad_training;
    if (r->job.validation_file) {
        r->valid = dataset_open(r->job.validation_file, r->session.tok, &o, e);
        if (!r->valid) {
            err_param(e, "validation_file");
            return err_wrap(e, "validation file");
        }
    } else if (split > 0) {
        if (dataset_count(r->train) < 2) {
            err_set(e, E_ARG, "validation_split needs at least 2 rows");
            return err_param(e, "hyperparameters.validation_split");
        }
        if (!(r->valid = dataset_split(r->train, split, r->job.seed, e))) return -1;
    }
    if (settings_bool(set, "packing"))
        return dataset_pack(r->train, r->max_length, r->job.seed, e);
    return 0;
bad_training:
    err_param(e, "training_file");
    return err_wrap(e, "training file");
}

int run_load(struct run *r, bool plan_only, struct err *e)
{
    const struct job *j = &r->job;
    const struct session_options so = {.dir = j->model_path, .random = j->random,
                                       .seed = j->seed, .threads = plan_only ? 0 : j->threads,
                                       .device = j->device, .bf16 = j->bf16};
    struct adaptation *a = &r->session.adapt;
    struct estimate_fit fit;
    buf_init(&r->state.csv, CSV_MAX_BYTES);
    r->state.train_loss = r->state.valid_loss = r->state.valid_accuracy = NAN;
    r->state.before_loss = r->state.before_accuracy = NAN;
    run_progress(r, "loading");
    if (!(r->state.samples = json_array())) return err_set(e, E_NOMEM, "out of memory");
    if (session_open(&r->session, &so, e) ||
        model_expect(r->session.model, &task_causal_lm, e))
        return -1;
    if (session_pick_length(&r->session, settings_int(j->settings, "max_length"), &r->max_length,
                            e))
        return err_param(e, "hyperparameters.max_length");
    *a = (struct adaptation){.method = j->method, .model = r->session.model,
                             .settings = j->settings, .seed = j->seed};
    if (a->method->attach(a, e)) return err_wrap(e, "method %s", j->method->name);
    run_progress(r, "tokenizing");
    if (load_data(r, e)) return -1;
    schedule_init(&r->schedule, j->settings, dataset_count(r->train), j->seed);
    r->session.graphs.optimiser = (struct graph_optimiser){
        .beta1 = settings_real(j->settings, "adam_beta1"),
        .beta2 = settings_real(j->settings, "adam_beta2"),
        .eps = settings_real(j->settings, "adam_epsilon"),
        .max_grad_norm = (float)settings_real(j->settings, "max_grad_norm"),
    };
    if (plan_only) return 0;
    if (estimate_fit(r, &fit, e) || estimate_refuse(&fit, e)) return -1;
    r->peak_bytes = fit.e.peak;
    if (model_alloc(r->session.model, e)) return -1;
    return a->method->init(a, e);
}

void run_close(struct run *r)
{
    dataset_free(r->train);
    dataset_free(r->valid);
    session_close(&r->session);
    buf_clear(&r->state.csv);
    json_decref(r->state.samples);
    job_clear(&r->job);
}

void run_progress(struct run *r, const char *phase)
{
    struct engine_progress *p = &r->told;
    if (!p->phase) p->train_loss = p->learning_rate = p->grad_norm = p->eta_s = NAN;
    p->phase = phase;
    p->step = r->state.step;
    p->total_steps = r->schedule.total;
    p->tokens = r->state.tokens;
    if (r->schedule.total) p->epoch = schedule_epoch(&r->schedule, r->state.step);
    if (r->journal.hooks) journal_progress(&r->journal, p);
}

int run_samples(struct run *r, const char *key, struct err *e)
{
    const json_t *prompts = json_object_get(r->job.settings, "samples");
    const struct generate_options o = {
        .max_tokens = settings_int(r->job.settings, "sample_max_tokens"), .top_p = 1};
    json_t *prompt;
    size_t i;
    json_array_foreach(prompts, i, prompt) {
        json_t *row = json_array_get(r->state.samples, i);
        if (!row) {
            row = jx_pack(e, "{s:O}", "prompt", prompt);
            if (!row || json_array_append_new(r->state.samples, row)) return -1;
        }
        char *text = generate_text(&r->session, r->chat, json_string_value(prompt), &o, e);
        if (!text) return err_wrap(e, "sample %zu", i + 1);
        int rc = jx_set(row, key, jx_pack(e, "s", text), e);
        if (!rc)
            rc = journal_event(&r->journal, "info", "message", jx_pack(e, "{s:O, s:s, s:s}",
                               "prompt", prompt, "when", key, "answer", text), e,
                               "Sample %zu %s training: %s", i + 1, key, text);
        mem_free(text);
        if (rc) return -1;
    }
    return 0;
}
