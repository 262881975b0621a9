/* Batches: the padded arrays a step reads, position by position. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "engine/data/dataset.h"
#include "tests/lib/toy_tok.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Rows of 4, 8, 9 and 5 tokens: ^ab$  ^abcdef$  ^abcdefg$  ^ab + c$ */
static const char ROWS[] = "{\"prompt\":\"\",\"completion\":\"ab\"}\n"
                           "{\"prompt\":\"\",\"completion\":\"abcdef\"}\n"
                           "{\"prompt\":\"\",\"completion\":\"abcdefg\"}\n"
                           "{\"prompt\":\"ab\",\"completion\":\"c\"}\n";

static char dir[64];
static struct tok *tok;
static struct dataset *data;

static int set_up(void **state)
{
    struct err e = ERR_INIT;
    char at[FS_PATH_MAX];
    const struct dataset_options o = {100, CHAT_NONE, TOY_EOS};
    (void)state;
    snprintf(dir, sizeof dir, "%s/graft-batch-XXXXXX",
             access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(dir) || fs_join(at, dir, "tokenizer.json", &e) || toy_tok_write(at, &e)) return -1;
    tok = tok_open(at, &e);
    if (!tok || fs_join(at, dir, "rows.jsonl", &e) || fs_write_file(at, ROWS, sizeof ROWS - 1, &e))
        return -1;
    data = dataset_open(at, tok, &o, &e);
    return data ? 0 : -1;
}

static int tear_down(void **state)
{
    struct err e = ERR_INIT;
    (void)state;
    dataset_free(data);
    tok_free(tok);
    return fs_rmtree(dir, &e);
}

/* Every position of b against the examples it was made from. */
static void check_batch(const struct batch *b, const int64_t *index, int64_t n)
{
    int64_t longest = 0, tokens = 0, trained = 0;
    for (int64_t i = 0; i < n; i++) {
        struct example x = dataset_get(data, index[i]);
        if (x.n > longest) longest = x.n;
    }
    assert_int_equal(b->B, n);
    assert_int_equal(b->T, (longest + 7) / 8 * 8);
    for (int64_t i = 0; i < n; i++) {
        struct example x = dataset_get(data, index[i]);
        tokens += x.n;
        for (int64_t t = 0; t < b->T; t++) {
            int64_t at = i * b->T + t;
            bool real = t < x.n, loss = t + 1 < x.n && x.trained[t + 1];
            assert_int_equal(b->ids[at], real ? x.ids[t] : 0);
            assert_int_equal(b->target[at], loss ? x.ids[t + 1] : -1);
            assert_int_equal(b->pos[at], real ? t : 0);
            assert_int_equal(b->range[2 * at], 0);
            assert_int_equal(b->range[2 * at + 1], real ? t + 1 : 0);
            trained += loss;
        }
    }
    assert_int_equal(b->tokens, tokens);
    assert_int_equal(b->trained, trained);
}

static void a_batch_of_one_is_spelled_out(void **state)
{
    (void)state;
    static const int32_t ids[8] = {0, 6, 7, 8, 1, 0, 0, 0};
    static const int32_t target[8] = {-1, -1, 8, 1, -1, -1, -1, -1};
    static const int32_t pos[8] = {0, 1, 2, 3, 4, 0, 0, 0};
    static const int32_t range[16] = {0, 1, 0, 2, 0, 3, 0, 4, 0, 5};
    struct batch b = {0};
    struct err e = ERR_INIT;
    const int64_t index = 3; /* prompt ab, completion c */
    assert_int_equal(batch_fill(&b, data, &index, 1, &e), 0);
    assert_int_equal(b.B, 1);
    assert_int_equal(b.T, 8);
    assert_memory_equal(b.ids, ids, sizeof ids);
    assert_memory_equal(b.target, target, sizeof target);
    assert_memory_equal(b.pos, pos, sizeof pos);
    assert_memory_equal(b.range, range, sizeof range);
    assert_int_equal(b.trained, 2);
    assert_int_equal(b.tokens, 5);
    batch_clear(&b);
    assert_null(b.ids);
}

static void rows_are_padded_to_a_multiple_of_eight(void **state)
{
    (void)state;
    static const struct {
        int64_t index[5];
        int64_t n, T;
    } rows[] = {{{0}, 1, 8},          {{1}, 1, 8},          {{2}, 1, 16},      {{0, 1}, 2, 8},
                {{2, 0, 3}, 3, 16},   {{3, 3, 3}, 3, 8},    {{0, 1, 2, 3, 0}, 5, 16},
                {{1, 1}, 2, 8},       {{1, 0}, 2, 8}};
    struct batch b = {0};
    struct err e = ERR_INIT;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) { /* one batch, larger and smaller */
        assert_int_equal(batch_fill(&b, data, rows[i].index, rows[i].n, &e), 0);
        assert_int_equal(b.T, rows[i].T);
        check_batch(&b, rows[i].index, rows[i].n);
    }
    assert_int_equal(b.cap, 80); /* grew to the largest and stayed */
    batch_clear(&b);
}

static void packed_documents_keep_their_positions_and_see_themselves_alone(void **state)
{
    (void)state;
    static const int32_t ids[16] = {0, 6, 7, 8, 1, 0, 6, 7, 8, 9, 10, 11, 1};
    static const int32_t target[16] = {-1, -1, 8, 1, -1, 6, 7, 8, 9, 10, 11, 1, -1, -1, -1, -1};
    static const int32_t pos[16] = {0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7};
    struct batch b = {0};
    struct err e = ERR_INIT;
    struct example one = dataset_get(data, 3), two = dataset_get(data, 1);
    int32_t all[16];
    uint8_t trained[16];
    const int64_t start[] = {100, 105, 113}; /* as they stand in a dataset */
    memcpy(all, one.ids, 5 * sizeof *all);
    memcpy(all + 5, two.ids, 8 * sizeof *all);
    memcpy(trained, one.trained, 5);
    memcpy(trained + 5, two.trained, 8);
    const struct example x = {all, trained, 13, start, 2};
    assert_int_equal(batch_one(&b, &x, &e), 0);
    assert_memory_equal(b.ids, ids, sizeof ids);
    assert_memory_equal(b.target, target, sizeof target);
    assert_memory_equal(b.pos, pos, sizeof pos);
    for (int t = 0; t < 16; t++) {
        assert_int_equal(b.range[2 * t], t < 5 || t > 12 ? 0 : 5);
        assert_int_equal(b.range[2 * t + 1], t > 12 ? 0 : t + 1);
    }
    assert_int_equal(b.trained, 9);
    assert_int_equal(b.tokens, 13);
    batch_clear(&b);
}

static void wrong_calls_and_failed_growth_leave_the_batch_usable(void **state)
{
    (void)state;
    static const int64_t one[] = {0}, all[] = {0, 1, 2, 3}, beyond[] = {0, 4}, below[] = {-1};
    struct batch b = {0};
    struct err e = ERR_INIT;
    size_t before = mem_live();
    assert_int_equal(batch_fill(&b, data, one, 1, &e), 0);
    assert_int_equal(batch_fill(&b, data, beyond, 2, &e), -1);
    assert_int_equal(e.code, E_BUG);
    assert_int_equal(batch_fill(&b, data, below, 1, &e), -1);
    assert_int_equal(batch_fill(&b, data, one, 0, &e), -1);
    fault_arm(FAULT_MEM, 1, false);
    assert_int_equal(batch_fill(&b, data, all, 4, &e), -1);
    fault_arm(FAULT_MEM, 0, false);
    assert_int_equal(e.code, E_NOMEM);
    check_batch(&b, one, 1);
    assert_int_equal(batch_fill(&b, data, all, 4, &e), 0);
    check_batch(&b, all, 4);
    batch_clear(&b);
    batch_clear(&b);
    assert_int_equal(mem_live(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_batch_of_one_is_spelled_out),
        cmocka_unit_test(rows_are_padded_to_a_multiple_of_eight),
        cmocka_unit_test(packed_documents_keep_their_positions_and_see_themselves_alone),
        cmocka_unit_test(wrong_calls_and_failed_growth_leave_the_batch_usable),
    };
    return cmocka_run_group_tests_name("batch", tests, set_up, tear_down);
}
