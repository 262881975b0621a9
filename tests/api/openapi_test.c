/* openapi.yaml describes exactly the routes that there are, and the server serves it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "handlers/handlers.h"
#include "tests/lib/server.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct server server;
static json_t *doc;

static int set_up(void **state)
{
    (void)state;
    server_start(&server, NULL);
    struct answer a = server_get(&server, "/openapi.json");
    if (a.status != 200 || !a.json) return -1;
    doc = json_incref(a.json);
    answer_clear(&a);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    json_decref(doc);
    server_remove(&server);
    return 0;
}

/* "/v1/models/{id+}" -> "/v1/models/{id}" */
static void to_path(const char *pattern, char *out)
{
    for (; *pattern; pattern++) {
        if (strchr("+*/", *pattern) && pattern[1] == '}') continue;
        *out++ = *pattern;
    }
    *out = 0;
}

static const json_t *operation(const struct route *r)
{
    char path[128], method[16];
    size_t n = 0;
    to_path(r->pattern, path);
    for (const char *p = r->method; *p; p++) method[n++] = (char)tolower((unsigned char)*p);
    method[n] = 0;
    return json_object_get(json_object_get(json_object_get(doc, "paths"), path), method);
}

static void every_route_is_described_and_nothing_else(void **state)
{
    (void)state;
    int described = 0;
    const char *path, *method;
    json_t *methods, *op;
    for (int i = 0; i < handlers_nroutes; i++)
        if (!operation(&handlers_routes[i]))
            fail_msg("not described: %s %s", handlers_routes[i].method, handlers_routes[i].pattern);
    json_object_foreach(json_object_get(doc, "paths"), path, methods)
        json_object_foreach(methods, method, op) described++;
    assert_int_equal(described, handlers_nroutes);
}

static void what_a_route_takes_and_needs_is_described(void **state)
{
    (void)state;
    static const char *const body[] = {NULL, "application/json", "multipart/form-data",
                                       "application/x-www-form-urlencoded"};
    for (int i = 0; i < handlers_nroutes; i++) {
        const struct route *r = &handlers_routes[i];
        const json_t *op = operation(r);
        const json_t *content = json_object_get(json_object_get(op, "requestBody"), "content");
        assert_int_equal(content != NULL, r->body != BODY_NONE);
        if (content) assert_non_null(json_object_get(content, body[r->body]));
        /* Open routes say so; all others can answer 401. */
        assert_int_equal(json_object_get(op, "security") != NULL, (r->flags & ROUTE_OPEN) != 0);
        assert_int_equal(json_object_get(json_object_get(op, "responses"), "401") != NULL,
                         !(r->flags & ROUTE_OPEN));
        assert_non_null(json_object_get(op, "operationId"));
        /* Each parameter of the path is declared. */
        char path[128];
        to_path(r->pattern, path);
        for (const char *p = path; (p = strchr(p, '{')); p++) {
            size_t k, n = strcspn(p + 1, "}");
            bool found = false;
            json_t *q;
            json_array_foreach(json_object_get(op, "parameters"), k, q) {
                const char *name = json_string_value(json_object_get(q, "name"));
                found = found || (strlen(name) == n && !memcmp(name, p + 1, n));
            }
            if (!found) fail_msg("%s: parameter %.*s", path, (int)n, p + 1);
        }
    }
}

static void check_refs(const json_t *v)
{
    const char *key;
    size_t i;
    json_t *child;
    json_object_foreach((json_t *)(uintptr_t)v, key, child) {
        if (strcmp(key, "$ref")) {
            check_refs(child);
            continue;
        }
        const json_t *at = doc;
        char part[64];
        const char *p = json_string_value(child) + 2; /* "#/" */
        for (size_t n; at && *p; p += n + (p[n] == '/')) {
            n = strcspn(p, "/");
            snprintf(part, sizeof part, "%.*s", (int)n, p);
            at = json_object_get(at, part);
        }
        if (!at) fail_msg("dangling %s", json_string_value(child));
    }
    json_array_foreach(v, i, child) check_refs(child);
}

static void every_reference_leads_somewhere(void **state)
{
    (void)state;
    check_refs(doc);
    assert_string_equal(json_string_value(json_object_get(json_object_get(doc, "info"), "version")),
                        GRAFT_VERSION);
}

static void it_is_one_document_under_two_names(void **state)
{
    (void)state;
    struct answer a = server_get(&server, "/openapi.json");
    struct answer b = server_get(&server, "/openapi.yaml");
    assert_string_equal(answer_header(&a, "content-type"), "application/json");
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.body, b.body, a.n);
    answer_clear(&a);
    answer_clear(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_route_is_described_and_nothing_else),
        cmocka_unit_test(what_a_route_takes_and_needs_is_described),
        cmocka_unit_test(every_reference_leads_somewhere),
        cmocka_unit_test(it_is_one_document_under_two_names),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
