/* Datasets: which tokens a row becomes, which of them are trained, and how rows are split off. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "engine/base/rng.h"
#include "engine/data/dataset.h"
#include "tests/lib/toy_tok.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[64], path[FS_PATH_MAX];
static struct tok *tok;

static int set_up(void **state)
{
    struct err e = ERR_INIT;
    char at[FS_PATH_MAX];
    (void)state;
    mem_hook_libraries();
    snprintf(dir, sizeof dir, "%s/graft-data-XXXXXX",
             access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(dir) || fs_join(path, dir, "rows.jsonl", &e) ||
        fs_join(at, dir, "tokenizer.json", &e) || toy_tok_write(at, &e))
        return -1;
    tok = tok_open(at, &e);
    if (!tok) print_error("%s\n", e.msg);
    return tok ? 0 : -1;
}

static int tear_down(void **state)
{
    struct err e = ERR_INIT;
    (void)state;
    tok_free(tok);
    return fs_rmtree(dir, &e);
}

static struct dataset *open_text(const char *text, int64_t max_length, enum chat_template chat,
                                 int32_t eos, struct err *e)
{
    const struct dataset_options o = {max_length, chat, eos};
    assert_int_equal(fs_write_file(path, text, strlen(text), e), 0);
    return dataset_open(path, tok, &o, e);
}

static struct dataset *must_open(const char *text, int64_t max_length, enum chat_template chat)
{
    struct err e = ERR_INIT;
    struct dataset *d = open_text(text, max_length, chat, TOY_EOS, &e);
    if (!d) print_error("%s: %s\n", text, e.msg);
    assert_non_null(d);
    return d;
}

/* One character per token: ^ <s>, $ </s>, [ <|im_start|>, ] <|im_end|>, / newline. */
static void expect_row(const struct dataset *d, int64_t i, const char *ids, const char *trained)
{
    struct example x = dataset_get(d, i);
    char got[128] = "", marks[128] = "";
    assert_true(x.n < 128);
    for (int64_t k = 0; k < x.n; k++) {
        got[k] = x.ids[k] < TOY_A ? "^$[] /"[x.ids[k]] : (char)('a' + x.ids[k] - TOY_A);
        marks[k] = x.trained[k] ? '1' : '.';
    }
    assert_string_equal(got, ids);
    assert_string_equal(marks, trained);
}

static void text_rows_train_everything_but_the_first_token(void **state)
{
    (void)state;
    struct dataset *d = must_open("{\"text\":\"ab c\"}\n{\"text\":\"z\"}\n", 100, CHAT_NONE);
    assert_int_equal(dataset_count(d), 2);
    expect_row(d, 0, "^ab c$", ".11111");
    expect_row(d, 1, "^z$", ".11");
    assert_int_equal(dataset_tokens(d), 9);
    assert_int_equal(dataset_truncated(d) + dataset_skipped(d), 0);
    dataset_free(d);
}

static void completion_rows_train_the_completion_and_its_end(void **state)
{
    (void)state;
    struct dataset *d = must_open("{\"prompt\":\"ab\",\"completion\":\"c\"}\n"
                                  "{\"prompt\":\"\",\"completion\":\"cd\"}\n"
                                  "{\"prompt\":\"a\",\"completion\":\"c</s>\"}\n", 100, CHAT_NONE);
    expect_row(d, 0, "^abc$", "...11");
    expect_row(d, 1, "^cd$", ".111");
    expect_row(d, 2, "^ac$", "..11"); /* the row has its own end */
    dataset_free(d);
}

static void without_an_end_token_none_is_put(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct dataset *d = open_text("{\"text\":\"ab\"}", 100, CHAT_NONE, -1, &e);
    assert_non_null(d);
    expect_row(d, 0, "^ab", ".11");
    dataset_free(d);
}

static void conversations_train_the_answers_that_have_weight(void **state)
{
    (void)state;
    struct dataset *d = must_open(
        "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},"
        "{\"role\":\"assistant\",\"content\":\"ab\"}]}\n"
        "{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\",\"weight\":0},"
        "{\"role\":\"user\",\"content\":\"q\"},"
        "{\"role\":\"assistant\",\"content\":\"y\",\"weight\":1}]}\n", 200, CHAT_CHATML);
    assert_int_equal(dataset_count(d), 2);
    expect_row(d, 0, "[user/q]/[assistant/ab]/", "....................111.");
    expect_row(d, 1, "[assistant/x]/[user/q]/[assistant/y]/",
               "..................................11.");
    dataset_free(d);
}

static void every_shape_and_container_gives_the_same_rows(void **state)
{
    (void)state;
    static const char *const talks[] = {
        "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},"
        "{\"role\":\"assistant\",\"content\":\"ab\"}]}",
        "{\"conversations\":[{\"from\":\"human\",\"value\":\"q\"},{\"from\":\"gpt\",\"value\":\""
        "ab\"}]}",
        "{\"instruction\":\"q\",\"input\":\"\",\"output\":\"ab\"}",
        "instruction,output\nq,ab\n",
        "conversations\n\"[{\"\"from\"\":\"\"human\"\",\"\"value\"\":\"\"q\"\"},"
        "{\"\"from\"\":\"\"gpt\"\",\"\"value\"\":\"\"ab\"\"}]\"\n"};
    struct err e = ERR_INIT;
    for (size_t i = 0; i < sizeof talks / sizeof *talks; i++) {
        bool chat = false;
        struct dataset *d = must_open(talks[i], 100, CHAT_CHATML);
        expect_row(d, 0, "[user/q]/[assistant/ab]/", "....................111.");
        dataset_free(d);
        assert_int_equal(dataset_is_chat(path, &chat, &e), 0);
        assert_true(chat);
    }
    bool chat = true;
    struct dataset *d = must_open("prompt,completion\na,\"b\nc\"\n", 100, CHAT_NONE);
    expect_row(d, 0, "^ab/c$", "..1111");
    dataset_free(d);
    assert_int_equal(dataset_is_chat(path, &chat, &e), 0);
    assert_false(chat);
    assert_null(open_text("text,label\na,b\n", 100, CHAT_NONE, 1, &e));
    assert_non_null(strstr(e.msg, "line 2: the rows have labels"));
    assert_null(open_text("text\na\n\"b", 100, CHAT_NONE, 1, &e));
    assert_non_null(strstr(e.msg, "line 3, column 1: this quote is never closed"));
}

static void conversations_without_a_template_say_what_to_set(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    assert_null(open_text("{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"}]}", 99,
                          CHAT_NONE, 1, &e));
    assert_int_equal(e.code, E_ARG);
    assert_string_equal(e.param, "chat_template");
    assert_non_null(strstr(e.msg, "chatml"));
    assert_non_null(strstr(e.msg, "line 1"));
}

static void long_rows_are_cut_and_untrained_ones_left_out(void **state)
{
    (void)state;
    static const char rows[] = "{\"prompt\":\"abc\",\"completion\":\"xyz\"}\n"
                               "{\"prompt\":\"abcdefgh\",\"completion\":\"x\"}\n"
                               "{\"prompt\":\"a\",\"completion\":\"x\"}\n";
    static const struct {
        int64_t max_length, count, truncated, skipped, tokens;
    } want[] = {{100, 3, 0, 0, 23}, {11, 3, 0, 0, 23}, {10, 3, 1, 0, 22}, {9, 2, 1, 1, 12},
                {8, 2, 1, 1, 12},   {7, 2, 2, 1, 11},  {5, 2, 2, 1, 9},   {4, 1, 2, 2, 4},
                {3, 1, 3, 2, 3}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        struct dataset *d = must_open(rows, want[i].max_length, CHAT_NONE);
        assert_int_equal(dataset_count(d), want[i].count);
        assert_int_equal(dataset_truncated(d), want[i].truncated);
        assert_int_equal(dataset_skipped(d), want[i].skipped);
        assert_int_equal(dataset_tokens(d), want[i].tokens);
        if (want[i].max_length == 5) expect_row(d, 0, "^abcx", "....1");
        if (want[i].max_length == 4) expect_row(d, 0, "^ax$", "..11");
        dataset_free(d);
    }
    struct err e = ERR_INIT;
    assert_null(open_text(rows, 2, CHAT_NONE, TOY_EOS, &e));
    assert_int_equal(e.code, E_ARG);
    assert_non_null(strstr(e.msg, "none of the 3 rows"));
    assert_null(open_text(rows, 1, CHAT_NONE, TOY_EOS, &e));
    assert_int_equal(e.code, E_RANGE);
    assert_string_equal(e.param, "max_length");
}

static void the_first_problem_of_a_file_is_its_error(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    size_t before = mem_live();
    assert_null(open_text("{\"text\":\"ab\"}\n{\"text\":3}\n{\"text\":\"\"}", 99, CHAT_NONE, 1,
                          &e));
    assert_int_equal(e.code, E_FORMAT);
    assert_non_null(strstr(e.msg, "rows.jsonl: line 2, column 9: text: must be a string"));
    assert_null(open_text("", 99, CHAT_NONE, 1, &e));
    assert_int_equal(e.code, E_FORMAT);
    assert_non_null(strstr(e.msg, "no rows"));
    assert_int_equal(mem_live(), before);
}

/* Row i is the letters of i in base 26, so that a row tells its number. */
static struct dataset *numbered(int64_t n)
{
    struct err e = ERR_INIT;
    struct buf b;
    buf_init(&b, 1 << 20);
    for (int64_t i = 0; i < n; i++)
        buf_printf(&b, "{\"text\":\"%c%c%.*s\"}\n", (char)('a' + i / 26 % 26), (char)('a' + i % 26),
                   (int)(i % 7), "zzzzzzz");
    assert_int_equal(buf_ok(&b, &e), 0);
    struct dataset *d = must_open(buf_str(&b), 100, CHAT_NONE);
    buf_clear(&b);
    assert_int_equal(dataset_count(d), n);
    return d;
}

static int64_t number_of(const struct dataset *d, int64_t i)
{
    struct example x = dataset_get(d, i);
    int64_t v = 26 * (x.ids[1] - TOY_A) + x.ids[2] - TOY_A;
    assert_int_equal(x.n, 4 + v % 7);
    assert_int_equal(x.ids[x.n - 1], TOY_EOS);
    assert_int_equal(x.trained[0], 0);
    for (int64_t k = 1; k < x.n; k++) assert_int_equal(x.trained[k], 1);
    return v;
}

static void a_split_takes_the_rows_that_the_seed_says(void **state)
{
    (void)state;
    static const struct {
        int64_t n;
        double fraction;
        int64_t k;
    } rows[] = {{100, 0.1, 10}, {100, 0.004, 1}, {100, 0.996, 99}, {100, 0.5, 50}, {2, 0.5, 1},
                {2, 0.01, 1},   {3, 0.99, 2},    {37, 0.25, 9},    {10, 0.25, 3}};
    struct err e = ERR_INIT;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int64_t n = rows[i].n, k = rows[i].k;
        struct dataset *d = numbered(n);
        int64_t tokens = dataset_tokens(d);
        struct dataset *v = dataset_split(d, rows[i].fraction, 42 + i, &e);
        assert_non_null(v);
        assert_int_equal(dataset_count(v), k);
        assert_int_equal(dataset_count(d), n - k);
        assert_int_equal(dataset_tokens(d) + dataset_tokens(v), tokens);
        char taken[100] = {0};
        for (int64_t p = n - k; p < n; p++) taken[rng_permute(42 + i, RNG_SPLIT, n, p)] = 1;
        int64_t at_v = 0, at_d = 0;
        for (int64_t r = 0; r < n; r++)
            assert_int_equal(taken[r] ? number_of(v, at_v++) : number_of(d, at_d++), r);
        dataset_free(v);
        dataset_free(d);
    }
}

static void a_split_that_cannot_be_made_changes_nothing(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct dataset *d = numbered(50), *one = numbered(1);
    static const double bad[] = {0, 1, -0.5, 1.5, 0.0 / 1e-300};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_null(dataset_split(d, bad[i], 1, &e));
        assert_int_equal(e.code, E_RANGE);
    }
    assert_null(dataset_split(one, 0.5, 1, &e));
    assert_int_equal(e.code, E_ARG);
    for (int n = 1, done = 0; !done; n++) {
        fault_arm(FAULT_MEM, n, false);
        struct dataset *v = dataset_split(d, 0.3, 7, &e);
        done = v != NULL;
        fault_arm(FAULT_MEM, 0, false);
        if (done) {
            assert_true(n > 2);
            dataset_free(v);
            break;
        }
        assert_int_equal(e.code, E_NOMEM);
        assert_int_equal(dataset_count(d), 50);
        for (int64_t r = 0; r < 50; r++) assert_int_equal(number_of(d, r), r);
    }
    dataset_free(d);
    dataset_free(one);
}

static void a_failed_call_while_opening_leaks_nothing(void **state)
{
    (void)state;
    static const enum fault_class classes[] = {FAULT_FILE, FAULT_MEM};
    static const char rows[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},"
                               "{\"role\":\"assistant\",\"content\":\"ab\"}]}\n";
    const struct dataset_options o = {100, CHAT_CHATML, TOY_EOS};
    struct err e = ERR_INIT;
    assert_int_equal(fs_write_file(path, rows, sizeof rows - 1, &e), 0);
    for (int c = 0; c < 2; c++) {
        for (int n = 1, done = 0; !done; n++) {
            size_t before = mem_live();
            fault_arm(classes[c], n, false);
            struct dataset *d = dataset_open(path, tok, &o, &e);
            done = fault_count(classes[c]) < n;
            fault_arm(classes[c], 0, false);
            if (!d) assert_int_equal(e.code, c ? E_NOMEM : E_IO);
            else assert_int_equal(dataset_count(d), 1);
            dataset_free(d);
            assert_int_equal(mem_live(), before);
            assert_true(d || !done);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_rows_train_everything_but_the_first_token),
        cmocka_unit_test(completion_rows_train_the_completion_and_its_end),
        cmocka_unit_test(without_an_end_token_none_is_put),
        cmocka_unit_test(conversations_train_the_answers_that_have_weight),
        cmocka_unit_test(every_shape_and_container_gives_the_same_rows),
        cmocka_unit_test(conversations_without_a_template_say_what_to_set),
        cmocka_unit_test(long_rows_are_cut_and_untrained_ones_left_out),
        cmocka_unit_test(the_first_problem_of_a_file_is_its_error),
        cmocka_unit_test(a_split_takes_the_rows_that_the_seed_says),
        cmocka_unit_test(a_split_that_cannot_be_made_changes_nothing),
        cmocka_unit_test(a_failed_call_while_opening_leaks_nothing),
    };
    return cmocka_run_group_tests_name("dataset", tests, set_up, tear_down);
}
