/* The server as a process: keys, addresses, names, starting and stopping. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "handlers/handlers.h"
#include "tests/lib/server.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* A path that matches the pattern: every parameter becomes "x". */
static void example(const char *pattern, char *out)
{
    for (; *pattern; pattern++) {
        if (*pattern == '{') {
            *out++ = 'x';
            pattern = strchr(pattern, '}');
        } else {
            *out++ = *pattern;
        }
    }
    *out = 0;
}

static void every_closed_route_needs_the_key(void **state)
{
    (void)state;
    static const char *const args[] = {"--api-key", "a-good-key", NULL};
    static const char *const wrong[] = {"Authorization: Bearer a-good-kez", NULL};
    static const char *const basic[] = {"Authorization: Basic a-good-key", NULL};
    static const char *const right[] = {"Authorization: Bearer a-good-key", NULL};
    struct server s;
    server_start(&s, args);
    for (int i = 0; i < handlers_nroutes; i++) {
        const struct route *r = &handlers_routes[i];
        bool open = r->flags & ROUTE_OPEN;
        char path[256];
        example(r->pattern, path);
        const char *const *const sets[] = {NULL, wrong, basic};
        for (int k = 0; k < 3; k++) {
            struct answer a = server_call(&s, &(struct call){r->method, path, sets[k], NULL, 0});
            if (a.status != (open ? 200 : 401)) fail_msg("%s %s: %ld", r->method, path, a.status);
            if (!open) {
                assert_string_equal(answer_header(&a, "www-authenticate"), "Bearer");
                bool hub = r->shape == SHAPE_HUB;
                assert_non_null(answer_str(&a, hub ? "error" : "error.message"));
                if (hub) assert_non_null(answer_header(&a, "x-error-message"));
            }
            answer_clear(&a);
        }
        struct answer a = server_call(&s, &(struct call){r->method, path, right, NULL, 0});
        if (a.status == 401 || a.status >= 500) fail_msg("%s %s: %ld", r->method, path, a.status);
        answer_clear(&a);
    }
    char *log = server_log(&s);
    assert_null(strstr(log, "a-good-key"));
    free(log);
    assert_int_equal(server_stop(&s), 0);
    server_remove(&s);
}

static void listening_for_everybody_needs_a_key_or_a_word(void **state)
{
    (void)state;
    struct server s = {0};
    static const char *const bad[] = {"serve", "--listen", "0.0.0.0:0", "--data",
                                      "/proc/nonexistent", NULL};
    assert_int_equal(server_run(&s, bad), 1);
    char *log = server_log(&s);
    assert_non_null(strstr(log, "--allow-public"));
    free(log);
    server_remove(&s);
    static const char *const meant[] = {"--listen", "0.0.0.0:0", "--allow-public", "1", NULL};
    static const char *const keyed[] = {"--listen", "0.0.0.0:0", "--api-key", "k", NULL};
    for (int i = 0; i < 2; i++) {
        server_start(&s, i ? keyed : meant);
        struct answer a = server_get(&s, "/healthz");
        assert_int_equal(a.status, 200);
        answer_clear(&a);
        server_remove(&s);
    }
    static const char *const v6[] = {"--listen", "[::1]:0", NULL};
    server_start(&s, v6);
    server_remove(&s);
}

static void other_names_must_be_known(void **state)
{
    (void)state;
    static const char *const args[] = {"--allowed-hosts", "graft,other.example", NULL};
    static const char *const known[] = {"Host: graft:8080", NULL};
    static const char *const unknown[] = {"Host: rebound.example", NULL};
    struct server s;
    server_start(&s, args);
    struct answer a = server_call(&s, &(struct call){"GET", "/v1/files", known, NULL, 0});
    assert_int_equal(a.status, 200);
    answer_clear(&a);
    a = server_call(&s, &(struct call){"GET", "/v1/files", unknown, NULL, 0});
    assert_int_equal(a.status, 421);
    assert_non_null(strstr(answer_str(&a, "error.message"), "--allowed-hosts"));
    answer_clear(&a);
    server_remove(&s);
}

static void one_data_folder_has_one_server(void **state)
{
    (void)state;
    struct server s;
    char data[96], other[96], line[64];
    server_start(&s, NULL);
    snprintf(data, sizeof data, "%s/data", s.dir);
    snprintf(line, sizeof line, "127.0.0.1:%d", s.port);
    const char *const again[] = {"serve", "--listen", "127.0.0.1:0", "--data", data, NULL};
    pid_t pid = s.pid;
    assert_int_equal(server_run(&s, again), 1);
    char *log = server_log(&s);
    assert_non_null(strstr(log, "another graft server"));
    free(log);
    /* A taken port is told, too. */
    snprintf(other, sizeof other, "%s/other", s.dir);
    const char *const port[] = {"serve", "--listen", line, "--data", other, NULL};
    assert_int_equal(server_run(&s, port), 1);
    log = server_log(&s);
    assert_non_null(strstr(log, "cannot listen on 127.0.0.1"));
    free(log);
    s.pid = pid;
    struct answer a = server_get(&s, "/healthz");
    assert_int_equal(a.status, 200);
    answer_clear(&a);
    server_remove(&s);
}

static void wrong_settings_end_with_a_sentence(void **state)
{
    (void)state;
    static const char *const bad[][5] = {
        {"serve", "--no-such", "1"},       {"serve", "--listen", "nowhere"},
        {"serve", "--listen-port", "70000"}, {"serve", "--http-threads", "0"},
        {"serve", "--data"},               {"serve", "stray"},
        {"serve", "--listen", "no.such.host.invalid:1"},
        {"serve", "--log-level", "loud"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct server s = {0};
        assert_int_equal(server_run(&s, bad[i]), 1);
        char *log = server_log(&s);
        assert_non_null(strstr(log, "graft serve: "));
        free(log);
        server_remove(&s);
    }
    struct server s = {0};
    assert_int_equal(server_run(&s, (const char *const[]){"version", NULL}), 0);
    char *log = server_log(&s);
    assert_string_equal(log, "graft " GRAFT_VERSION "\n");
    free(log);
    assert_int_equal(server_run(&s, (const char *const[]){"help", NULL}), 0);
    assert_int_equal(server_run(&s, (const char *const[]){"serve", "--help", NULL}), 0);
    log = server_log(&s);
    assert_non_null(strstr(log, "--data_dir"));
    free(log);
    assert_int_equal(server_run(&s, (const char *const[]){"nonsense", NULL}), 2);
    assert_int_equal(server_run(&s, (const char *const[]){NULL}), 2);
    server_remove(&s);
}

static int try_connect(struct server *s)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), rc;
    struct sockaddr_in {
        sa_family_t family;
        unsigned char port[2], address[4], zero[8];
    } a = {AF_INET, {(unsigned char)(s->port >> 8), (unsigned char)s->port}, {127, 0, 0, 1}, {0}};
    rc = connect(fd, (struct sockaddr *)&a, sizeof a);
    close(fd);
    return rc;
}

/* An upload that is under way when the signal comes is still answered; nobody new gets in. */
static void a_stop_lets_requests_finish(void **state)
{
    (void)state;
    static const char body[] =
        "--b\r\nContent-Disposition: form-data; name=purpose\r\n\r\nuser_data\r\n"
        "--b\r\nContent-Disposition: form-data; name=file; filename=x\r\n\r\nhello\r\n--b--\r\n";
    struct server s;
    char head[256], text[1024] = "";
    server_start(&s, NULL);
    int idle = server_connect(&s), fd = server_connect(&s);
    int n = snprintf(head, sizeof head,
                     "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\n"
                     "Content-Type: multipart/form-data; boundary=b\r\n\r\n", sizeof body - 1);
    assert_int_equal(send(fd, head, (size_t)n, 0), n);
    assert_int_equal(send(fd, body, 50, 0), 50);
    usleep(100000);
    double t = seconds();
    kill(s.pid, SIGTERM);
    for (int i = 0; i < 100 && try_connect(&s) == 0; i++) usleep(10000);
    assert_int_equal(try_connect(&s), -1);
    assert_true(seconds() - t < 2);
    assert_int_equal(waitpid(s.pid, NULL, WNOHANG), 0);
    assert_int_equal(send(fd, body + 50, sizeof body - 1 - 50, 0), sizeof body - 1 - 50);
    ssize_t got = recv(fd, text, sizeof text - 1, 0);
    assert_true(got > 0);
    assert_int_equal(strncmp(text, "HTTP/1.1 200", 12), 0);
    assert_non_null(strstr(text, "Connection: close"));
    close(fd);
    close(idle);
    int status;
    assert_int_equal(waitpid(s.pid, &status, 0), s.pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_true(seconds() - t < 6);
    /* What was acknowledged is there afterwards. */
    server_restart(&s, NULL);
    struct answer a = server_get(&s, "/v1/files");
    assert_int_equal(json_array_size(answer_get(&a, "data")), 1);
    answer_clear(&a);
    server_remove(&s);
}

/* 30 MB of rows take a while to check: others are served meanwhile. */
static void a_long_check_holds_nobody_up(void **state)
{
    (void)state;
    static const char *const args[] = {"--http-threads", "1", NULL};
    struct server s;
    size_t n = 0;
    char *p = malloc(31 << 20), id[64];
    while (n < 30 << 20) n += (size_t)snprintf(p + n, 64, "{\"text\": \"%zu\"}\n", n);
    server_start(&s, args);
    pid_t pid = fork();
    if (pid == 0) {
        server_upload_ok(&s, "fine-tune", "long.jsonl", p, n, id);
        _exit(0);
    }
    int answered = 0;
    double worst = 0, begun = seconds();
    while (waitpid(pid, NULL, WNOHANG) == 0) {
        double t = seconds();
        struct answer a = server_get(&s, "/healthz");
        assert_int_equal(a.status, 200);
        answer_clear(&a);
        if (seconds() - t > worst) worst = seconds() - t;
        answered++;
        usleep(5000);
    }
    print_message("%d answers in the %.0f ms of an upload, the slowest after %.0f ms\n", answered,
                  (seconds() - begun) * 1e3, worst * 1e3);
    /* The check takes more than half of the time: on the loop, one answer would wait for it. */
    assert_true(answered >= 5 && worst < (seconds() - begun) / 4);
    free(p);
    server_remove(&s);
}

static void one_address_has_so_many_connections(void **state)
{
    (void)state;
    static const char *const args[] = {"--connections-per-ip", "8", NULL};
    struct server s;
    int fd[12], open = 0;
    server_start(&s, args);
    for (int i = 0; i < 12; i++) fd[i] = server_connect(&s);
    usleep(200000);
    for (int i = 0; i < 12; i++) {
        char c;
        ssize_t k = recv(fd[i], &c, 1, MSG_DONTWAIT);
        open += k < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    }
    assert_int_equal(open, 8);
    for (int i = 0; i < 12; i++) close(fd[i]);
    usleep(200000);
    struct answer a = server_get(&s, "/healthz");
    assert_int_equal(a.status, 200);
    answer_clear(&a);
    server_remove(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_closed_route_needs_the_key),
        cmocka_unit_test(listening_for_everybody_needs_a_key_or_a_word),
        cmocka_unit_test(other_names_must_be_known),
        cmocka_unit_test(one_data_folder_has_one_server),
        cmocka_unit_test(wrong_settings_end_with_a_sentence),
        cmocka_unit_test(a_stop_lets_requests_finish),
        cmocka_unit_test(a_long_check_holds_nobody_up),
        cmocka_unit_test(one_address_has_so_many_connections),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
