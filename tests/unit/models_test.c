/* Models: ids, registering folders, assembling uploads, deleting. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "service/jobs.h"
#include "service/models.h"
#include "service/store.h"
#include "tests/lib/kit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int begin(void **state)
{
    struct kit *k = calloc(1, sizeof *k);
    kit_begin(k);
    kit_open(k);
    *state = k;
    return 0;
}

static int end(void **state)
{
    kit_end(*state);
    free(*state);
    return 0;
}

static void in_root(const struct kit *k, char out[FS_PATH_MAX], const char *rel)
{
    struct err e;
    assert_int_equal(fs_join(out, k->root, rel, &e), 0);
}

static json_t *register_dir(struct kit *k, const char *id, const char *path, struct err *e)
{
    json_t *model = NULL, *body = json_pack("{s:s, s:s?}", "path", path, "id", id);
    int rc = models_create(k->service, body, &model, e);
    json_decref(body);
    return rc ? NULL : model;
}

static void ids_must_be_legal_as_hub_ids(void **state)
{
    (void)state;
    static const char *const good[] = {"a/b", "default/qwen3-0.6b-snell-k3x9", "A_b/c.d-e", "1/2"};
    static const char *const bad[] = {"", "a", "/b", "a/", "a/b/c", "a/-b", "a/b-", "a/.b", "a/b.",
                                      "a/b--c", "a/b..c", "a/b.git", "a b/c", "a/b:c", "../x",
                                      "a/\xc3\xa9", "a/b\n"};
    char longest[200];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) assert_true(models_id_ok(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(models_id_ok(bad[i]));
    memset(longest, 'x', sizeof longest);
    longest[1] = '/';
    longest[2 + 96] = 0;
    assert_true(models_id_ok(longest));
    longest[2 + 96] = 'x';
    longest[2 + 97] = 0;
    assert_false(models_id_ok(longest));
}

static void a_folder_is_registered_without_pickles_and_hidden_files(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    struct model m;
    char text[16] = "", path[FS_PATH_MAX];
    kit_model(k);
    kit_reopen(k);
    assert_int_equal(models_get(k->service, "default/base", &m, &e), 0);
    assert_string_equal(m.kind, "base");
    assert_null(m.parent);
    assert_null(m.job_id);
    assert_int_equal(m.nfiles, 2);
    assert_string_equal(m.files[0].path, "config.json");
    assert_string_equal(m.files[1].path, "model.safetensors");
    assert_int_equal(m.bytes, m.files[0].bytes + 7);
    /* printf 'weights' | sha256sum */
    assert_string_equal(m.files[1].sha256,
                        "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c");
    assert_int_equal(strlen(m.commit), 40);
    assert_null(models_file(&m, "pytorch_model.bin"));
    assert_null(models_file(&m, "../base/config.json"));
    int fd = models_read(&m, models_file(&m, "model.safetensors"), &e);
    assert_int_equal(fs_read(fd, text, 10, &e), 7);
    assert_string_equal(text, "weights");
    fs_close(fd);
    json_t *o = models_json(&m, &e);
    assert_string_equal(json_string_value(json_object_get(o, "owned_by")), "default");
    json_decref(o);
    /* A file that changed on disk is not served under its old hash. */
    in_root(k, path, "models/base/model.safetensors");
    assert_int_equal(fs_write_file(path, "other weights", 13, &e), 0);
    assert_int_equal(models_read(&m, models_file(&m, "model.safetensors"), &e), -1);
    assert_int_equal(e.code, E_CORRUPT);
    models_clear(&m);
    assert_null(register_dir(k, "default/base", k->config.model_roots, &e));
}

static void paths_outside_the_roots_are_refused(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    char inside[FS_PATH_MAX], outside[FS_PATH_MAX], file[FS_PATH_MAX], to[FS_PATH_MAX];
    in_root(k, outside, "elsewhere");
    assert_int_equal(fs_mkdirs(outside, &e), 0);
    fs_join(file, outside, "config.json", &e);
    assert_int_equal(fs_write_file(file, "{}", 2, &e), 0);
    assert_null(register_dir(k, NULL, outside, &e));
    assert_int_equal(e.code, E_NOTFOUND);
    in_root(k, inside, "models/../elsewhere");
    assert_null(register_dir(k, NULL, inside, &e));
    in_root(k, inside, "models-evil"); /* shares the prefix of the root's name */
    assert_int_equal(fs_mkdirs(inside, &e), 0);
    assert_null(register_dir(k, NULL, inside, &e));
    in_root(k, inside, "models/link");
    assert_int_equal(symlink(outside, inside), 0);
    assert_null(register_dir(k, NULL, inside, &e));
    assert_int_equal(e.code, E_NOTFOUND);
    in_root(k, inside, "models/base/stolen.json"); /* a link among the files */
    assert_int_equal(symlink(file, inside), 0);
    in_root(k, inside, "models/base");
    assert_null(register_dir(k, NULL, inside, &e));
    assert_int_equal(e.code, E_NOTFOUND);
    in_root(k, inside, "models/base/stolen.json");
    assert_int_equal(unlink(inside), 0);
    in_root(k, to, "models/base/config.json"); /* a link that stays inside is fine */
    in_root(k, inside, "models/base/copy.json");
    assert_int_equal(symlink(to, inside), 0);
    in_root(k, inside, "models/base");
    json_t *o = register_dir(k, "x/y", inside, &e);
    assert_non_null(o);
    json_decref(o);
    assert_null(register_dir(k, NULL, "models/base", &e));
    assert_int_equal(e.code, E_ARG);
    k->config.model_roots[0] = 0;
    assert_null(register_dir(k, NULL, inside, &e));
    assert_int_equal(e.code, E_ARG);
}

static json_t *assemble(struct kit *k, const char *id, json_t *files, struct err *e)
{
    json_t *model = NULL, *body = json_pack("{s:s?, s:o}", "id", id, "files", files);
    int rc = models_create(k->service, body, &model, e);
    json_decref(body);
    return rc ? NULL : model;
}

static int folders(struct kit *k, const char *rel)
{
    struct err e;
    char dir[FS_PATH_MAX], **names;
    int n;
    in_root(k, dir, rel);
    assert_int_equal(fs_list(dir, &names, &n, &e), 0);
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    return n;
}

static void uploads_become_a_model_that_outlives_them(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    struct model m, folder;
    char text[16] = "";
    json_t *config = kit_upload(k, "config.json", "model", "{\"model_type\": \"fake\"}\n");
    json_t *weights = kit_upload(k, "model.safetensors", "model", "weights");
    json_t *o = assemble(k, "me/mine",
                         json_pack("[{s:s, s:s}, {s:s, s:s}]", "path", "model.safetensors", "file",
                                   kit_id(weights), "path", "config.json", "file", kit_id(config)),
                         &e);
    assert_non_null(o);
    json_decref(o);
    /* The same content as the registered folder: the same commit. */
    kit_model(k);
    assert_int_equal(models_get(k->service, "me/mine", &m, &e), 0);
    assert_int_equal(models_get(k->service, "default/base", &folder, &e), 0);
    assert_string_equal(m.commit, folder.commit);
    assert_string_not_equal(m.dir, folder.dir);
    models_clear(&folder);
    int fd = models_read(&m, models_file(&m, "model.safetensors"), &e);
    assert_int_equal(fs_read(fd, text, 10, &e), 7);
    fs_close(fd);
    models_clear(&m);
    kit_reopen(k); /* the sweep leaves it alone */
    assert_int_equal(folders(k, "data/models"), 1);
    assert_int_equal(models_delete(k->service, "me/mine", &e), 0);
    assert_int_equal(folders(k, "data/models"), 0);
    assert_int_equal(models_delete(k->service, "me/mine", &e), -1);
    assert_int_equal(e.code, E_NOTFOUND);
    json_decref(config);
    json_decref(weights);
}

static void bad_model_bodies_name_the_field_and_leave_nothing(void **state)
{
    struct kit *k = *state;
    json_t *file = kit_upload(k, "config.json", "model", "{}");
    static const struct { const char *body, *param; enum errc code; } rows[] = {
        {"[]", "", E_ARG},
        {"{}", "path", E_ARG},
        {"{\"id\": \"no-slash\", \"path\": \"/x\"}", "id", E_ARG},
        {"{\"id\": \"a/b\", \"paht\": \"/x\"}", "paht", E_ARG},
        {"{\"id\": \"a/b\", \"files\": []}", "path", E_ARG},
        {"{\"id\": \"a/b\", \"path\": 5}", "path", E_ARG},
        {"{\"files\": [{\"path\": \"config.json\", \"file\": \"$\"}]}", "id", E_ARG},
        {"{\"id\": \"a/b\", \"files\": [{\"path\": \"../x.json\", \"file\": \"$\"}]}", "files[0]",
         E_ARG},
        {"{\"id\": \"a/b\", \"files\": [{\"path\": \"/x.json\", \"file\": \"$\"}]}", "files[0]",
         E_ARG},
        {"{\"id\": \"a/b\", \"files\": [{\"path\": \"x/.y\", \"file\": \"$\"}]}", "files[0]",
         E_ARG},
        {"{\"id\": \"a/b\", \"files\": [{\"path\": \"x.bin\", \"file\": \"$\"}]}", "files[0]",
         E_ARG},
        {"{\"id\": \"a/b\", \"files\": [{\"path\": \"a.json\", \"file\": \"$\"}, "
         "{\"path\": \"a.json\", \"file\": \"$\"}]}", "files[1]", E_ARG},
        {"{\"id\": \"a/b\", \"files\": [{\"path\": \"a.json\", \"file\": \"file-x\"}]}", "files[0]",
         E_NOTFOUND},
        {"{\"id\": \"a/b\", \"files\": [{\"path\": \"a.json\", \"file\": \"$\"}]}", "files",
         E_FORMAT}, /* no config.json */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        char body[512];
        size_t n = 0;
        for (const char *p = rows[i].body; *p; p++) {
            if (*p == '$')
                n += (size_t)snprintf(body + n, sizeof body - n, "%s", kit_id(file));
            else
                body[n++] = *p;
        }
        body[n] = 0;
        json_t *v = json_loads(body, 0, NULL), *model = NULL;
        assert_non_null(v);
        assert_int_equal(models_create(k->service, v, &model, &e), -1);
        if (e.code != rows[i].code || strcmp(e.param, rows[i].param) != 0)
            fail_msg("row %zu: %d %s: %s", i, e.code, e.param, e.msg);
        json_decref(v);
    }
    assert_int_equal(folders(k, "data/models"), 0);
    json_decref(file);
}

static void a_model_in_use_stays_and_a_coming_name_is_taken(void **state)
{
    struct kit *k = *state;
    struct err e = ERR_INIT;
    char id[64], path[FS_PATH_MAX], adapter[300];
    kit_model(k);
    kit_job(k, "{}", id);
    assert_int_equal(models_delete(k->service, "default/base", &e), -1);
    assert_int_equal(e.code, E_CONFLICT);
    json_t *job = jobs_get(k->service, id, &e);
    const char *result =
        json_string_value(json_object_get(json_object_get(job, "graft"), "result_id"));
    in_root(k, path, "models/base");
    assert_null(register_dir(k, result, path, &e));
    assert_int_equal(e.code, E_CONFLICT);
    assert_string_equal(e.param, "id");
    snprintf(adapter, sizeof adapter, "%s-adapter", result);
    assert_null(register_dir(k, adapter, path, &e));
    json_decref(job);
    json_decref(jobs_cancel(k->service, id, &e));
    assert_int_equal(models_delete(k->service, "default/base", &e), 0);
    in_root(k, path, "models/base/config.json");
    assert_true(fs_exists(path)); /* a folder of the user is never touched */
}

static void failing_calls_leave_a_whole_model_or_none(void **state)
{
    struct kit *k = *state;
    static const enum fault_class classes[] = {FAULT_FILE, FAULT_SQL, FAULT_MEM};
    struct err e = ERR_INIT;
    json_t *config = kit_upload(k, "config.json", "model", "{\"model_type\": \"fake\"}\n");
    for (int c = 0; c < 3; c++) {
        for (int n = 1;; n++) {
            json_t *files = json_pack("[{s:s, s:s}]", "path", "config.json", "file",
                                      kit_id(config));
            fault_arm(classes[c], n, false);
            json_t *o = assemble(k, "a/b", files, &e);
            int64_t calls = fault_count(classes[c]);
            fault_arm(classes[c], 0, false);
            json_t *list = models_list(k->service, &e);
            assert_int_equal(json_array_size(json_object_get(list, "data")), o != NULL);
            json_decref(list);
            if (o) assert_int_equal(models_delete(k->service, "a/b", &e), 0);
            json_decref(o);
            assert_int_equal(store_check(k->service->store, &e), 0);
            if (folders(k, "data/models")) {
                kit_reopen(k);
                assert_int_equal(folders(k, "data/models"), 0);
            }
            if (calls < n) break;
        }
    }
    json_decref(config);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    mem_hook_libraries();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_must_be_legal_as_hub_ids),
        TEST(a_folder_is_registered_without_pickles_and_hidden_files),
        TEST(paths_outside_the_roots_are_refused),
        TEST(uploads_become_a_model_that_outlives_them),
        TEST(bad_model_bodies_name_the_field_and_leave_nothing),
        TEST(a_model_in_use_stays_and_a_coming_name_is_taken),
        TEST(failing_calls_leave_a_whole_model_or_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
