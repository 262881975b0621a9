/* Labelled rows: classes, pairs, where a row is cut, and the batch that a classifier reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/data/labelled.h"
#include "tests/lib/toy_tok.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[64], path[FS_PATH_MAX];
static struct tok *tok;

/* The toy tokenizer with RoBERTa's post-processor: <s> a </s>, and <s> a </s></s> b </s>. */
static int set_up(void **state)
{
    struct err e = ERR_INIT;
    char at[FS_PATH_MAX];
    (void)state;
    mem_hook_libraries();
    snprintf(dir, sizeof dir, "%s/graft-label-XXXXXX",
             access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(dir) || fs_join(path, dir, "rows", &e) ||
        fs_join(at, dir, "tokenizer.json", &e) || toy_tok_write(at, &e))
        return -1;
    json_t *root = jx_load_file(at, 1 << 20, &e);
    if (!root || jx_set(root, "post_processor",
                        jx_pack(&e, "{s:s, s:[s,i], s:[s,i], s:b, s:b}", "type",
                                "RobertaProcessing", "sep", "</s>", TOY_EOS, "cls", "<s>", TOY_BOS,
                                "trim_offsets", 1, "add_prefix_space", 0), &e))
        return -1;
    char *text = jx_dump(root, &e);
    tok = tok_parse(text, strlen(text), &e);
    if (!tok) print_error("%s\n", e.msg);
    mem_free(text);
    json_decref(root);
    return tok ? 0 : -1;
}

static int tear_down(void **state)
{
    struct err e = ERR_INIT;
    (void)state;
    tok_free(tok);
    return fs_rmtree(dir, &e);
}

static struct labelled *open_text(const char *text, int64_t max_length, const json_t *labels,
                                  struct err *e)
{
    const struct labelled_options o = {max_length, labels};
    assert_int_equal(fs_write_file(path, text, strlen(text), e), 0);
    return labelled_open(path, tok, &o, e);
}

/* One character per token: ^ <s>, $ </s>. */
static void expect_ids(const int32_t *ids, int64_t n, const char *want)
{
    char got[128] = "";
    for (int64_t k = 0; k < n; k++)
        got[k] = ids[k] < TOY_A ? "^$[] /"[ids[k]] : (char)('a' + ids[k] - TOY_A);
    assert_string_equal(got, want);
}

static void expect_row(const struct labelled *d, int64_t i, const char *want, int32_t label)
{
    int64_t n;
    int32_t class;
    const int32_t *ids = labelled_get(d, i, &n, &class);
    expect_ids(ids, n, want);
    assert_int_equal(class, label);
}

static void rows_have_their_texts_and_the_class_of_their_label(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct labelled *d = open_text("text,text_pair,label\nab,,yes\nc,de,no\nf,,maybe\ng,h,no\n", 50,
                                   NULL, &e);
    if (!d) fail_msg("%s", e.msg);
    assert_int_equal(labelled_count(d), 4);
    assert_int_equal(json_array_size(labelled_labels(d)), 3);
    expect_row(d, 0, "^ab$", 2); /* maybe, no, yes */
    expect_row(d, 1, "^c$$de$", 1);
    expect_row(d, 2, "^f$", 0);
    expect_row(d, 3, "^g$$h$", 1);
    assert_int_equal(labelled_truncated(d), 0);
    /* The validation file has the classes of the training file. */
    struct labelled *v = open_text("text,label\na,yes\n", 50, labelled_labels(d), &e);
    if (!v) fail_msg("%s", e.msg);
    expect_row(v, 0, "^a$", 2);
    labelled_free(v);
    assert_null(open_text("text,label\na,yes\nb,never\n", 50, labelled_labels(d), &e));
    assert_int_equal(e.code, E_FORMAT);
    assert_non_null(strstr(e.msg, "line 3: label: 'never' is not a label of the training file"));
    labelled_free(d);
    d = open_text("{\"text\":\"a\",\"label\":7}\n{\"text\":\"b\",\"label\":-2}", 50, NULL, &e);
    expect_row(d, 0, "^a$", 1);
    expect_row(d, 1, "^b$", 0);
    labelled_free(d);
}

static void a_long_row_is_cut_inside_its_texts(void **state)
{
    (void)state;
    static const struct {
        const char *text, *pair;
        int64_t max;
        const char *want;
        bool cut;
    } t[] = {
        {"abcd", NULL, 6, "^abcd$", false},      {"abcd", NULL, 4, "^ab$", true},
        {"abcd", "ef", 10, "^abcd$$ef$", false}, {"abcd", "ef", 9, "^abc$$ef$", true},
        {"abcd", "ef", 8, "^ab$$ef$", true},     {"abcd", "ef", 7, "^ab$$e$", true},
        {"ab", "cdefgh", 9, "^ab$$cde$", true},  {"abcdef", "ghijkl", 9, "^ab$$ghi$", true},
        {"abcdef", "", 7, "^abc$$$", true},      {"", "abc", 6, "^$$ab$", true},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct err e = ERR_INIT;
        struct ids ids = {0};
        bool cut;
        assert_int_equal(labelled_encode(tok, t[i].text, t[i].pair, t[i].max, &ids, &cut, &e), 0);
        expect_ids(ids.v, ids.n, t[i].want);
        assert_int_equal(cut, t[i].cut);
        ids_clear(&ids);
    }
    struct err e = ERR_INIT;
    struct ids ids = {0};
    bool cut;
    assert_int_equal(labelled_encode(tok, "a", "b", 4, &ids, &cut, &e), -1);
    assert_int_equal(e.code, E_RANGE);
    assert_string_equal(e.param, "max_length");
    struct labelled *d = open_text("text,label\nabc,x\na,y\n", 4, NULL, &e);
    assert_int_equal(labelled_truncated(d), 1);
    labelled_free(d);
}

static void what_no_classifier_can_use_is_refused(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    assert_null(open_text("text,label\na,x\nb,x\n", 9, NULL, &e));
    assert_int_equal(e.code, E_ARG);
    assert_non_null(strstr(e.msg, "at least two labels"));
    assert_null(open_text("text\na\n", 9, NULL, &e));
    assert_non_null(strstr(e.msg, "line 2: a classifier needs rows of 'text' and 'label', not 't"
           "ext'"));
    assert_null(open_text("text,label\na,1\nb,x\n", 9, NULL, &e));
    assert_non_null(strstr(e.msg, "line 3, column 3: label: must be an integer as in line 2"));
}

static void a_batch_lets_every_token_see_its_whole_row(void **state)
{
    (void)state;
    static const int64_t index[] = {1, 0}, beyond[] = {3};
    struct err e = ERR_INIT;
    struct batch b = {0};
    struct labelled *d = open_text("text,label\nab,x\nabcdefgh,y\nc,x\n", 50, NULL, &e);
    assert_int_equal(labelled_fill(&b, d, index, 2, &e), 0);
    assert_int_equal(b.B, 2);
    assert_int_equal(b.T, 16);
    assert_int_equal(b.target[0], 1);
    assert_int_equal(b.target[1], 0);
    assert_int_equal(b.trained, 2);
    assert_int_equal(b.tokens, 14);
    for (int64_t i = 0; i < 2; i++) {
        int64_t n;
        int32_t class;
        const int32_t *ids = labelled_get(d, index[i], &n, &class);
        for (int64_t t = 0; t < b.T; t++) {
            assert_int_equal(b.ids[i * b.T + t], t < n ? ids[t] : 0);
            assert_int_equal(b.pos[i * b.T + t], t < n ? t : 0);
            assert_int_equal(b.range[2 * (i * b.T + t)], 0);
            assert_int_equal(b.range[2 * (i * b.T + t) + 1], t < n ? n : 0);
        }
    }
    assert_int_equal(labelled_fill(&b, d, beyond, 1, &e), -1);
    assert_int_equal(e.code, E_BUG);
    batch_clear(&b);
    labelled_free(d);
}

static void a_failed_call_leaks_nothing(void **state)
{
    (void)state;
    static const enum fault_class classes[] = {FAULT_FILE, FAULT_MEM};
    struct err e = ERR_INIT;
    const struct labelled_options o = {20, NULL};
    static const char rows[] = "text,text_pair,label\na,b,x\nc,,y\n";
    assert_int_equal(fs_write_file(path, rows, sizeof rows - 1, &e), 0);
    for (int c = 0; c < 2; c++) {
        for (int i = 1, done = 0; !done; i++) {
            size_t before = mem_live();
            fault_arm(classes[c], i, false);
            struct labelled *d = labelled_open(path, tok, &o, &e);
            fault_arm(classes[c], 0, false);
            done = d != NULL;
            if (!d) assert_int_equal(e.code, c ? E_NOMEM : E_IO);
            labelled_free(d);
            assert_int_equal(mem_live(), before);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_have_their_texts_and_the_class_of_their_label),
        cmocka_unit_test(a_long_row_is_cut_inside_its_texts),
        cmocka_unit_test(what_no_classifier_can_use_is_refused),
        cmocka_unit_test(a_batch_lets_every_token_see_its_whole_row),
        cmocka_unit_test(a_failed_call_leaks_nothing),
    };
    return cmocka_run_group_tests_name("labelled", tests, set_up, tear_down);
}
