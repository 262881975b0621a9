#include "service/config.h"

#include "engine/base/buf.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/log.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

struct key {
    const char *name;
    size_t offset, text_cap;   /* text_cap 0: a number */
    const char *text;          /* default */
    int64_t number, lo, hi;    /* default and range */
    const char *help;
};

#define TEXT(field, value, help) \
    {#field, offsetof(struct config, field), sizeof ((struct config *)0)->field, value, 0, 0, 0, \
     help}
#define NUMBER(field, value, lo, hi, help) \
    {#field, offsetof(struct config, field), 0, NULL, value, lo, hi, help}

static const struct key keys[] = {
    TEXT(listen_address, "127.0.0.1", "address to listen on; 0.0.0.0 or :: for all"),
    NUMBER(listen_port, 8080, 0, 65535, "TCP port; 0: any free one"),
    NUMBER(connections_max, 1000, 1, 100000, "open connections, all clients together"),
    NUMBER(connections_per_ip, 100, 1, 100000, "open connections of one address"),
    NUMBER(http_threads, 4, 1, 256, "threads that answer requests"),
    NUMBER(request_timeout_s, 30, 1, 3600, "seconds without a byte before a connection closes"),
    NUMBER(header_timeout_s, 10, 1, 3600, "seconds for the headers of a request"),
    TEXT(api_key, "", "bearer token that every request must carry; empty: no authentication"),
    NUMBER(allow_public, 0, 0, 1, "1: listen beyond this machine even without an api_key"),
    TEXT(allowed_hosts, "", "further names of this server (','-separated) in Host headers"),
    TEXT(data_dir, "./graft-data", "folder of the database, files, models and jobs"),
    TEXT(model_roots, "", "folders (separated by ':') below which base models may be registered"),
    NUMBER(file_max_bytes, 512ll << 20, 1 << 10, 1ll << 40, "largest uploaded file"),
    NUMBER(json_max_bytes, 1 << 20, 1 << 10, 64 << 20, "largest JSON request body"),
    NUMBER(jobs_max, 1, 1, 1024, "jobs that run at the same time"),
    NUMBER(job_threads, 0, 0, 1024, "threads of one job; 0: one per core"),
    NUMBER(job_attempts, 3, 1, 100, "attempts a job gets when it crashes"),
    NUMBER(poll_ms, 500, 5, 10000, "how often running jobs are asked for progress"),
    NUMBER(lease_s, 60, 1, 3600, "silence after which a running job counts as lost"),
    NUMBER(retry_ms, 10000, 1, 900000, "wait before the first retry; grows fourfold to 15 min"),
    TEXT(worker_path, "", "program that runs jobs; empty: this one"),
    TEXT(log_level, "info", "debug, info, warn, error or off"),
};
enum { NKEYS = sizeof keys / sizeof *keys };

static char *text_of(struct config *c, const struct key *k)
{
    return (char *)c + k->offset;
}

static int64_t *number_of(struct config *c, const struct key *k)
{
    return (int64_t *)(void *)((char *)c + k->offset);
}

void config_default(struct config *c)
{
    memset(c, 0, sizeof *c);
    for (int i = 0; i < NKEYS; i++) {
        if (keys[i].text_cap)
            str_copy(text_of(c, &keys[i]), keys[i].text_cap, keys[i].text);
        else
            *number_of(c, &keys[i]) = keys[i].number;
    }
}

/* '-' and '_' are the same; n bytes of name. */
static const struct key *find(const char *name, size_t n)
{
    for (int i = 0; i < NKEYS; i++) {
        const char *k = keys[i].name;
        size_t j = 0;
        while (j < n && k[j] && (k[j] == name[j] || (k[j] == '_' && name[j] == '-'))) j++;
        if (j == n && !k[j]) return &keys[i];
    }
    return NULL;
}

static int assign(struct config *c, const struct key *k, const char *value, const char *source,
                  struct err *e)
{
    int64_t n;
    enum log_level level;
    if (k->text_cap) {
        if (strlen(value) >= k->text_cap)
            return err_set(e, E_RANGE, "%s: %s is longer than %zu bytes", source, k->name,
                           k->text_cap - 1);
        if (str_eq(k->name, "log_level") && log_parse_level(value, &level, e))
            return err_wrap(e, "%s", source);
        str_copy(text_of(c, k), k->text_cap, value);
        return 0;
    }
    if (!str_int64(value, &n))
        return err_set(e, E_ARG, "%s: %s must be a whole number, not '%.40s'", source, k->name,
                       value);
    if (n < k->lo || n > k->hi)
        return err_set(e, E_RANGE, "%s: %s is %lld; it must be between %lld and %lld", source,
                       k->name, (long long)n, (long long)k->lo, (long long)k->hi);
    *number_of(c, k) = n;
    return 0;
}

int config_set(struct config *c, const char *key, const char *value, const char *source,
               struct err *e)
{
    const struct key *k = find(key, strlen(key));
    if (!k) {
        err_set(e, E_ARG, "%s: there is no setting '%.60s'", source, key);
        return err_param(e, "%s", key);
    }
    return assign(c, k, value, source, e) ? err_param(e, "%s", k->name) : 0;
}

static char *trim(char *s)
{
    while (*s == ' ' || *s == '\t') s++;
    size_t n = strlen(s);
    while (n && (s[n - 1] == ' ' || s[n - 1] == '\t' || s[n - 1] == '\r')) s[--n] = 0;
    return s;
}

static int load_file(struct config *c, const char *path, struct err *e)
{
    struct buf b;
    int rc = -1, line = 0;
    buf_init(&b, 1 << 20);
    if (fs_read_file(path, &b, e)) goto out;
    for (char *p = b.data, *next; p && *p; p = next) {
        char source[FS_PATH_MAX + 32];
        line++;
        next = strchr(p, '\n');
        if (next) *next++ = 0;
        snprintf(source, sizeof source, "%s line %d", path, line);
        p = trim(p);
        if (*p == 0 || *p == '#') continue;
        char *eq = strchr(p, '=');
        if (!eq) {
            err_set(e, E_FORMAT, "%s: expected `key = value`", source);
            goto out;
        }
        *eq = 0;
        if (config_set(c, trim(p), trim(eq + 1), source, e)) goto out;
    }
    rc = 0;
out:
    buf_clear(&b);
    return rc;
}

static int load_environment(struct config *c, struct err *e)
{
    for (int i = 0; i < NKEYS; i++) {
        char name[64] = "GRAFT_";
        size_t n = strlen(name);
        for (const char *k = keys[i].name; *k && n < sizeof name - 1; k++)
            name[n++] = (char)(*k >= 'a' && *k <= 'z' ? *k - 'a' + 'A' : *k);
        name[n] = 0;
        const char *value = getenv(name);
        if (value && config_set(c, keys[i].name, value, name, e)) return -1;
    }
    return 0;
}

/* Splits argv[*i] ("--key=value" or "--key" "value") and moves *i past it. */
static int next_flag(int argc, char **argv, int *i, char key[64], const char **value,
                     struct err *e)
{
    const char *arg = argv[*i];
    if (!str_starts(arg, "--") || !arg[2])
        return err_set(e, E_ARG, "unexpected argument '%.60s'", arg);
    const char *eq = strchr(arg, '=');
    size_t n = eq ? (size_t)(eq - arg) - 2 : strlen(arg) - 2;
    if (n >= 64) return err_set(e, E_ARG, "there is no setting '%.60s'", arg + 2);
    memcpy(key, arg + 2, n);
    key[n] = 0;
    if (!eq && *i + 1 >= argc) return err_set(e, E_ARG, "--%s needs a value", key);
    *value = eq ? eq + 1 : argv[++*i];
    ++*i;
    return 0;
}

int config_load(struct config *c, int argc, char **argv, struct err *e)
{
    struct config new;
    const char *file = getenv("GRAFT_CONFIG"), *value;
    char key[64];
    config_default(&new);
    for (int i = 0; i < argc;) {
        if (next_flag(argc, argv, &i, key, &value, e)) return -1;
        if (str_eq(key, "config")) file = value;
    }
    if (file && *file && load_file(&new, file, e)) return -1;
    if (load_environment(&new, e)) return -1;
    for (int i = 0; i < argc;) {
        if (next_flag(argc, argv, &i, key, &value, e)) return -1;
        char source[80];
        snprintf(source, sizeof source, "--%s", key);
        if (!str_eq(key, "config") && config_set(&new, key, value, source, e)) return -1;
    }
    *c = new;
    return 0;
}

void config_help(FILE *to)
{
    fprintf(to, "  --config FILE          lines `key = value`, # comments; or GRAFT_CONFIG\n");
    for (int i = 0; i < NKEYS; i++) {
        const struct key *k = &keys[i];
        fprintf(to, "  --%-20s %s (default ", k->name, k->help);
        if (k->text_cap)
            fprintf(to, "%s)\n", *k->text ? k->text : "empty");
        else
            fprintf(to, "%lld, %lld to %lld)\n", (long long)k->number, (long long)k->lo,
                    (long long)k->hi);
    }
}
