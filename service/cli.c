#include "service/cli.h"

#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/engine.h"
#include "service/cli_job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXIT_USAGE = 2, TEXT_MAX_BYTES = 64 << 20, THREADS_MAX = 1024 };

/* Arguments of one call: the values of the options it knows, and the rest. */
struct args {
    const char *dir, *threads, *adapter, *text, *prompt, *max_tokens, *temperature, *top_p, *seed;
    bool json;
    const char *rest[2];
    int nrest;
};

struct command {
    const char *name, *usage;
    const char *options; /* the ones it takes, each followed by a blank */
    int least, most;     /* other arguments */
    int (*run)(const struct args *a, struct err *e); /* an exit code */
};

/* ---- numbers ---- */

static int whole(const char *text, const char *option, int64_t lo, int64_t hi, int64_t *out,
                 struct err *e)
{
    int64_t v;
    if (!text) return 0;
    if (!str_int64(text, &v) || v < lo || v > hi)
        return err_set(e, E_ARG, "--%s must be a whole number from %lld to %lld", option,
                       (long long)lo, (long long)hi);
    *out = v;
    return 0;
}

static int decimal(const char *text, const char *option, double lo, double hi, double *out,
                   struct err *e)
{
    char *end;
    if (!text) return 0;
    double v = strtod(text, &end);
    if (end == text || *end || !(v >= lo && v <= hi))
        return err_set(e, E_ARG, "--%s must be a number from %g to %g", option, lo, hi);
    *out = v;
    return 0;
}

static int threads_of(const struct args *a, int *out, struct err *e)
{
    int64_t n = *out;
    if (whole(a->threads, "threads", 0, THREADS_MAX, &n, e)) return -1;
    *out = (int)n;
    return 0;
}

/* ---- run and plan ---- */

static int run(const struct args *a, struct err *e)
{
    int threads = -1;
    if (threads_of(a, &threads, e)) return EXIT_USAGE;
    return cli_job_run(a->rest[0], a->dir, threads, e);
}

static int print_json(const json_t *v, struct err *e)
{
    char *text = jx_dump_pretty(v, e);
    if (!text) return EXIT_USER;
    printf("%s\n", text);
    mem_free(text);
    return EXIT_DONE;
}

static int plan(const struct args *a, struct err *e)
{
    return cli_job_plan(a->rest[0], a->json, e);
}

/* ---- methods ---- */

static void print_method(const json_t *m)
{
    const json_t *properties = json_object_get(json_object_get(m, "schema"), "properties");
    const char *key, *paper = json_string_value(json_object_get(m, "paper"));
    json_t *v;
    printf("%s - %s%s%s\n", json_string_value(json_object_get(m, "name")),
           json_string_value(json_object_get(m, "title")), paper && *paper ? ", " : "",
           paper ? paper : "");
    json_object_foreach((json_t *)properties, key, v) {
        const json_t *d = json_object_get(v, "default");
        char value[48] = "[]";
        if (json_is_string(d)) snprintf(value, sizeof value, "%s", json_string_value(d));
        else if (json_is_integer(d))
            snprintf(value, sizeof value, "%lld", (long long)json_integer_value(d));
        else if (json_is_real(d)) snprintf(value, sizeof value, "%g", json_real_value(d));
        printf("  %-28s %-12s %s\n", key, value,
               json_string_value(json_object_get(v, "description")));
    }
}

static int methods(const struct args *a, struct err *e)
{
    json_t *all = engine_methods(e), *m;
    size_t i;
    int code = EXIT_DONE;
    if (!all) return EXIT_USER;
    if (a->json) code = print_json(all, e);
    else
        json_array_foreach(all, i, m) {
            if (i) printf("\n");
            print_method(m);
        }
    json_decref(all);
    return code;
}

/* ---- check ---- */

static const char *kind_of(const char *path)
{
    if (str_ends(path, ".safetensors")) return "safetensors";
    if (str_ends(path, "tokenizer.json")) return "tokenizer";
    return str_ends(path, ".json") ? "json" : "jsonl";
}

static int check_file(const char *path, bool json, struct err *e)
{
    json_t *r = engine_check_file(path, kind_of(path), e), *p;
    size_t i;
    if (!r) return EXIT_USER;
    bool ok = json_is_true(json_object_get(r, "ok"));
    if (json) {
        print_json(r, e);
    } else {
        json_array_foreach(json_object_get(r, "problems"), i, p) {
            const json_t *line = json_object_get(p, "line"), *column = json_object_get(p, "column");
            const char *field = json_string_value(json_object_get(p, "field"));
            printf("%s", path);
            if (json_is_integer(line)) printf(":%lld", (long long)json_integer_value(line));
            if (json_is_integer(column)) printf(":%lld", (long long)json_integer_value(column));
            printf(": %s%s%s\n", field && *field ? field : "", field && *field ? ": " : "",
                   json_string_value(json_object_get(p, "reason")));
        }
        int64_t more = json_integer_value(json_object_get(r, "more"));
        if (more) printf("%s: and %lld more\n", path, (long long)more);
        if (ok && json_integer_value(json_object_get(r, "rows")))
            printf("%s: %lld rows of %s, no problem\n", path,
                   (long long)json_integer_value(json_object_get(r, "rows")),
                   json_string_value(json_object_get(r, "format")));
        else if (ok) printf("%s: no problem\n", path);
    }
    json_decref(r);
    return ok ? EXIT_DONE : EXIT_USER;
}

static int check(const struct args *a, struct err *e)
{
    if (!fs_is_dir(a->rest[0])) return check_file(a->rest[0], a->json, e);
    json_t *r = engine_check_model(a->rest[0], e);
    int code = r ? print_json(r, e) : EXIT_USER;
    json_decref(r);
    return code;
}

/* ---- score and generate ---- */

static int score(const struct args *a, struct err *e)
{
    int threads = 0;
    double nll;
    int64_t tokens;
    struct buf b;
    const char *text = a->text;
    buf_init(&b, TEXT_MAX_BYTES);
    if (!text == (a->nrest < 2)) {
        err_set(e, E_ARG, "give either --text or a file");
        return EXIT_USAGE;
    }
    if (threads_of(a, &threads, e)) return EXIT_USAGE;
    int rc = text ? 0 : fs_read_file(a->rest[1], &b, e);
    if (!rc) rc = engine_score(a->rest[0], a->adapter, text ? text : buf_str(&b), threads, &nll,
                               &tokens, e);
    buf_clear(&b);
    if (rc) return EXIT_USER;
    printf("%.7f nats per token over %lld tokens\n", nll, (long long)tokens);
    return EXIT_DONE;
}

static int generate(const struct args *a, struct err *e)
{
    struct engine_generate g = {.model_dir = a->rest[0], .adapter_dir = a->adapter,
                                .prompt = a->prompt, .top_p = 1};
    int64_t most = 128, seed = 0;
    if (!a->prompt) {
        err_set(e, E_ARG, "--prompt is missing");
        return EXIT_USAGE;
    }
    if (whole(a->max_tokens, "max-tokens", 1, 1 << 20, &most, e) ||
        whole(a->seed, "seed", 0, INT64_MAX, &seed, e) ||
        decimal(a->temperature, "temperature", 0, 100, &g.temperature, e) ||
        decimal(a->top_p, "top-p", 0, 1, &g.top_p, e) || threads_of(a, &g.threads, e))
        return EXIT_USAGE;
    g.max_tokens = (int)most;
    g.seed = (uint64_t)seed;
    char *text = engine_generate(&g, e);
    if (!text) return EXIT_USER;
    printf("%s\n", text);
    mem_free(text);
    return EXIT_DONE;
}

/* ---- the table ---- */

static const struct command commands[] = {
    {"run", "JOB.json [--dir DIR] [--threads N]", "dir threads ", 1, 1, run},
    {"plan", "JOB.json [--json]", "json ", 1, 1, plan},
    {"methods", "[--json]", "json ", 0, 0, methods},
    {"check", "PATH [--json]   a model folder, or a data, weights or tokenizer file", "json ", 1,
     1, check},
    {"score", "MODEL (--text TEXT | FILE) [--adapter DIR] [--threads N]",
     "adapter text threads ", 1, 2, score},
    {"generate",
     "MODEL --prompt TEXT [--adapter DIR] [--max-tokens N] [--temperature X] [--top-p X]"
     " [--seed N] [--threads N]",
     "prompt adapter max-tokens temperature top-p seed threads ", 1, 1, generate},
};

static const struct command *find(const char *name)
{
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (str_eq(commands[i].name, name)) return &commands[i];
    return NULL;
}

bool cli_knows(const char *subcommand)
{
    return find(subcommand) != NULL;
}

static bool takes(const struct command *c, const char *option)
{
    size_t n = strlen(option);
    for (const char *at = c->options; n && (at = strstr(at, option)); at += n)
        if ((at == c->options || at[-1] == ' ') && at[n] == ' ') return true;
    return false;
}

static const char **slot(struct args *a, const char *option)
{
    const struct {
        const char *name;
        const char **value;
    } slots[] = {
        {"dir", &a->dir}, {"threads", &a->threads}, {"adapter", &a->adapter}, {"text", &a->text},
        {"prompt", &a->prompt}, {"max-tokens", &a->max_tokens},
        {"temperature", &a->temperature}, {"top-p", &a->top_p}, {"seed", &a->seed},
    };
    for (size_t i = 0; i < sizeof slots / sizeof *slots; i++)
        if (str_eq(slots[i].name, option)) return slots[i].value;
    return NULL;
}

static int parse(const struct command *c, int argc, char **argv, struct args *a, struct err *e)
{
    for (int i = 1; i < argc; i++) {
        if (!str_starts(argv[i], "--")) {
            if (a->nrest == c->most) return err_set(e, E_ARG, "what is %.80s for?", argv[i]);
            a->rest[a->nrest++] = argv[i];
            continue;
        }
        if (!takes(c, argv[i] + 2)) return err_set(e, E_ARG, "unknown option %.80s", argv[i]);
        if (str_eq(argv[i], "--json")) {
            a->json = true;
            continue;
        }
        if (i + 1 == argc) return err_set(e, E_ARG, "%s needs a value", argv[i]);
        *slot(a, argv[i] + 2) = argv[i + 1];
        i++;
    }
    return a->nrest < c->least ? err_set(e, E_ARG, "an argument is missing") : 0;
}

int cli_main(const char *subcommand, int argc, char **argv)
{
    const struct command *c = find(subcommand);
    struct args a = {0};
    struct err e = ERR_INIT;
    int code;
    if (argc > 1 && str_eq(argv[1], "--help")) {
        printf("usage: graft %s %s\n", c->name, c->usage);
        return EXIT_DONE;
    }
    code = parse(c, argc, argv, &a, &e) ? EXIT_USAGE : c->run(&a, &e);
    if (e.code) {
        fprintf(stderr, "graft %s: %s%s%s%s\n", c->name, e.msg, e.param[0] ? " (" : "", e.param,
                e.param[0] ? ")" : "");
        if (code == EXIT_USAGE) fprintf(stderr, "usage: graft %s %s\n", c->name, c->usage);
    }
    if (fflush(stdout)) return EXIT_TRANSIENT;
    return code;
}
