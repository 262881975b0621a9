/* Model cards that no string can break, and the files that travel with a model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "engine/fmt/card.h"
#include "engine/fmt/hfdir.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64];

static int make_folder(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "%s/graft-card-XXXXXX",
             access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_folder(void **state)
{
    struct err e = ERR_INIT;
    (void)state;
    return fs_rmtree(dir, &e);
}

static char *at(const char *name)
{
    static char path[FS_PATH_MAX];
    struct err e = ERR_INIT;
    assert_int_equal(fs_join(path, dir, name, &e), 0);
    return path;
}

static char *read_all(const char *path)
{
    struct err e = ERR_INIT;
    struct buf b;
    buf_init(&b, 1 << 20);
    assert_int_equal(fs_read_file(path, &b, &e), 0);
    return buf_take(&b);
}

static void put(const char *name, const char *text)
{
    struct err e = ERR_INIT;
    assert_int_equal(fs_write_file(at(name), text, strlen(text), &e), 0);
}

static void a_card_says_what_it_was_given(void **state)
{
    (void)state;
    static const char *const tags[] = {"lora", "graft"};
    static const struct card_row rows[] = {{"method", "lora"}, {"validation loss", "0.5"}};
    struct card c = {.title = "default/mine", .base_model = "default/llama",
                     .library_name = "peft", .pipeline_tag = "text-generation",
                     .license = "apache-2.0", .tags = tags, .ntags = 2, .summary = "An adapter.",
                     .usage = "import peft\n", .rows = rows, .nrows = 2};
    struct err e = ERR_INIT;
    assert_int_equal(card_write(dir, &c, &e), 0);
    char *text = read_all(at("README.md"));
    assert_string_equal(text,
                        "---\n"
                        "base_model: \"default/llama\"\n"
                        "library_name: \"peft\"\n"
                        "pipeline_tag: \"text-generation\"\n"
                        "license: \"apache-2.0\"\n"
                        "tags:\n- \"lora\"\n- \"graft\"\n"
                        "---\n\n"
                        "# default/mine\n\nAn adapter.\n\n"
                        "## Use\n\n```python\nimport peft\n```\n\n"
                        "## How it was made\n\n| | |\n|---|---|\n"
                        "| method | lora |\n| validation loss | 0.5 |\n");
    mem_free(text);
    c = (struct card){.title = "t", .base_model = "b", .library_name = "l", .license = ""};
    assert_int_equal(card_write(dir, &c, &e), 0);
    text = read_all(at("README.md"));
    assert_string_equal(text, "---\nbase_model: \"b\"\nlibrary_name: \"l\"\n---\n\n# t\n\n");
    mem_free(text);
}

static void no_string_escapes_its_place(void **state)
{
    (void)state;
    static const struct card_row rows[] = {{"a|b\nc", "<script>&\x7f"}, {"[x](http://y)", "1. z"}};
    static const char *const tags[] = {"x\"\n- y", "\xc2\x85\xe2\x80\xa8z\\"};
    struct card c = {.title = "# *a* `b`\n---\nlicense: mit", .base_model = "b\": {\n---",
                     .library_name = "l", .tags = tags, .ntags = 2,
                     .summary = "- www.evil.example and me@evil.example ![i](https://e) \xc3\xa9",
                     .usage = "a = '````'", .rows = rows, .nrows = 2};
    struct err e = ERR_INIT;
    assert_int_equal(card_write(dir, &c, &e), 0);
    char *text = read_all(at("README.md"));
    assert_string_equal(text,
                        "---\n"
                        "base_model: \"b\\\": {\\u000a---\"\n"
                        "library_name: \"l\"\n"
                        "tags:\n- \"x\\\"\\u000a- y\"\n- \"\\u0085\\u2028z\\\\\"\n"
                        "---\n\n"
                        "# \\# \\*a\\* \\`b\\` --- license: mit\n\n"
                        "\\- www&#46;evil.example and me&#64;evil.example "
                        "!\\[i\\](https&#58;//e) \xc3\xa9\n\n"
                        "## Use\n\n`````python\na = '````'\n`````\n\n"
                        "## How it was made\n\n| | |\n|---|---|\n"
                        "| a\\|b c | &#60;script&#62;&#38;  |\n"
                        "| \\[x\\](http&#58;//y) | 1\\. z |\n");
    mem_free(text);
    c.title = "\xff";
    assert_int_equal(card_write(dir, &c, &e), -1);
    assert_int_equal(e.code, E_ARG);
    c.title = NULL;
    assert_int_equal(card_write(dir, &c, &e), -1);
    assert_int_equal(e.code, E_BUG);
}

static void a_licence_is_taken_only_where_it_is_plain(void **state)
{
    (void)state;
    static const struct {
        const char *text, *want;
    } rows[] = {
        {"---\nlicense: mit\n---\n", "mit"},
        {"---\ntags:\n- a\nlicense: \"apache-2.0\"\n---\n", "apache-2.0"},
        {"---\nlicense: 'cc-by-4.0'  \r\n---\n", "cc-by-4.0"},
        {"---\ntags: []\n---\nlicense: mit\n", ""},
        {"# Model\nlicense: mit\n---\n", ""},
        {"---\nlicense:\n- mit\n---\n", ""},
        {"---\nlicense: mit or so\n---\n", ""},
        {"---\nlicense: \"mit\n---\n", ""},
        {"---\nlicense_name: mine\n---\n", ""},
        {"---\nlicense: mit", ""},
        {"---\nlicense: mit<script>\n---\n", ""},
        {"", ""},
    };
    struct err e = ERR_INIT;
    char out[64];
    assert_int_equal(fs_unlink(at("README.md"), &e), 0);
    assert_int_equal(card_base_license(dir, out, &e), 0);
    assert_string_equal(out, "");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        put("README.md", rows[i].text);
        assert_int_equal(card_base_license(dir, out, &e), 0);
        assert_string_equal(out, rows[i].want);
    }
}

static void a_model_folder_lacks_nothing_or_says_what(void **state)
{
    (void)state;
    static const char *const order[] = {"config.json", "tokenizer.json", "model.safetensors"};
    struct err e = ERR_INIT;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(hfdir_check(dir, &e), -1);
        assert_int_equal(e.code, E_NOTFOUND);
        assert_non_null(strstr(e.msg, order[i]));
        put(order[i], "{}");
    }
    assert_int_equal(hfdir_check(dir, &e), 0);
    assert_int_equal(fs_unlink(at("model.safetensors"), &e), 0);
    put("model.safetensors.index.json", "{}");
    assert_int_equal(hfdir_check(dir, &e), 0);
    assert_int_equal(hfdir_check(at("config.json"), &e), -1);
}

static void only_the_known_files_travel(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char to[FS_PATH_MAX], copied[FS_PATH_MAX], **names = NULL;
    int n = 0;
    snprintf(to, sizeof to, "%s/to", dir);
    assert_int_equal(fs_mkdirs(to, &e), 0);
    put("config.json", "{\"a\": 1}\n");
    put("tokenizer.json", "{}");
    put("merges.txt", "");
    put("secret.env", "x");
    put("modeling_custom.py", "x");
    assert_int_equal(hfdir_copy(dir, to, &e), 0);
    assert_int_equal(fs_list(to, &names, &n, &e), 0);
    assert_int_equal(n, 3);
    assert_string_equal(names[0], "config.json");
    assert_string_equal(names[1], "merges.txt");
    assert_string_equal(names[2], "tokenizer.json");
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    assert_int_equal(fs_join(copied, to, "config.json", &e), 0);
    char *text = read_all(copied);
    assert_string_equal(text, "{\"a\": 1}\n");
    mem_free(text);
    /* A folder under a known name, and a file too large to be what its name says. */
    assert_int_equal(fs_mkdirs(at("vocab.json"), &e), 0);
    assert_int_equal(hfdir_copy(dir, to, &e), -1);
    assert_int_equal(e.code, E_ARG);
    assert_int_equal(rmdir(at("vocab.json")), 0);
    put("vocab.json", "");
    assert_int_equal(truncate(at("vocab.json"), (64 << 20) + 1), 0);
    assert_int_equal(hfdir_copy(dir, to, &e), -1);
    assert_int_equal(e.code, E_LIMIT);
    assert_int_equal(truncate(at("vocab.json"), 0), 0);
    for (int i = 1, done = 0; !done; i++) { /* every file call failing in turn */
        size_t before = mem_live();
        fault_arm(FAULT_FILE, i, false);
        int rc = hfdir_copy(dir, to, &e);
        done = fault_count(FAULT_FILE) < i;
        fault_arm(FAULT_FILE, 0, false);
        assert_int_equal(rc, done ? 0 : -1);
        assert_int_equal(mem_live(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_card_says_what_it_was_given),
        cmocka_unit_test(no_string_escapes_its_place),
        cmocka_unit_test(a_licence_is_taken_only_where_it_is_plain),
        cmocka_unit_test(a_model_folder_lacks_nothing_or_says_what),
        cmocka_unit_test(only_the_known_files_travel),
    };
    return cmocka_run_group_tests_name("card", tests, make_folder, drop_folder);
}
