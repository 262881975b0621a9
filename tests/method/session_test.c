/* engine/job/session and generate: sampling draws from the model's distribution, and long texts are
 * scored in windows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/mem.h"
#include "engine/engine.h"
#include "engine/job/generate.h"
#include "tests/lib/jobdir.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define OK(call) \
    do { \
        if (call) fail_msg("%s", e.msg); \
    } while (0)

static int begin(void **state)
{
    struct err e = ERR_INIT;
    static struct session s;
    const struct session_options o = {.dir = JOBDIR_MODEL, .threads = 1};
    OK(session_open(&s, &o, &e));
    OK(session_ready(&s, NULL, &e));
    *state = &s;
    return 0;
}

static int end(void **state)
{
    session_close(*state);
    return 0;
}

static void encode(const struct session *s, const char *text, struct ids *out)
{
    struct err e = ERR_INIT;
    OK(tok_encode(s->tok, text, strlen(text), true, out, &e));
}

/* The first token after the prompt, or the end token if there is none. */
static int32_t first(struct session *s, const struct ids *prompt,
                     const struct generate_options *o)
{
    struct err e = ERR_INIT;
    struct ids out = {0};
    OK(generate_ids(s, prompt, o, &out, &e));
    int32_t id = out.n ? out.v[0] : (int32_t)s->model->cfg.eos[0];
    ids_clear(&out);
    return id;
}

static void check_draws(struct session *s, double top_p)
{
    enum { DRAWS = 3000, V = 300 };
    struct err e = ERR_INIT;
    struct ids prompt = {0};
    double p[V], sum = 0, chi = 0, rest = 0, seen = 0;
    int count[V] = {0}, cells = 0;
    int64_t vocab = s->model->cfg.vocab_size;
    assert_true(vocab <= V);
    encode(s, "A teal", &prompt);
    float *logits = session_logits(s, prompt.v, prompt.n, &e);
    const float *last = logits + (prompt.n - 1) * vocab;
    for (int64_t i = 0; i < vocab; i++) sum += p[i] = exp(last[i] / 0.5);
    /* A token is kept if those likelier than it hold less than top_p. */
    double all = sum;
    for (int64_t i = 0; i < vocab; i++) {
        double above = 0;
        for (int64_t k = 0; k < vocab; k++)
            if (last[k] > last[i]) above += exp(last[k] / 0.5) / all;
        if (above < top_p) continue;
        sum -= p[i];
        p[i] = 0;
    }
    for (uint64_t seed = 0; seed < DRAWS; seed++) {
        const struct generate_options o = {.max_tokens = 1, .temperature = 0.5,
                                           .top_p = top_p, .seed = seed};
        count[first(s, &prompt, &o)]++;
    }
    /* Cells with fewer than five expected draws are put together. */
    for (int64_t i = 0; i < vocab; i++) {
        double want = DRAWS * p[i] / sum;
        if (want < 5) {
            rest += want;
            seen += count[i];
            continue;
        }
        chi += (count[i] - want) * (count[i] - want) / want;
        cells++;
    }
    if (rest > 0) chi += (seen - rest) * (seen - rest) / rest;
    /* Chi-square with `cells` degrees of freedom: mean cells, deviation sqrt(2 cells). */
    print_message("chi-square %.1f over %d cells\n", chi, cells);
    assert_true(cells > 20);
    if (top_p < 1 && rest == 0) assert_true(seen == 0); /* nothing outside was drawn */
    assert_true(chi < cells + 4 * sqrt(2.0 * cells));
    mem_free(logits);
    ids_clear(&prompt);
}

static void drawn_tokens_have_the_models_probabilities(void **state)
{
    check_draws(*state, 1);
    check_draws(*state, 0.5);
}

static void top_p_keeps_only_the_likeliest_tokens(void **state)
{
    struct session *s = *state;
    struct err e = ERR_INIT;
    struct ids prompt = {0};
    int64_t vocab = s->model->cfg.vocab_size;
    encode(s, "A teal", &prompt);
    float *logits = session_logits(s, prompt.v, prompt.n, &e);
    const float *last = logits + (prompt.n - 1) * vocab;
    double sum = 0;
    for (int64_t i = 0; i < vocab; i++) sum += exp(last[i]);
    const struct generate_options greedy = {.max_tokens = 1, .top_p = 1};
    int32_t best = first(s, &prompt, &greedy);
    for (int64_t i = 0; i < vocab; i++) assert_true(last[i] <= last[best]);
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct generate_options o = {.max_tokens = 1, .temperature = 1, .top_p = 0, .seed = seed};
        assert_int_equal(first(s, &prompt, &o), best);
        o.top_p = 0.3;
        int32_t id = first(s, &prompt, &o);
        double above = 0; /* probability of what is strictly likelier */
        for (int64_t i = 0; i < vocab; i++)
            if (last[i] > last[id]) above += exp(last[i]) / sum;
        assert_true(above < 0.3);
    }
    mem_free(logits);
    ids_clear(&prompt);
}

static void an_answer_stops_at_the_models_length(void **state)
{
    struct session *s = *state;
    struct err e = ERR_INIT;
    struct ids prompt = {0}, out = {0};
    const struct generate_options o = {.max_tokens = 1000, .temperature = 3, .top_p = 1, .seed = 1};
    char text[70];
    encode(s, "A cat of plum and gold sat on a lamp at a door, and a moon", &prompt);
    OK(generate_ids(s, &prompt, &o, &out, &e));
    assert_true(prompt.n + out.n <= 64);
    memset(text, 'x', sizeof text);
    ids_clear(&prompt);
    OK(tok_encode(s->tok, text, sizeof text, true, &prompt, &e));
    assert_int_equal(generate_ids(s, &prompt, &o, &out, &e), -1);
    assert_int_equal(e.code, E_ARG);
    assert_string_equal(e.param, "prompt");
    ids_clear(&prompt);
    ids_clear(&out);
}

static void a_long_text_is_scored_in_windows(void **state)
{
    struct session *s = *state;
    struct err e = ERR_INIT;
    char text[151];
    double whole, sum = 0;
    int64_t n;
    struct ids ids = {0};
    for (int i = 0; i < 150; i++) text[i] = "a red boat. "[i % 12];
    text[150] = 0;
    OK(session_score(s, text, &whole, &n, &e));
    /* 151 tokens in windows of 64, 64 and 23: the first of each is not predicted. */
    assert_int_equal(n, 63 + 63 + 22);
    encode(s, text, &ids);
    for (int64_t from = 0; from < ids.n; from += 64) {
        int64_t k = ids.n - from < 64 ? ids.n - from : 64, vocab = s->model->cfg.vocab_size;
        float *logits = session_logits(s, ids.v + from, k, &e);
        for (int64_t t = 0; t + 1 < k; t++) {
            double z = 0;
            for (int64_t v = 0; v < vocab; v++) z += exp(logits[t * vocab + v]);
            sum += log(z) - logits[t * vocab + ids.v[from + t + 1]];
        }
        mem_free(logits);
    }
    assert_true(fabs(whole - sum / (double)n) < 1e-5);
    assert_int_equal(session_score(s, "", &whole, &n, &e), -1);
    assert_string_equal(e.param, "text");
    ids_clear(&ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(drawn_tokens_have_the_models_probabilities),
        cmocka_unit_test(top_p_keeps_only_the_likeliest_tokens),
        cmocka_unit_test(an_answer_stops_at_the_models_length),
        cmocka_unit_test(a_long_text_is_scored_in_windows),
    };
    return cmocka_run_group_tests_name("session", tests, begin, end);
}
