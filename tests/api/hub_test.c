/* Models over HTTP, and as a hub serves them: the headers and codes that hub clients depend on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/err.h"
#include "engine/base/hash.h"
#include "tests/lib/model_dir.h"
#include "tests/lib/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct server server;
static char commit[41];

/* A weights file above 1 MB counts as large (LFS-class); its bytes for comparison. */
static char *large;
static size_t large_n;

static void write_file(const char *dir, const char *name, const char *p, size_t n)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    fclose(f);
}

static int set_up(void **state)
{
    char dir[128], body[256];
    (void)state;
    server_start(&server, NULL);
    snprintf(dir, sizeof dir, "%s/models/tiny", server.dir);
    model_dir_write(dir);
    large_n = (1 << 20) + 4321;
    large = malloc(large_n);
    for (size_t i = 0; i < large_n; i++) large[i] = (char)(i * 2654435761u >> 13);
    write_file(dir, "notes.txt", large, large_n);
    char sub[160];
    snprintf(sub, sizeof sub, "%s/extra", dir);
    mkdir(sub, 0700);
    write_file(sub, "a.txt", "a", 1);
    snprintf(sub, sizeof sub, "%s/extra/deep", dir);
    mkdir(sub, 0700);
    write_file(sub, "b.txt", "bb", 2);
    snprintf(body, sizeof body, "{\"id\": \"base/tiny\", \"path\": \"%s\"}", dir);
    struct answer a = server_post(&server, "/v1/models", body);
    if (a.status != 200) fail_msg("model: %s", a.body);
    snprintf(commit, sizeof commit, "%s", answer_str(&a, "graft.commit"));
    answer_clear(&a);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    free(large);
    server_remove(&server);
    return 0;
}

static bool hex40(const char *s)
{
    return s && strlen(s) == 40 && strspn(s, "0123456789abcdef") == 40;
}

static void a_model_is_found_by_both_spellings_of_its_id(void **state)
{
    (void)state;
    static const char *const paths[] = {"/v1/models/base/tiny", "/v1/models/base%2Ftiny",
                                        "/v1/models/base%2ftiny"};
    for (size_t i = 0; i < 3; i++) {
        struct answer a = server_get(&server, paths[i]);
        assert_int_equal(a.status, 200);
        assert_string_equal(answer_str(&a, "id"), "base/tiny");
        assert_string_equal(answer_str(&a, "object"), "model");
        assert_true(json_is_integer(answer_get(&a, "created")));
        assert_string_equal(answer_str(&a, "owned_by"), "base");
        answer_clear(&a);
    }
    struct answer a = server_get(&server, "/v1/models");
    assert_string_equal(answer_str(&a, "object"), "list");
    assert_int_equal(json_array_size(answer_get(&a, "data")), 1);
    answer_clear(&a);
    a = server_get(&server, "/v1/models/base/none");
    assert_int_equal(a.status, 404);
    assert_string_equal(answer_str(&a, "error.code"), "model_not_found");
    answer_clear(&a);
}

static void a_model_is_made_of_uploaded_files(void **state)
{
    (void)state;
    static const char *const names[] = {"config.json", "tokenizer.json", "model.safetensors"};
    char ids[3][64], body[512];
    for (int i = 0; i < 3; i++) {
        size_t n;
        char *p = model_dir_file(names[i], &n);
        server_upload_ok(&server, "model", names[i], p, n, ids[i]);
        free(p);
    }
    snprintf(body, sizeof body, "{\"id\": \"up/loaded\", \"files\": [{\"path\": \"config.json\", "
             "\"file\": \"%s\"}, {\"path\": \"tokenizer.json\", \"file\": \"%s\"}, "
             "{\"path\": \"model.safetensors\", \"file\": \"%s\"}]}", ids[0], ids[1], ids[2]);
    struct answer a = server_post(&server, "/v1/models", body);
    if (a.status != 200) fail_msg("%s", a.body);
    assert_string_equal(answer_str(&a, "id"), "up/loaded");
    answer_clear(&a);
    a = server_post(&server, "/v1/models", body);
    assert_int_equal(a.status, 409);
    assert_string_equal(answer_header(&a, "x-should-retry"), "false");
    answer_clear(&a);
    /* The model keeps its bytes when the uploads go. */
    for (int i = 0; i < 3; i++) {
        char path[128];
        snprintf(path, sizeof path, "/v1/files/%s", ids[i]);
        a = server_delete(&server, path);
        assert_int_equal(a.status, 200);
        answer_clear(&a);
    }
    size_t n;
    char *p = model_dir_file("model.safetensors", &n);
    a = server_get(&server, "/up/loaded/resolve/main/model.safetensors");
    assert_int_equal(a.n, n);
    assert_memory_equal(a.body, p, n);
    free(p);
    answer_clear(&a);
    a = server_delete(&server, "/v1/models/up/loaded");
    assert_int_equal(a.status, 200);
    assert_true(json_is_true(answer_get(&a, "deleted")));
    answer_clear(&a);
    assert_int_equal(server_count_files(&server, "blobs"), 0);
    a = server_get(&server, "/api/models/up/loaded");
    assert_int_equal(a.status, 404);
    assert_string_equal(answer_header(&a, "x-error-code"), "RepoNotFound");
    answer_clear(&a);
}

static void a_small_file_has_its_git_id_and_a_large_one_its_sha256(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char sha[65], git[41], want[80];
    size_t n;
    char *p = model_dir_file("config.json", &n);
    assert_int_equal(hash_git_blob(p, n, git, &e), 0);
    assert_int_equal(hash_sha256(large, large_n, sha, &e), 0);
    for (int head = 0; head < 2; head++) {
        const char *method = head ? "HEAD" : "GET";
        struct answer a = server_call(&server, &(struct call){
            .method = method, .path = "/base/tiny/resolve/main/config.json"});
        assert_int_equal(a.status, 200);
        snprintf(want, sizeof want, "\"%s\"", git);
        assert_string_equal(answer_header(&a, "etag"), want);
        assert_string_equal(answer_header(&a, "x-repo-commit"), commit);
        assert_int_equal(answer_number(&a, "content-length"), (long)n);
        assert_string_equal(answer_header(&a, "accept-ranges"), "bytes");
        assert_null(answer_header(&a, "x-linked-etag"));
        assert_null(answer_header(&a, "x-xet-hash"));
        assert_null(answer_header(&a, "link"));
        assert_null(answer_header(&a, "content-encoding"));
        assert_string_equal(answer_header(&a, "cache-control"), "no-store");
        assert_non_null(answer_header(&a, "x-request-id"));
        if (!head) assert_memory_equal(a.body, p, n);
        answer_clear(&a);

        a = server_call(&server, &(struct call){
            .method = method, .path = "/base/tiny/resolve/main/notes.txt"});
        snprintf(want, sizeof want, "\"%s\"", sha);
        assert_string_equal(answer_header(&a, "etag"), want);
        assert_string_equal(answer_header(&a, "x-linked-etag"), want);
        assert_int_equal(answer_number(&a, "x-linked-size"), (long)large_n);
        assert_int_equal(answer_number(&a, "content-length"), (long)large_n);
        if (!head) assert_memory_equal(a.body, large, large_n);
        answer_clear(&a);
    }
    free(p);
}

static void revisions_and_spellings_lead_to_the_same_file(void **state)
{
    (void)state;
    static const char *const repos[] = {"base/tiny", "base%2Ftiny"};
    const char *const revisions[] = {"main", commit, "refs%2Fheads%2Fmain"};
    for (int i = 0; i < 6; i++) {
        char path[256];
        snprintf(path, sizeof path, "/%s/resolve/%s/config.json", repos[i / 3], revisions[i % 3]);
        struct answer a = server_call(&server, &(struct call){.method = "HEAD", .path = path});
        assert_int_equal(a.status, 200);
        assert_string_equal(answer_header(&a, "x-repo-commit"), commit);
        bool pinned = revisions[i % 3] == commit;
        assert_int_equal(strstr(answer_header(&a, "cache-control"), "immutable") != NULL, pinned);
        answer_clear(&a);
    }
}

static void ranges_and_known_etags_save_bytes(void **state)
{
    (void)state;
    static const char *const range[] = {"Range: bytes=1048000-", NULL};
    static const char *const probe[] = {"Range: bytes=0-0",
                                        "Accept: application/vnd.xet-fileinfo+json, */*", NULL};
    static const char *const outside[] = {"Range: bytes=99999999-", NULL};
    struct call c = {"GET", "/base/tiny/resolve/main/notes.txt", range, NULL, 0};
    struct answer a = server_call(&server, &c);
    assert_int_equal(a.status, 206);
    assert_int_equal(a.n, large_n - 1048000);
    assert_memory_equal(a.body, large + 1048000, a.n);
    answer_clear(&a);
    c.headers = probe;
    a = server_call(&server, &c);
    assert_int_equal(a.status, 206);
    assert_int_equal(a.n, 1);
    char want[64];
    snprintf(want, sizeof want, "bytes 0-0/%zu", large_n);
    assert_string_equal(answer_header(&a, "content-range"), want);
    assert_non_null(answer_header(&a, "x-repo-commit"));
    char line[100];
    snprintf(line, sizeof line, "If-None-Match: %s", answer_header(&a, "etag"));
    answer_clear(&a);
    c.headers = outside;
    a = server_call(&server, &c);
    assert_int_equal(a.status, 416);
    answer_clear(&a);
    const char *const known[] = {line, NULL};
    c.headers = known;
    a = server_call(&server, &c);
    assert_int_equal(a.status, 304);
    answer_clear(&a);
}

static void what_is_missing_has_its_code(void **state)
{
    (void)state;
    static const struct {
        const char *path, *code;
        bool has_commit;
    } t[] = {
        {"/no/such/resolve/main/config.json", "RepoNotFound", false},
        {"/such/resolve/main/config.json", "RepoNotFound", false},
        {"/base/tiny/resolve/v9/config.json", "RevisionNotFound", false},
        {"/base/tiny/resolve/0000000000000000000000000000000000000000/config.json",
         "RevisionNotFound", false},
        {"/base/tiny/resolve/main/none.json", "EntryNotFound", true},
        {"/base/tiny/resolve/main/d/none.json", "EntryNotFound", true},
        {"/api/models/no/such", "RepoNotFound", false},
        {"/api/models/base/tiny/revision/v9", "RevisionNotFound", false},
        {"/api/models/base/tiny/tree/v9", "RevisionNotFound", false},
        {"/api/models/base/tiny/tree/main/nowhere", "EntryNotFound", true},
        {"/api/models/no/such/refs", "RepoNotFound", false},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct answer a = server_get(&server, t[i].path);
        assert_int_equal(a.status, 404);
        assert_string_equal(answer_header(&a, "x-error-code"), t[i].code);
        assert_non_null(answer_header(&a, "x-error-message"));
        assert_int_equal(answer_header(&a, "x-repo-commit") != NULL, t[i].has_commit);
        /* The hub's shape: the error is a text. */
        assert_non_null(answer_str(&a, "error"));
        answer_clear(&a);
        a = server_call(&server, &(struct call){.method = "HEAD", .path = t[i].path});
        assert_int_equal(a.status, 404);
        assert_string_equal(answer_header(&a, "x-error-code"), t[i].code);
        answer_clear(&a);
    }
}

static void descriptions_have_what_hub_clients_parse(void **state)
{
    (void)state;
    struct answer a = server_get(&server, "/api/models/base/tiny?blobs=true");
    assert_int_equal(a.status, 200);
    assert_string_equal(answer_str(&a, "id"), "base/tiny");
    assert_string_equal(answer_str(&a, "modelId"), "base/tiny");
    assert_string_equal(answer_str(&a, "sha"), commit);
    assert_true(hex40(commit));
    assert_string_equal(answer_str(&a, "author"), "base");
    assert_true(json_is_false(answer_get(&a, "private")));
    assert_true(json_is_false(answer_get(&a, "gated")));
    const char *when = answer_str(&a, "lastModified");
    assert_int_equal(when[strlen(when) - 1], 'Z');
    assert_int_equal(json_array_size(answer_get(&a, "siblings")), 6);
    assert_string_equal(answer_str(&a, "siblings.0.rfilename"), "config.json");
    assert_true(hex40(answer_str(&a, "siblings.0.blobId")));
    assert_string_equal(answer_str(&a, "siblings.2.rfilename"), "extra/deep/b.txt");
    assert_string_equal(answer_str(&a, "siblings.4.rfilename"), "notes.txt");
    assert_int_equal(strlen(answer_str(&a, "siblings.4.lfs.sha256")), 64);
    assert_string_equal(answer_str(&a, "library_name"), "transformers");
    assert_string_equal(answer_str(&a, "config.model_type"), "llama");
    assert_int_equal(json_integer_value(answer_get(&a, "safetensors.total")), 2712);
    answer_clear(&a);

    char path[128];
    snprintf(path, sizeof path, "/api/models/base%%2Ftiny/revision/%s", commit);
    a = server_get(&server, path);
    assert_string_equal(answer_str(&a, "sha"), commit);
    assert_null(answer_get(&a, "siblings.0.size"));
    answer_clear(&a);

    a = server_get(&server, "/api/models/base/tiny/refs");
    assert_string_equal(answer_str(&a, "branches.0.name"), "main");
    assert_string_equal(answer_str(&a, "branches.0.targetCommit"), commit);
    answer_clear(&a);

    a = server_get(&server, "/api/whoami-v2");
    assert_non_null(answer_str(&a, "name"));
    assert_true(json_is_array(answer_get(&a, "orgs")));
    assert_non_null(answer_get(&a, "auth.accessToken"));
    answer_clear(&a);
}

/* The paths of a tree, folders with a slash behind. */
static const char *names_of(const struct answer *a)
{
    static char out[1024];
    size_t i, n = 0;
    json_t *v;
    out[0] = 0;
    json_array_foreach(a->json, i, v) {
        bool dir = !strcmp(json_string_value(json_object_get(v, "type")), "directory");
        n += (size_t)snprintf(out + n, sizeof out - n, "%s%s",
                              json_string_value(json_object_get(v, "path")), dir ? "/ " : " ");
    }
    return out;
}

static void trees_list_files_with_their_ids(void **state)
{
    (void)state;
    char sha[65];
    struct err e = ERR_INIT;
    assert_int_equal(hash_sha256(large, large_n, sha, &e), 0);
    struct answer a =
        server_get(&server, "/api/models/base/tiny/tree/main?recursive=true&expand=true");
    assert_string_equal(names_of(&a), "config.json extra/ extra/a.txt extra/deep/ extra/deep/b.txt "
                                      "model.safetensors notes.txt tokenizer.json ");
    assert_string_equal(answer_str(&a, "0.type"), "file");
    assert_true(hex40(answer_str(&a, "0.oid")));
    assert_string_equal(answer_str(&a, "0.lastCommit.id"), commit);
    assert_true(hex40(answer_str(&a, "1.oid")));
    assert_string_equal(answer_str(&a, "1.lastCommit.id"), commit);
    assert_string_equal(answer_str(&a, "6.lfs.oid"), sha);
    assert_int_equal(json_integer_value(answer_get(&a, "6.lfs.size")), (json_int_t)large_n);
    assert_true(hex40(answer_str(&a, "6.oid")));
    assert_int_equal(json_integer_value(answer_get(&a, "6.lfs.pointerSize")), 132);
    assert_null(answer_get(&a, "6.xetHash"));
    answer_clear(&a);

    static const char *const trees[][2] = {
        {"main", "config.json extra/ model.safetensors notes.txt tokenizer.json "},
        {"main/extra", "extra/a.txt extra/deep/ "},
        {"main/extra?recursive=true", "extra/a.txt extra/deep/ extra/deep/b.txt "},
        {"main/extra/deep", "extra/deep/b.txt "},
    };
    for (size_t i = 0; i < sizeof trees / sizeof *trees; i++) {
        char path[128];
        snprintf(path, sizeof path, "/api/models/base/tiny/tree/%s", trees[i][0]);
        a = server_get(&server, path);
        assert_string_equal(names_of(&a), trees[i][1]);
        answer_clear(&a);
    }
    a = server_get(&server, "/base/tiny/resolve/main/extra/deep/b.txt");
    assert_string_equal(a.body, "bb");
    answer_clear(&a);
    /* A folder is no file, and the beginning of a name is no folder. */
    a = server_get(&server, "/base/tiny/resolve/main/extra");
    assert_string_equal(answer_header(&a, "x-error-code"), "EntryNotFound");
    answer_clear(&a);
    a = server_get(&server, "/api/models/base/tiny/tree/main/ext");
    assert_string_equal(answer_header(&a, "x-error-code"), "EntryNotFound");
    answer_clear(&a);

    static const char *const form[] = {"Content-Type: application/x-www-form-urlencoded", NULL};
    static const char *const json[] = {"Content-Type: application/json", NULL};
    static const char fbody[] = "paths=config.json&paths=none&paths=extra%2Fdeep&expand=True";
    static const char jbody[] = "{\"paths\": [\"config.json\", \"none\", \"extra/deep\"]}";
    for (int i = 0; i < 2; i++) {
        a = server_call(&server, &(struct call){"POST", "/api/models/base/tiny/paths-info/main",
                                                i ? json : form, i ? jbody : fbody,
                                                strlen(i ? jbody : fbody)});
        assert_int_equal(a.status, 200);
        assert_string_equal(names_of(&a), "config.json extra/deep/ ");
        assert_int_equal(answer_get(&a, "0.lastCommit") != NULL, i == 0);
        answer_clear(&a);
    }
}

static void the_list_of_models_is_filtered_and_paged(void **state)
{
    (void)state;
    char dir[128], body[256];
    for (int i = 0; i < 3; i++) {
        snprintf(dir, sizeof dir, "%s/models/tiny", server.dir);
        snprintf(body, sizeof body, "{\"id\": \"zoo/animal-%d\", \"path\": \"%s\"}", i, dir);
        struct answer a = server_post(&server, "/v1/models", body);
        assert_int_equal(a.status, 200);
        answer_clear(&a);
    }
    struct answer a = server_get(&server, "/api/models?author=zoo");
    assert_int_equal(json_array_size(a.json), 3);
    assert_string_equal(answer_str(&a, "0.id"), "zoo/animal-2");
    answer_clear(&a);
    a = server_get(&server, "/api/models?search=TINY");
    assert_int_equal(json_array_size(a.json), 1);
    answer_clear(&a);
    a = server_get(&server, "/api/models?filter=peft");
    assert_int_equal(json_array_size(a.json), 0);
    answer_clear(&a);
    /* The Link header is followed to the end. */
    char next[512] = "/api/models?author=zoo&limit=2";
    int seen = 0, pages = 0;
    while (*next && pages < 9) {
        a = server_get(&server, next);
        assert_int_equal(a.status, 200);
        seen += (int)json_array_size(a.json);
        pages++;
        const char *link = answer_header(&a, "link");
        const char *p = link ? strstr(link, "/api/models") : NULL;
        snprintf(next, sizeof next, "%.*s", p ? (int)strcspn(p, ">") : 0, p ? p : "");
        answer_clear(&a);
    }
    assert_int_equal(seen, 3);
    assert_int_equal(pages, 2);
    a = server_get(&server, "/api/models?cursor=no/such");
    assert_int_equal(a.status, 400);
    answer_clear(&a);
    for (int i = 0; i < 3; i++) {
        snprintf(body, sizeof body, "/v1/models/zoo/animal-%d", i);
        a = server_delete(&server, body);
        assert_int_equal(a.status, 200);
        answer_clear(&a);
    }
    /* A registered folder is its owner's: it stays. */
    char path[160];
    snprintf(path, sizeof path, "%s/config.json", dir);
    assert_int_equal(access(path, R_OK), 0);
}

static void results_of_a_job_are_hub_models(void **state)
{
    (void)state;
    static const char rows[] = "{\"text\": \"row 1\"}\n{\"text\": \"row 2\"}\n";
    char id[64], body[256], model[128] = "";
    server_upload_ok(&server, "fine-tune", "rows.jsonl", rows, sizeof rows - 1, id);
    snprintf(body, sizeof body, "{\"model\": \"base/tiny\", \"training_file\": \"%s\", "
             "\"hyperparameters\": {\"n_epochs\": 1}}", id);
    struct answer a = server_post(&server, "/v1/fine_tuning/jobs", body);
    assert_int_equal(a.status, 200);
    char path[256];
    snprintf(path, sizeof path, "/v1/fine_tuning/jobs/%s", answer_str(&a, "id"));
    answer_clear(&a);
    for (int i = 0; i < 1000 && !*model; i++) {
        usleep(20000);
        a = server_get(&server, path);
        if (answer_str(&a, "fine_tuned_model"))
            snprintf(model, sizeof model, "%s", answer_str(&a, "fine_tuned_model"));
        answer_clear(&a);
    }
    assert_true(*model);
    /* Both results are hub models: the merged one and the adapter. */
    snprintf(path, sizeof path, "/api/models/%s-adapter", model);
    a = server_get(&server, path);
    assert_int_equal(a.status, 200);
    assert_string_equal(answer_str(&a, "library_name"), "peft");
    assert_string_equal(answer_str(&a, "cardData.base_model"), "base/tiny");
    answer_clear(&a);
    snprintf(path, sizeof path, "/%s-adapter/resolve/main/adapter_config.json", model);
    a = server_get(&server, path);
    assert_int_equal(a.status, 200);
    assert_true(json_is_object(a.json));
    answer_clear(&a);
    snprintf(path, sizeof path, "/%s/resolve/main/model.safetensors", model);
    a = server_call(&server, &(struct call){.method = "HEAD", .path = path});
    assert_int_equal(a.status, 200);
    answer_clear(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_is_found_by_both_spellings_of_its_id),
        cmocka_unit_test(a_model_is_made_of_uploaded_files),
        cmocka_unit_test(a_small_file_has_its_git_id_and_a_large_one_its_sha256),
        cmocka_unit_test(revisions_and_spellings_lead_to_the_same_file),
        cmocka_unit_test(ranges_and_known_etags_save_bytes),
        cmocka_unit_test(what_is_missing_has_its_code),
        cmocka_unit_test(descriptions_have_what_hub_clients_parse),
        cmocka_unit_test(trees_list_files_with_their_ids),
        cmocka_unit_test(the_list_of_models_is_filtered_and_paged),
        cmocka_unit_test(results_of_a_job_are_hub_models),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
