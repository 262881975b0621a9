/* What the generated samples are too small for: shapes that cross the blocks, tiles and tasks of
 * the CPU kernels, checked like every sample, at every instruction-set level; that an element of
 * a product has the same bytes in whatever tile it falls; that the levels agree bit by bit on the
 * operations marked F_EXACT. */
#include "tests/op/optest.h"

#include "engine/base/mem.h"
#include "engine/cpu/cpu.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

static struct exec *execs[OPTEST_EXECS]; /* of the whole program: threads are slow to start */

static void check(int op, struct op_sample *s)
{
    char shapes[200];
    assert_int_equal(s->err.code, E_OK);
    for (int i = 0; cpu_level(i); i++) {
        struct kernels k = {.name = cpu_level(i)->name, .table = cpu_level(i)->table};
        struct mutant none = {0};
        struct err e = ERR_INIT;
        memcpy(k.exec, execs, sizeof execs);
        if (kernel_check(&k, op, s, &none, &e))
            fail_msg("%s %s (%s): %s", k.name, op_table[op].name, optest_shapes(s, shapes), e.msg);
    }
    sample_clear(s);
}

static struct op_sample sample(uint64_t key, const void *attrs, size_t bytes)
{
    struct op_sample s = {.key = key, .k_red = 1};
    arena_init(&s.arena, 512 << 20);
    sample_attrs(&s, attrs, bytes);
    return s;
}

/* The product is n x m with sums of k terms. */
static const struct shape {
    int64_t n, m, k;
    enum dtype w;
    bool bias, add;
    float alpha;
} shapes[] = {
    {230, 300, 520, DT_F32, true, true, 1},      {57, 30, 1030, DT_BF16, true, false, 0.5f},
    {7, 100, 2100, DT_F16, true, true, 2},       {97, 33, 600, DT_F32, false, true, 1},
    {1, 700, 300, DT_BF16, false, false, 1},     {800, 8, 24, DT_F32, false, true, 0.25f},
    {200, 16, 770, DT_F32, false, false, 1},     {30, 290, 270, DT_F32, true, true, 1},
    {100, 530, 9, DT_F16, false, true, 16},      {48, 257, 257, DT_F32, false, false, 1},
};

static void linear_crosses_its_blocks(void **state)
{
    (void)state;
    for (int i = 0; i < REF_LEN(shapes); i++) {
        const struct shape *p = &shapes[i];
        struct attrs_linear a = {p->alpha, 0};
        struct op_sample s = sample(100 + (uint64_t)i, &a, sizeof a);
        sample_normal(&s, 0, DT_F32, DIMS(p->n, p->k));
        sample_normal(&s, 1, p->w, DIMS(p->m, p->k));
        if (p->bias) sample_normal(&s, 2, DT_F32, DIMS(p->m));
        if (p->add) sample_normal(&s, 3, DT_F32, DIMS(p->n, p->m));
        s.k_red = p->k;
        check(OP_LINEAR, &s);
    }
}

static void linear_dx_crosses_its_blocks(void **state)
{
    (void)state;
    for (int i = 0; i < REF_LEN(shapes); i++) {
        const struct shape *p = &shapes[i];
        struct attrs_linear a = {p->alpha, 0};
        struct op_sample s = sample(200 + (uint64_t)i, &a, sizeof a);
        sample_normal(&s, 0, DT_F32, DIMS(p->n, p->k));
        sample_normal(&s, 1, p->w, DIMS(p->k, p->m));
        s.k_red = p->k;
        check(OP_LINEAR_DX, &s);
    }
}

static void linear_dw_crosses_its_blocks(void **state)
{
    (void)state;
    for (int i = 0; i < REF_LEN(shapes); i++) {
        const struct shape *p = &shapes[i];
        struct attrs_linear a = {p->alpha, 0};
        struct op_sample s = sample(300 + (uint64_t)i, &a, sizeof a);
        sample_normal(&s, 0, DT_F32, DIMS(p->k, p->n));
        sample_normal(&s, 1, DT_F32, DIMS(p->k, p->m));
        s.k_red = p->k;
        check(OP_LINEAR_DW, &s);
    }
}

/* Several documents in a row, each causal; every 50th query sees nothing, every 31st all. */
static void ranges(struct op_sample *s, int i, int64_t B, int64_t T, int64_t S)
{
    struct ref_tensor *r = sample_zeros(s, i, DT_I32, DIMS(B, T, 2));
    for (int64_t k = 0; k < r->count / 2; k++) {
        int64_t t = k % T, key = (t + 1) * S / T - 1;
        r->d[2 * k] = (double)(key / 70 * 70);
        r->d[2 * k + 1] = (double)(key + 1);
        if (t % 50 == 49) r->d[2 * k + 1] = r->d[2 * k];
        if (t % 31 == 30) r->d[2 * k] = 0;
        if (t % 31 == 30) r->d[2 * k + 1] = (double)S;
    }
}

static void attention_crosses_its_tiles(void **state)
{
    (void)state;
    static const struct { int64_t B, T, H, G, S, D; } cases[] = {
        {1, 200, 4, 2, 200, 80}, {1, 97, 2, 2, 333, 36}, {1, 100, 2, 1, 65, 512},
        {3, 1, 6, 2, 300, 64},   {1, 193, 1, 1, 64, 5},  {4, 110, 8, 4, 150, 20},
    };
    for (int i = 0; i < REF_LEN(cases); i++) {
        int64_t B = cases[i].B, T = cases[i].T, H = cases[i].H, G = cases[i].G, S = cases[i].S;
        int64_t D = cases[i].D;
        for (int back = 0; back < 2; back++) {
            struct attrs_attn a = {(float)(1 / sqrt((double)D))};
            struct op_sample s = sample(400 + (uint64_t)i, &a, sizeof a);
            sample_normal(&s, back, DT_F32, DIMS(B, T, H, D));
            sample_normal(&s, back + 1, DT_F32, DIMS(B, S, G, D));
            sample_normal(&s, back + 2, DT_F32, DIMS(B, S, G, D));
            ranges(&s, back + 3, B, T, S);
            s.k_red = S + D;
            if (back) {
                struct ref_call c = {.attrs = s.attrs,
                                     .in = {&s.in[1], &s.in[2], &s.in[3], &s.in[4]}};
                sample_normal(&s, 0, DT_F32, DIMS(B, T, H, D));
                sample_zeros(&s, 5, DT_F32, DIMS(B, T, H, D));
                sample_zeros(&s, 6, DT_F32, DIMS(B, T, H));
                sample_output(&s, ref_attn, &c, 0, 5);
                sample_output(&s, ref_attn, &c, 1, 6);
                s.k_red += T * (H / G);
            }
            check(back ? OP_ATTN_BWD : OP_ATTN, &s);
        }
    }
}

static void linear_ce_crosses_its_tiles(void **state)
{
    (void)state;
    static const struct { int64_t N, C, V; enum dtype w; int keep; } cases[] = {
        {140, 290, 520, DT_F32, 1}, {700, 20, 70, DT_BF16, 3}, {129, 24, 600, DT_F32, 1},
    };
    for (int i = 0; i < REF_LEN(cases); i++) {
        struct attrs_none none = {0};
        struct op_sample s = sample(500 + (uint64_t)i, &none, sizeof none);
        sample_normal(&s, 0, DT_F32, DIMS(cases[i].N, cases[i].C));
        sample_normal(&s, 1, cases[i].w, DIMS(cases[i].V, cases[i].C));
        struct ref_tensor *t = sample_ints(&s, 2, 0, (int)cases[i].V, DIMS(cases[i].N));
        for (int64_t n = 0; n < t->count; n++)
            if (n % cases[i].keep) t->d[n] = -1;
        sample_scalar(&s, 3, 0.01);
        s.k_red = cases[i].C + cases[i].V + cases[i].N;
        check(OP_LINEAR_CE, &s);
    }
}

static void sums_over_rows_cross_their_groups(void **state)
{
    (void)state;
    static const struct { int64_t N, C; } cases[] = {{5000, 10}, {40, 700}, {17, 3}};
    for (int i = 0; i < REF_LEN(cases); i++) {
        struct attrs_none none = {0};
        struct op_sample s = sample(600 + (uint64_t)i, &none, sizeof none);
        int64_t N = cases[i].N, C = cases[i].C;
        sample_normal(&s, 0, DT_F32, DIMS(N, C));
        s.k_red = N;
        check(OP_COLSUM, &s);
        s = sample(610 + (uint64_t)i, &none, sizeof none);
        sample_normal(&s, 0, DT_F32, DIMS(N, C));
        sample_normal(&s, 1, DT_F32, DIMS(N, C));
        sample_normal(&s, 2, DT_F32, DIMS(N));
        s.k_red = N;
        check(OP_RMSNORM_DW, &s);
        s = sample(620 + (uint64_t)i, &none, sizeof none);
        sample_normal(&s, 0, DT_F32, DIMS(N, C));
        sample_scalar(&s, 1, 3);
        s.state = 2;
        check(OP_SUMSQ, &s);
    }
}

/* ---- one run of one kernel, for comparing bytes ---- */

struct bytes {
    struct arena arena;
    struct tensor tin[NODE_IN], tout[NODE_OUT];
    void *in[NODE_IN], *out[NODE_OUT];
};

static void *room(struct bytes *b, int64_t count)
{
    struct err e = ERR_INIT;
    void *p = arena_alloc(&b->arena, (size_t)count * 4 + 64, &e);
    assert_non_null(p);
    memset(p, 0, (size_t)count * 4 + 64);
    return p;
}

static int try_once(const struct cpu_level *level, int op, const struct op_sample *s,
                    struct bytes *b, struct err *e)
{
    const struct tensor *pin[NODE_IN] = {NULL}, *pout[NODE_OUT] = {NULL};
    struct step step = {.attrs = s->attrs};
    struct op_cost cost = {0};
    memset(b, 0, sizeof *b);
    arena_init(&b->arena, 512 << 20);
    for (int i = 0; i < s->nin; i++) {
        const struct ref_tensor *x = &s->in[i];
        if (!x->d) continue;
        b->tin[i] = (struct tensor){.dtype = x->dtype, .rank = x->rank, .count = x->count};
        memcpy(b->tin[i].shape, x->shape, sizeof x->shape);
        b->in[i] = room(b, x->count);
        optest_encode(x->dtype, x->d, x->count, b->in[i]);
        pin[i] = step.tin[i] = &b->tin[i];
        step.in[i] = b->in[i];
    }
    assert_int_equal(op_table[op].shape(s->attrs, pin, b->tout, e), 0);
    for (int j = 0; j < op_table[op].nout; j++) {
        struct tensor *t = &b->tout[j];
        t->count = 1;
        for (int k = 0; k < t->rank; k++) t->count *= t->shape[k];
        bool state = j == 0 && op_table[op].flags & F_STATE;
        b->out[j] = state ? b->in[op_table[op].inplace] : room(b, t->count);
        pout[j] = step.tout[j] = t;
        step.out[j] = b->out[j];
    }
    op_table[op].cost(s->attrs, pin, pout, 3, &cost);
    step.ws = room(b, cost.ws_bytes / 4 + 1);
    step.ws_bytes = cost.ws_bytes;
    execs[2]->seed = s->key;
    execs[2]->rng_step = 3;
    return level->table[op](&step, execs[2], e);
}

static void run_once(const struct cpu_level *level, int op, const struct op_sample *s,
                     struct bytes *b)
{
    struct err e = ERR_INIT;
    if (try_once(level, op, s, b, &e)) fail_msg("%s: %s", op_table[op].name, e.msg);
}

static void an_element_has_the_same_bytes_in_any_tile(void **state)
{
    (void)state;
    enum { N = 1100, M = 300, K = 600, N0 = 491, N1 = 64, M1 = 37 };
    struct attrs_linear a = {0.7f, 0};
    struct op_sample whole = sample(1, &a, sizeof a), part = sample(1, &a, sizeof a);
    struct ref_tensor *x = sample_normal(&whole, 0, DT_F32, DIMS(N, K));
    struct ref_tensor *w = sample_normal(&whole, 1, DT_BF16, DIMS(M, K));
    memcpy(sample_zeros(&part, 0, DT_F32, DIMS(N1, K))->d, x->d + N0 * K, sizeof(double) * N1 * K);
    memcpy(sample_zeros(&part, 1, DT_BF16, DIMS(M1, K))->d, w->d, sizeof(double) * M1 * K);
    for (int i = 0; cpu_level(i); i++) {
        struct bytes all, some;
        run_once(cpu_level(i), OP_LINEAR, &whole, &all);
        run_once(cpu_level(i), OP_LINEAR, &part, &some);
        for (int64_t n = 0; n < N1; n++)
            assert_memory_equal((float *)some.out[0] + n * M1, (float *)all.out[0] + (N0 + n) * M,
                                M1 * sizeof(float));
        arena_clear(&all.arena);
        arena_clear(&some.arena);
    }
    sample_clear(&whole);
    sample_clear(&part);
}

static void levels_agree_on_exact_operations(void **state)
{
    (void)state;
    int ops = 0;
    for (int op = 0; op < OP_COUNT; op++) {
        struct op_sample s;
        struct err e = ERR_INIT;
        ops += (op_table[op].flags & F_EXACT) != 0;
        for (int k = 0; op_table[op].flags & F_EXACT && sample_make(&s, op, k, &e) > 0; k++) {
            struct bytes first, other;
            run_once(cpu_level(0), op, &s, &first);
            for (int i = 1; cpu_level(i); i++) {
                run_once(cpu_level(i), op, &s, &other);
                for (int j = 0; j < op_table[op].nout; j++)
                    assert_memory_equal(first.out[j], other.out[j], first.tout[j].count * 4);
                for (int j = 0; j < s.nin; j++)
                    if (s.state >> j & 1)
                        assert_memory_equal(first.in[j], other.in[j], first.tin[j].count * 4);
                arena_clear(&other.arena);
            }
            arena_clear(&first.arena);
            sample_clear(&s);
        }
    }
    assert_true(ops >= 9);
}

static void bad_indices_are_refused(void **state)
{
    (void)state;
    static const struct { int op, at; } cases[] = {
        {OP_EMBED, 0}, {OP_EMBED_DW, 0}, {OP_ROWS, 1}, {OP_ROWS_DX, 1}, {OP_LINEAR_CE, 2},
        {OP_KV_STORE, 2}, {OP_ATTN, 3}, {OP_ATTN_BWD, 4},
    };
    for (int i = 0; i < REF_LEN(cases); i++) {
        struct op_sample s;
        struct err e = ERR_INIT;
        struct bytes b;
        int k = 0, made;
        /* The first sample that has an index at all. */
        while ((made = sample_make(&s, cases[i].op, k++, &e)) > 0 && !s.in[cases[i].at].count)
            sample_clear(&s);
        assert_int_equal(made, 1);
        struct ref_tensor *idx = &s.in[cases[i].at];
        idx->d[idx->count - 1] = 1 << 30;
        assert_int_equal(try_once(cpu_level(0), cases[i].op, &s, &b, &e), -1);
        assert_int_equal(e.code, E_RANGE);
        arena_clear(&b.arena);
        sample_clear(&s);
    }
}

int main(void)
{
    static const int threads[OPTEST_EXECS] = {1, 2, 3, 7};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_crosses_its_blocks),
        cmocka_unit_test(linear_dx_crosses_its_blocks),
        cmocka_unit_test(linear_dw_crosses_its_blocks),
        cmocka_unit_test(attention_crosses_its_tiles),
        cmocka_unit_test(linear_ce_crosses_its_tiles),
        cmocka_unit_test(sums_over_rows_cross_their_groups),
        cmocka_unit_test(an_element_has_the_same_bytes_in_any_tile),
        cmocka_unit_test(levels_agree_on_exact_operations),
        cmocka_unit_test(bad_indices_are_refused),
    };
    struct err e = ERR_INIT;
    for (int i = 0; i < OPTEST_EXECS; i++) {
        execs[i] = exec_new_cpu(threads[i], &e);
        if (!execs[i]) {
            fprintf(stderr, "%s\n", e.msg);
            return 1;
        }
    }
    int failed = cmocka_run_group_tests_name("blocks", tests, NULL, NULL);
    for (int i = 0; i < OPTEST_EXECS; i++) exec_free(execs[i]);
    return failed;
}
