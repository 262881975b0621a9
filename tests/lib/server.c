#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/lib/server.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { START_MS = 20000, STOP_MS = 30000, FIRST_MS = 2000, QUIET_MS = 30, ARGS_MAX = 40 };

static void nap(int ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

static char *slurp(const char *path)
{
    FILE *f = fopen(path, "rb");
    char *s = calloc(1, 1 << 22);
    assert_non_null(s);
    if (f) {
        size_t n = fread(s, 1, (1 << 22) - 1, f);
        s[n] = 0;
        fclose(f);
    }
    return s;
}

char *server_log(const struct server *s)
{
    char path[96];
    snprintf(path, sizeof path, "%s/log", s->dir);
    return slurp(path);
}

static pid_t spawn(struct server *s, const char *const *argv)
{
    char path[96];
    snprintf(path, sizeof path, "%s/log", s->dir);
    /* Emptied before the fork: nobody may find the port of the server before in it. */
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    pid_t pid = fork();
    assert_true(fd >= 0 && pid >= 0);
    if (pid) {
        close(fd);
        return pid;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that dies leaves no server behind */
    dup2(fd, 1);
    dup2(fd, 2);
    execv(s->binary, (char *const *)(uintptr_t)argv);
    _exit(127);
}

/* The port is in the log line that says "listening". */
static int port_of(const struct server *s)
{
    char *log = server_log(s), *p = strstr(log, "\"msg\":\"listening\"");
    int port = 0;
    if (p && (p = strstr(p, "\"port\":"))) port = (int)strtol(p + 7, NULL, 10);
    free(log);
    return port;
}

void server_restart(struct server *s, const char *const *args)
{
    char data[96], models[96];
    const char *argv[ARGS_MAX] = {s->binary, "serve", "--listen", "127.0.0.1:0", "--data", data,
                                  "--model-root", models};
    int n = 8;
    snprintf(data, sizeof data, "%s/data", s->dir);
    snprintf(models, sizeof models, "%s/models", s->dir);
    mkdir(models, 0700);
    for (int i = 0; args && args[i]; i++) {
        assert_true(n < ARGS_MAX - 1);
        argv[n++] = args[i];
    }
    s->pid = spawn(s, argv);
    s->port = 0;
    for (int ms = 0; ms < START_MS && !s->port; ms += 10) {
        nap(10);
        s->port = port_of(s);
        if (!s->port && waitpid(s->pid, NULL, WNOHANG) == s->pid) {
            s->pid = 0;
            char *log = server_log(s);
            print_error("%s\n", log);
            free(log);
            fail_msg("the server did not start");
        }
    }
    if (!s->port) fail_msg("the server does not listen");
}

static void prepare(struct server *s)
{
    *s = (struct server){.dir = "/tmp/graft-api-XXXXXX"};
    assert_non_null(mkdtemp(s->dir));
    ssize_t n = readlink("/proc/self/exe", s->binary, sizeof s->binary - 16);
    assert_true(n > 0);
    s->binary[n] = 0;
    /* BUILD/tests/KIND/NAME_test -> BUILD/graft */
    for (int i = 0; i < 3; i++) *strrchr(s->binary, '/') = 0;
    memcpy(s->binary + strlen(s->binary), "/graft", sizeof "/graft");
}

void server_start(struct server *s, const char *const *args)
{
    prepare(s);
    server_restart(s, args);
}

static int wait_exit(pid_t pid, int ms)
{
    int status;
    for (int t = 0; t < ms; t += 10) {
        if (waitpid(pid, &status, WNOHANG) == pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        nap(10);
    }
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    fail_msg("the process did not end");
    return -1;
}

int server_run(struct server *s, const char *const *args)
{
    const char *argv[ARGS_MAX] = {NULL};
    int n = 1;
    if (!s->dir[0]) prepare(s);
    argv[0] = s->binary;
    for (int i = 0; args[i]; i++) argv[n++] = args[i];
    return wait_exit(spawn(s, argv), STOP_MS);
}

/* In a build with sanitizers their reports stand in the log, leaks at the end. */
static void assert_no_report(const struct server *s)
{
    char *log = server_log(s);
    char *p = strstr(log, "Sanitizer");
    if (!p) p = strstr(log, "runtime error:");
    if (p) fail_msg("%.3000s", p);
    free(log);
}

int server_stop(struct server *s)
{
    pid_t pid = s->pid;
    s->pid = 0;
    kill(pid, SIGTERM);
    int rc = wait_exit(pid, STOP_MS);
    assert_no_report(s);
    return rc;
}

void server_kill(struct server *s)
{
    kill(s->pid, SIGKILL);
    waitpid(s->pid, NULL, 0);
    s->pid = 0;
}

static void remove_tree(const char *path)
{
    DIR *d = opendir(path);
    if (d) {
        for (struct dirent *de; (de = readdir(d));) {
            char p[1024];
            if (!strcmp(de->d_name, ".") || !strcmp(de->d_name, "..")) continue;
            snprintf(p, sizeof p, "%s/%s", path, de->d_name);
            if (unlink(p)) remove_tree(p);
        }
        closedir(d);
    }
    rmdir(path);
}

void server_remove(struct server *s)
{
    if (s->pid > 0) assert_int_equal(server_stop(s), 0);
    assert_no_report(s);
    if (s->dir[0]) remove_tree(s->dir);
    *s = (struct server){0};
}

int server_count_files(const struct server *s, const char *below)
{
    char path[1024];
    int n = 0;
    snprintf(path, sizeof path, "%s/data/%s", s->dir, below);
    DIR *d = opendir(path);
    if (!d) return -1;
    for (struct dirent *de; (de = readdir(d));) {
        if (!strcmp(de->d_name, ".") || !strcmp(de->d_name, "..")) continue;
        char sub[512];
        snprintf(sub, sizeof sub, "%s/%s", below, de->d_name);
        int k = de->d_type == DT_DIR ? server_count_files(s, sub) : 1;
        n += k > 0 ? k : 0;
    }
    closedir(d);
    return n;
}

/* ---- answers ---- */

void answer_clear(struct answer *a)
{
    free(a->head);
    free(a->body);
    json_decref(a->json);
    *a = (struct answer){0};
}

const char *answer_header(const struct answer *a, const char *name)
{
    static char value[2048];
    size_t n = strlen(name);
    for (const char *p = a->head; p && *p; p = strchr(p, '\n'), p = p ? p + 1 : NULL) {
        if (strncasecmp(p, name, n) || p[n] != ':') continue;
        p += n + 1;
        while (*p == ' ') p++;
        snprintf(value, sizeof value, "%.*s", (int)strcspn(p, "\r\n"), p);
        return value;
    }
    return NULL;
}

long answer_number(const struct answer *a, const char *name)
{
    const char *v = answer_header(a, name);
    assert_non_null(v);
    return strtol(v, NULL, 10);
}

json_t *answer_get(const struct answer *a, const char *path)
{
    json_t *v = a->json;
    char key[64];
    while (*path && v) {
        size_t n = strcspn(path, ".");
        snprintf(key, sizeof key, "%.*s", (int)n, path);
        v = json_is_array(v) ? json_array_get(v, strtoul(key, NULL, 10)) : json_object_get(v, key);
        path += n + (path[n] == '.');
    }
    return v;
}

const char *answer_str(const struct answer *a, const char *path)
{
    return json_string_value(answer_get(a, path));
}

/* ---- libcurl ---- */

struct sink {
    char *s;
    size_t n, cap;
};

static size_t collect(char *p, size_t size, size_t n, void *ctx)
{
    struct sink *k = ctx;
    n *= size;
    if (k->n + n + 1 > k->cap) {
        k->cap = (k->n + n + 1) * 2;
        k->s = realloc(k->s, k->cap);
        assert_non_null(k->s);
    }
    memcpy(k->s + k->n, p, n);
    k->n += n;
    k->s[k->n] = 0;
    return n;
}

static CURL *easy(struct server *s, const char *path, struct sink *head, struct sink *body)
{
    char url[4096];
    CURL *c = curl_easy_init();
    assert_non_null(c);
    snprintf(url, sizeof url, "http://127.0.0.1:%d%s", s->port, path);
    collect("", 1, 0, head);
    collect("", 1, 0, body);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, 60L);
    curl_easy_setopt(c, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, collect);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, body);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, collect);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, head);
    return c;
}

static struct answer perform(CURL *c, struct sink *head, struct sink *body)
{
    struct answer a = {0};
    CURLcode rc = curl_easy_perform(c);
    if (rc != CURLE_OK) fail_msg("curl: %s", curl_easy_strerror(rc));
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &a.status);
    curl_easy_cleanup(c);
    a.head = head->s;
    a.body = body->s;
    a.n = body->n;
    a.json = json_loadb(a.body, a.n, JSON_DECODE_ANY, NULL);
    return a;
}

struct answer server_call(struct server *s, const struct call *q)
{
    struct sink head = {0}, body = {0};
    struct curl_slist *list = NULL;
    CURL *c = easy(s, q->path, &head, &body);
    for (int i = 0; q->headers && q->headers[i]; i++) list = curl_slist_append(list, q->headers[i]);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, list);
    if (q->body) {
        curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)q->n);
        curl_easy_setopt(c, CURLOPT_POSTFIELDS, q->body);
    }
    if (!strcmp(q->method, "HEAD")) curl_easy_setopt(c, CURLOPT_NOBODY, 1L);
    curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, q->method);
    struct answer a = perform(c, &head, &body);
    curl_slist_free_all(list);
    return a;
}

struct answer server_get(struct server *s, const char *path)
{
    return server_call(s, &(struct call){.method = "GET", .path = path});
}

struct answer server_delete(struct server *s, const char *path)
{
    return server_call(s, &(struct call){.method = "DELETE", .path = path});
}

struct answer server_post(struct server *s, const char *path, const char *json)
{
    static const char *const type[] = {"Content-Type: application/json", NULL};
    return server_call(s, &(struct call){"POST", path, json ? type : NULL, json ? json : "",
                                         json ? strlen(json) : 0});
}

struct answer server_upload(struct server *s, const char *purpose, const char *filename,
                            const void *p, size_t n)
{
    struct sink head = {0}, body = {0};
    CURL *c = easy(s, "/v1/files", &head, &body);
    curl_mime *mime = curl_mime_init(c);
    curl_mimepart *part = curl_mime_addpart(mime);
    curl_mime_name(part, "purpose");
    curl_mime_data(part, purpose, CURL_ZERO_TERMINATED);
    part = curl_mime_addpart(mime);
    curl_mime_name(part, "file");
    curl_mime_data(part, p, n);
    curl_mime_filename(part, filename);
    curl_easy_setopt(c, CURLOPT_MIMEPOST, mime);
    struct answer a = perform(c, &head, &body);
    curl_mime_free(mime);
    return a;
}

void server_upload_ok(struct server *s, const char *purpose, const char *filename, const void *p,
                      size_t n, char out[64])
{
    struct answer a = server_upload(s, purpose, filename, p, n);
    if (a.status != 200) fail_msg("upload: %ld %s", a.status, a.body);
    snprintf(out, 64, "%s", answer_str(&a, "id"));
    answer_clear(&a);
}

/* ---- raw bytes ---- */

int server_connect(struct server *s)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)s->port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

/* Reads until the peer closes (true), or nothing comes at first for FIRST_MS, or later for
 * QUIET_MS (false). */
static bool drain(int fd, char *to, size_t cap, size_t *n)
{
    char rest[4096];
    for (int wait = FIRST_MS;; wait = QUIET_MS) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, wait) <= 0) return false;
        size_t room = cap - 1 - *n;
        ssize_t k = recv(fd, room ? to + *n : rest, room ? room : sizeof rest, 0);
        if (k <= 0) return true;
        if (room) *n += (size_t)k;
        to[*n] = 0;
    }
}

static int count_replies(const char *text)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, "HTTP/1.1 ")); p++) n += p[9] >= '1' && p[9] <= '5';
    return n;
}

void server_raw(struct server *s, const char *bytes, size_t n, struct raw *out)
{
    static const char again[] = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    size_t got = 0;
    *out = (struct raw){0};
    int fd = server_connect(s);
    for (size_t i = 0; i < n;) {
        ssize_t k = send(fd, bytes + i, n - i, MSG_NOSIGNAL);
        if (k <= 0) break;
        i += (size_t)k;
    }
    out->closed = drain(fd, out->text, sizeof out->text, &got);
    out->replies = count_replies(out->text);
    if (got && !strncmp(out->text, "HTTP/1.1 ", 9))
        out->status = (int)strtol(out->text + 9, NULL, 10);
    if (!out->closed) {
        size_t more = 0;
        char reply[4096] = "";
        if (send(fd, again, sizeof again - 1, MSG_NOSIGNAL) > 0)
            drain(fd, reply, sizeof reply, &more);
        out->closed = !strstr(reply, "HTTP/1.1 200");
    }
    close(fd);
}
