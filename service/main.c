/* main.c: graft SUBCOMMAND ...; the only file that may end the process. */
#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/engine.h"
#include "handlers/handlers.h"
#include "service/cli.h"
#include "service/config.h"
#include "service/http.h"
#include "service/log.h"
#include "service/service.h"
#include "service/validate.h"
#include "service/worker.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { DRAIN_MS = 20000, ARGS_MAX = 256 };

static void usage(FILE *to)
{
    fprintf(to, "graft adapts pre-trained models over HTTP.\n\n"
                "usage: graft SUBCOMMAND ...\n\n"
                "  serve      the server; settings below\n"
                "  run        one job described by a file, without a server\n"
                "  plan       what a job would take: memory, operations, time, disk\n"
                "  methods    the methods and their settings\n"
                "  check      whether a data set, weights file or model folder can be read\n"
                "  score      mean negative log-likelihood of a text\n"
                "  generate   a continuation of a prompt\n"
                "  worker     one attempt of a job; started by the server\n"
                "  version    the version\n"
                "  help       this text\n\n"
                "graft serve [--listen ADDRESS:PORT] [--data DIR] [--model-root DIR]... and:\n");
    config_help(to);
}

/* The engine answers one call at a time; what opens files of users runs in another process. */
static pthread_mutex_t engine_lock = PTHREAD_MUTEX_INITIALIZER;

static json_t *locked_methods(struct err *e)
{
    pthread_mutex_lock(&engine_lock);
    json_t *v = engine_methods(e);
    pthread_mutex_unlock(&engine_lock);
    return v;
}

/* The engine names a setting as in job.json, "hyperparameters.r"; the service, which knows where in
 * the request the settings stood, wants "r". */
static json_t *locked_settings(const char *method, const json_t *settings, struct err *e)
{
    static const char prefix[] = "hyperparameters.";
    pthread_mutex_lock(&engine_lock);
    json_t *v = engine_settings(method, settings, e);
    pthread_mutex_unlock(&engine_lock);
    if (!v && str_starts(e->param, prefix))
        memmove(e->param, e->param + sizeof prefix - 1, strlen(e->param) - sizeof prefix + 2);
    return v;
}

static const struct engine_calls engine = {locked_methods, locked_settings, validate_model,
                                           validate_file, validate_plan, validate_preview};

/* ---- graft serve ---- */

/* Short forms of common settings become the long ones of config.h. */
struct args {
    char *v[ARGS_MAX];
    int n;
    char address[64], roots[FS_PATH_MAX];
};

static int add_arg(struct args *a, const char *key, char *value, struct err *e)
{
    if (a->n + 2 > ARGS_MAX) return err_set(e, E_ARG, "too many arguments");
    a->v[a->n++] = (char *)(uintptr_t)key;
    a->v[a->n++] = value;
    return 0;
}

static int add_listen(struct args *a, char *value, struct err *e)
{
    char *colon = strrchr(value, ':');
    size_t n = colon ? (size_t)(colon - value) : 0;
    bool v6 = n > 2 && value[0] == '[' && colon[-1] == ']';
    if (!colon || n - (v6 ? 2 : 0) >= sizeof a->address)
        return err_set(e, E_ARG, "--listen needs ADDRESS:PORT");
    snprintf(a->address, sizeof a->address, "%.*s", (int)(v6 ? n - 2 : n), value + v6);
    if (n && add_arg(a, "--listen-address", a->address, e)) return -1;
    return add_arg(a, "--listen-port", colon + 1, e);
}

static int expand(struct args *a, int argc, char **argv, struct err *e)
{
    for (int i = 0; i < argc; i++) {
        bool listen = str_eq(argv[i], "--listen"), data = str_eq(argv[i], "--data");
        bool root = str_eq(argv[i], "--model-root");
        if (!listen && !data && !root) {
            if (a->n == ARGS_MAX) return err_set(e, E_ARG, "too many arguments");
            a->v[a->n++] = argv[i];
            continue;
        }
        char *value = argv[++i];
        if (i == argc) return err_set(e, E_ARG, "%s needs a value", argv[i - 1]);
        if (listen && add_listen(a, value, e)) return -1;
        if (data && add_arg(a, "--data-dir", value, e)) return -1;
        size_t used = strlen(a->roots);
        if (root && used + strlen(value) + 2 > sizeof a->roots)
            return err_set(e, E_ARG, "the --model-root folders are too long together");
        if (root) snprintf(a->roots + used, sizeof a->roots - used, "%s%s", used ? ":" : "", value);
    }
    return a->roots[0] ? add_arg(a, "--model-roots", a->roots, e) : 0;
}

static int load_config(struct config *c, int argc, char **argv, struct err *e)
{
    struct args a = {.n = 0};
    enum log_level level;
    if (expand(&a, argc, argv, e) || config_load(c, a.n, a.v, e)) return -1;
    if (log_parse_level(c->log_level, &level, e)) return -1;
    log_set_level(level);
    if (auth_is_loopback(c->listen_address) || c->api_key[0] || c->allow_public) return 0;
    err_set(e, E_ARG, "listening on %s lets everybody in who can reach it: set an api_key, or "
            "--allow-public 1 if that is meant", c->listen_address);
    return err_param(e, "api_key");
}

static void http_options(struct http_options *o, const struct config *c, struct service *s)
{
    http_options_default(o);
    o->threads = (int)c->http_threads;
    o->connections = (int)c->connections_max;
    o->per_address = (int)c->connections_per_ip;
    o->json_max = c->json_max_bytes;
    o->file_max = c->file_max_bytes;
    o->limits.header_ms = c->header_timeout_s * 1000;
    o->limits.idle_ms = c->request_timeout_s * 1000;
    o->auth = (struct auth){c->api_key, c->allowed_hosts};
    o->routes = handlers_routes;
    o->nroutes = handlers_nroutes;
    o->service = s;
}

/* As many descriptors as the system lets us have: connections, files and workers need them. */
static void raise_descriptors(void)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l)) return;
    l.rlim_cur = l.rlim_max;
    setrlimit(RLIMIT_NOFILE, &l);
}

static int serve_until_signal(const struct config *c, struct service *s, const sigset_t *stop,
                              struct err *e)
{
    struct http_options o;
    int sig = 0, fd = http_listen(c->listen_address, (int)c->listen_port, e);
    if (fd < 0) return -1;
    if (service_start(s, e)) {
        fs_close(fd);
        return -1;
    }
    http_options(&o, c, s);
    o.listener = fd;
    struct http *h = http_start(&o, e);
    if (!h) return -1;
    log_event(LOG_INFO, NULL, "listening",
              LOG_FIELDS(LOG_S("address", c->listen_address), LOG_N("port", http_port(h)),
                         LOG_S("version", GRAFT_VERSION)));
    while (sigwait(stop, &sig)) continue;
    log_event(LOG_INFO, NULL, "stopping", LOG_FIELDS(LOG_N("signal", sig)));
    if (!http_stop(h, DRAIN_MS, e)) return 0;
    /* A handler still runs and uses the service: leave it to the crash safety of the store. */
    log_err(LOG_WARN, NULL, "stopped in a hurry", e, NULL);
    _exit(1);
}

static int serve(int argc, char **argv)
{
    struct err e = ERR_INIT;
    struct config c;
    struct service *s = NULL;
    sigset_t stop;
    int rc = -1;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    pthread_sigmask(SIG_BLOCK, &stop, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    raise_descriptors();
    if (!load_config(&c, argc, argv, &e)) s = service_open(&c, &engine, &e);
    if (s) rc = serve_until_signal(&c, s, &stop, &e);
    if (rc) {
        log_err(LOG_ERROR, NULL, "graft serve failed", &e, NULL);
        fprintf(stderr, "graft serve: %s\n", e.msg);
    }
    service_close(s);
    return rc ? 1 : 0;
}

static int worker(int argc, char **argv)
{
    if (argc > 1 && str_eq(argv[1], "--validate")) return validate_main(argc, argv);
    return worker_main(argc, argv, engine_run);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (fault_from_env()) return 2;
    mem_hook_libraries();
    if (str_eq(what, "serve") && argc > 2 && str_eq(argv[2], "--help")) what = "help";
    if (str_eq(what, "serve")) return serve(argc - 2, argv + 2);
    if (str_eq(what, "worker")) return worker(argc - 1, argv + 1);
    if (cli_knows(what)) return cli_main(what, argc - 1, argv + 1);
    if (str_eq(what, "version") || str_eq(what, "--version")) {
        printf("graft %s\n", GRAFT_VERSION);
        return 0;
    }
    bool help = str_eq(what, "help") || str_eq(what, "--help");
    usage(help ? stdout : stderr);
    return help ? 0 : 2;
}
