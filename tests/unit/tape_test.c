/* engine/core/tape and grad: what is recorded, what is refused, which gradients are asked for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fault.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/core/exec.h"
#include "engine/core/plan.h"
#include "engine/op/op.h"
#include "tests/lib/naive.h"
#include "tests/lib/toy_llama.h"

#include <stdio.h>
#include <string.h>

static const struct toy_config small = {.layers = 3, .width = 32, .heads = 4, .kv_heads = 2,
                                        .ffn = 48, .vocab = 60, .batch = 2, .time = 8,
                                        .train = true};

static struct tape *new_tape(void)
{
    struct err e;
    struct tape *t = tape_new(&e);
    assert_non_null(t);
    return t;
}

static void record(struct toy_llama *m, struct toy_config c)
{
    struct err e = ERR_INIT;
    if (toy_llama_record(m, &c, &e)) fail_msg("%s", e.msg);
}

/* ---- recording ------------------------------------------------------------------------------- */

static void a_wrong_shape_names_the_op_and_the_shapes_and_sticks(void **state)
{
    (void)state;
    struct tape *t = new_tape();
    struct err e = ERR_INIT;
    int x = tape_input(t, "x", DT_F32, 2, (int64_t[]){4, 8});
    int w = tape_input(t, "w", DT_F32, 2, (int64_t[]){16, 9});
    int nodes = t->nnodes;
    assert_int_equal(op_linear(t, x, w, -1, -1, 1.0f), -1);
    assert_int_equal(tape_ok(t, &e), -1);
    assert_int_equal(e.code, E_ARG);
    assert_string_equal(e.msg, "linear(F32[4,8], F32[16,9], none, none): dimension 1 of input 1 "
                               "([MK]) is 9, not 8");
    assert_int_equal(op_add(t, x, x), -1);
    assert_int_equal(tape_input(t, "y", DT_F32, 1, (int64_t[]){4}), -1);
    assert_int_equal(tape_reshape(t, x, 1, (int64_t[]){32}), -1);
    tape_output(t, -1);
    assert_int_equal(t->nnodes, nodes);
    struct err e2 = ERR_INIT;
    assert_int_equal(tape_backward(t, x, &e2), -1);
    assert_string_equal(e2.msg, e.msg); /* the first failure is the one that is told */
    tape_free(t);
}

/* Each case records one op with one thing wrong. */
static int wrong(struct tape *t, int which)
{
    int f48 = tape_input(t, "f48", DT_F32, 2, (int64_t[]){4, 8});
    int f84 = tape_input(t, "f84", DT_F32, 2, (int64_t[]){8, 4});
    int f8 = tape_input(t, "f8", DT_F32, 1, (int64_t[]){8});
    int i4 = tape_input(t, "i4", DT_I32, 1, (int64_t[]){4});
    int i3 = tape_input(t, "i3", DT_I32, 1, (int64_t[]){3});
    int one = tape_input(t, "one", DT_F32, 1, (int64_t[]){1});
    int q = tape_input(t, "q", DT_F32, 4, (int64_t[]){1, 4, 3, 8});
    int k = tape_input(t, "k", DT_F32, 4, (int64_t[]){1, 4, 2, 8});
    int r = tape_input(t, "r", DT_I32, 3, (int64_t[]){1, 4, 2});
    int h = tape_input(t, "h", DT_F32, 3, (int64_t[]){4, 1, 8});
    int image = tape_input(t, "image", DT_F32, 4, (int64_t[]){2, 3, 8, 6});
    const struct attrs_linear wt = {1, 1};
    switch (which) {
    case 0: return op_embed(t, f8, f48);             /* ids must be i32 */
    case 1: return op_linear(t, i4, f48, -1, -1, 1); /* rank and type */
    case 2: return op_linear(t, f48, f48, f8, -1, 1); /* bias of 8 for 4 outputs */
    case 3: return op_linear(t, f48, f84, -1, -1, 1); /* inner sizes */
    case 4: return op_rmsnorm(t, f48, one, 1e-5f);
    case 5: return op_rope(t, h, i3, f8);            /* 3 positions for 4 rows */
    case 6: return op_rope(t, h, i4, f8);            /* 8 frequencies for a head of 8 */
    case 7: return op_attn(t, q, k, k, r, 1);        /* 3 query heads over 2 key heads */
    case 8: return op_attn(t, q, k, q, r, 1);
    case 9: return op_add(t, f48, f84);
    case 10: return op_scale(t, f48, f8, 1);
    case 11: return op_dropout(t, f48, 1.0f, 1);
    case 12: return op_dropout(t, f48, -0.5f, 1);
    case 13: return op_rows(t, f48, f8);
    case 14: return op_linear_ce(t, f48, f48, i3, one, NULL);
    case 15: return op_swiglu(t, f48, f8);
    case 16: return op_sumsq(t, f48, f8);
    case 17: return op_clip(t, f8, 1, NULL);
    case 18: return op_linear(t, f48, -1, -1, -1, 1); /* a needed input left out */
    case 19: return op_add(t, f48, 99);
    case 20: return op_linear_wt(t, f48, f48, -1, -1, &wt); /* [in,out] is 8 x anything */
    case 21: return op_layernorm(t, f48, f8, one, 1e-5f);
    case 22: return op_act(t, f48, ACT_KINDS);
    case 23: return op_slice(t, f48, 5, 4);
    case 24: return op_slice(t, f48, -1, 4);
    case 25: return op_slice(t, f48, 1, INT64_MAX);
    case 26: return op_patches(t, image, 4);         /* 6 is not a multiple of 4 */
    case 27: return op_patches(t, image, 0);
    case 28: return op_prefix(t, f48, image);
    case 29: return op_prefix(t, f84, h);            /* rows of 4 before rows of 8 */
    case 30: return op_ce(t, f48, i3, one, NULL);
    case 31: return op_attn_bias(t, (int[]){q, q, q}, r, f48, 1);
    default: return 0;
    }
}

static void every_rule_refuses_what_does_not_fit(void **state)
{
    (void)state;
    for (int i = 0; i < 32; i++) {
        struct tape *t = new_tape();
        struct err e = ERR_INIT;
        if (wrong(t, i) != -1 || tape_ok(t, &e) == 0) fail_msg("case %d was accepted", i);
        assert_true(e.msg[0] != 0);
        tape_free(t);
    }
}

static void weights_take_any_float_and_the_rest_one_compute_dtype(void **state)
{
    (void)state;
    struct tape *t = new_tape();
    int x = tape_input(t, "x", DT_F32, 2, (int64_t[]){4, 8});
    int b = tape_input(t, "b", DT_BF16, 2, (int64_t[]){3, 8});
    int h = tape_input(t, "h", DT_F16, 2, (int64_t[]){3, 8});
    int y = op_linear(t, x, b, -1, -1, 1);
    assert_true(y >= 0 && op_linear(t, x, h, -1, -1, 1) >= 0);
    assert_int_equal(t->tensors[y].dtype, DT_F32);
    assert_int_equal(t->tensors[y].shape[0], 4);
    assert_int_equal(t->tensors[y].shape[1], 3);
    /* Activations are all f32 or all bf16, and so is what comes out. */
    int c = tape_input(t, "c", DT_BF16, 2, (int64_t[]){4, 8});
    int z = op_linear(t, c, h, -1, -1, 1);
    assert_int_equal(t->tensors[z].dtype, DT_BF16);
    assert_int_equal(t->tensors[op_add(t, b, b)].dtype, DT_BF16);
    assert_int_equal(op_linear(t, c, b, -1, y, 1), -1);
    tape_free(t);
    /* Where no activation goes in, the tape says. */
    t = new_tape();
    t->compute = DT_BF16;
    int ids = tape_input(t, "ids", DT_I32, 1, (int64_t[]){3});
    int image = tape_input(t, "image", DT_F32, 4, (int64_t[]){1, 3, 4, 4});
    b = tape_input(t, "b", DT_BF16, 2, (int64_t[]){3, 8});
    assert_int_equal(t->tensors[op_embed(t, ids, b)].dtype, DT_BF16);
    assert_int_equal(t->tensors[op_patches(t, image, 2)].dtype, DT_BF16);
    /* Statistics, losses and gradients of weights stay f32. */
    int x16 = tape_input(t, "x", DT_BF16, 2, (int64_t[]){4, 8}), out[NODE_OUT];
    const struct attrs_linear a = {1, 0};
    tape_record(t, OP_RMSNORM, NULL, 0, (int[]){x16, tape_input(t, "w", DT_F32, 1,
                (int64_t[]){8})}, 2, out);
    assert_int_equal(t->tensors[out[0]].dtype, DT_BF16);
    assert_int_equal(t->tensors[out[1]].dtype, DT_F32);
    tape_record(t, OP_LINEAR_DW, &a, sizeof a, (int[]){x16, x16}, 2, out);
    assert_int_equal(t->tensors[out[0]].dtype, DT_F32);
    tape_free(t);
    t = new_tape();
    h = tape_input(t, "h", DT_F16, 2, (int64_t[]){3, 8});
    assert_int_equal(op_add(t, h, h), -1);
    tape_free(t);
}

static void a_parameter_has_one_tensor_per_slot(void **state)
{
    (void)state;
    struct tape *t = new_tape();
    struct params ps;
    struct err e = ERR_INIT;
    params_init(&ps);
    struct param *w = params_add(&ps, "w", PARAM_TRAINABLE, 1, (int64_t[]){8}, &e);
    struct param *f = params_add(&ps, "f", PARAM_FROZEN, 1, (int64_t[]){8}, &e);
    int data = tape_param(t, w, SLOT_DATA), grad = tape_param(t, w, SLOT_GRAD);
    assert_int_not_equal(data, grad);
    assert_int_equal(tape_param(t, w, SLOT_DATA), data);
    assert_int_equal(tape_param(t, w, SLOT_GRAD), grad);
    assert_int_not_equal(tape_param(t, f, SLOT_DATA), data);
    assert_int_equal(tape_param(t, f, SLOT_GRAD), -1);
    assert_int_equal(tape_ok(t, &e), -1);
    tape_free(t);
    params_clear(&ps);
}

static void views_share_storage_and_keep_the_count(void **state)
{
    (void)state;
    struct tape *t = new_tape();
    struct err e = ERR_INIT;
    int x = tape_input(t, "x", DT_F32, 2, (int64_t[]){4, 8});
    int v = tape_reshape(t, x, 3, (int64_t[]){2, 2, 8});
    int vv = tape_reshape(t, v, 1, (int64_t[]){32});
    assert_int_equal(tape_reshape(t, x, 2, (int64_t[]){4, 8}), x);
    assert_int_equal(tape_root(t, vv), x);
    assert_int_equal(t->tensors[vv].view_of, x);
    tape_output(t, vv);
    assert_true(t->tensors[x].flags & TENSOR_OUTPUT);
    assert_int_equal(tape_reshape(t, x, 1, (int64_t[]){31}), -1);
    assert_int_equal(tape_ok(t, &e), -1);
    assert_non_null(strstr(e.msg, "F32[4,8] cannot become F32[31]"));
    tape_free(t);
}

static void a_frozen_weight_cannot_be_state(void **state)
{
    (void)state;
    struct tape *t = new_tape();
    struct params ps;
    struct err e = ERR_INIT;
    params_init(&ps);
    struct param *f = params_add(&ps, "f", PARAM_FROZEN, 1, (int64_t[]){1}, &e);
    int x = tape_input(t, "x", DT_F32, 1, (int64_t[]){8});
    assert_int_equal(op_sumsq(t, x, tape_param(t, f, SLOT_DATA)), -1);
    assert_int_equal(tape_ok(t, &e), -1);
    assert_non_null(strstr(e.msg, "frozen"));
    tape_free(t);
    params_clear(&ps);
}

static void absurd_sizes_are_refused(void **state)
{
    (void)state;
    struct tape *t = new_tape();
    struct err e = ERR_INIT;
    const int64_t big = (int64_t)1 << 40;
    assert_int_equal(tape_input(t, "x", DT_F32, 3, (int64_t[]){big, big, big}), -1);
    assert_int_equal(tape_ok(t, &e), -1);
    assert_int_equal(e.code, E_LIMIT);
    tape_free(t);
    t = new_tape();
    assert_int_equal(tape_input(t, "x", DT_F32, 1, (int64_t[]){-1}), -1);
    tape_free(t);
}

static void segments_number_the_blocks_and_may_not_nest(void **state)
{
    (void)state;
    struct toy_llama m;
    record(&m, small);
    int seen = 0;
    for (int i = 0; i < m.tape->nnodes; i++) {
        const struct node *n = &m.tape->nodes[i];
        if (n->segment > seen) assert_int_equal(n->segment, ++seen);
    }
    assert_int_equal(seen, small.layers);
    toy_llama_clear(&m);
    struct tape *t = new_tape();
    struct err e;
    tape_segment_begin(t);
    tape_segment_begin(t);
    assert_int_equal(tape_ok(t, &e), -1);
    tape_free(t);
}

/* ---- which gradients ------------------------------------------------------------------------- */

static int count(const struct tape *t, int op)
{
    int n = 0;
    for (int i = 0; i < t->nnodes; i++) n += t->nodes[i].op == op;
    return n;
}

static void full_training_has_a_weight_gradient_per_matrix(void **state)
{
    (void)state;
    struct toy_llama m;
    record(&m, small);
    assert_int_equal(count(m.tape, OP_LINEAR_DW), 7 * 3); /* the head's is LINEAR_CE's own */
    assert_int_equal(count(m.tape, OP_RMSNORM_DW), 2 * 3 + 1);
    assert_int_equal(count(m.tape, OP_LINEAR_DX), 7 * 3);
    assert_int_equal(count(m.tape, OP_EMBED_DW), 1);
    toy_llama_clear(&m);
}

static void frozen_weights_have_no_gradient_and_nothing_flows_below_the_lowest_adapter(
    void **state)
{
    (void)state;
    struct toy_llama m;
    struct toy_config c = small;
    c.rank = 4;
    record(&m, c);
    struct tape *t = m.tape;
    assert_int_equal(count(t, OP_LINEAR_DW), 2 * 7 * 3); /* lora_A and lora_B, nothing else */
    assert_int_equal(count(t, OP_RMSNORM_DW), 0);
    assert_int_equal(count(t, OP_EMBED_DW), 0);
    /* The input of layer 0's q, k, v wants no gradient: 3 frozen matrices and 3 lora_A less. */
    assert_int_equal(count(t, OP_LINEAR_DX), 3 * 7 * 3 - 2 * 3);
    assert_int_equal(count(t, OP_RMSNORM_DX), 2 * 3); /* all norms but the first */
    for (int i = 0; i < t->nnodes; i++)
        for (int k = 0; k < t->nodes[i].nout; k++) {
            const struct tensor *y = &t->tensors[tape_root(t, t->nodes[i].out[k])];
            assert_true(!y->param || y->param->kind == PARAM_TRAINABLE);
        }
    toy_llama_clear(&m);
}

/* Writers of p's gradient: how many, and whether their bits are right in execution order. */
static int writers(const struct tape *t, struct param *p)
{
    int n = 0;
    for (int i = 0; i < t->nnodes; i++) {
        for (int k = 0; k < t->nodes[i].nout; k++) {
            const struct tensor *y = &t->tensors[tape_root(t, t->nodes[i].out[k])];
            if (y->param != p || y->slot != SLOT_GRAD) continue;
            assert_int_equal(t->nodes[i].accum >> k & 1, n > 0);
            assert_int_equal(t->nodes[i].accum_later >> k & 1, n == 0);
            assert_true(op_table[t->nodes[i].op].flags & F_ACCUM);
            n++;
        }
    }
    return n;
}

static void the_first_writer_of_a_gradient_overwrites_and_later_ones_add(void **state)
{
    (void)state;
    struct toy_llama m;
    struct toy_config c = small;
    c.tied = true;
    record(&m, c);
    for (int i = 0; i < m.params.n; i++) {
        struct param *p = m.params.items[i];
        bool shared = strcmp(p->name, "layers.-1.embed") == 0;
        int want = p->kind != PARAM_TRAINABLE ? 0 : shared ? 2 : 1;
        assert_int_equal(writers(m.tape, p), want);
    }
    toy_llama_clear(&m);
}

static void two_losses_on_one_head_are_ordered_by_execution(void **state)
{
    (void)state;
    struct tape *t = new_tape();
    struct params ps;
    struct err e = ERR_INIT;
    params_init(&ps);
    struct param *w = params_add(&ps, "w", PARAM_TRAINABLE, 2, (int64_t[]){10, 4}, &e);
    int x = tape_input(t, "x", DT_F32, 2, (int64_t[]){6, 4});
    int target = tape_input(t, "target", DT_I32, 1, (int64_t[]){6});
    int weight = tape_input(t, "weight", DT_F32, 1, (int64_t[]){1});
    int a = op_linear_ce(t, x, tape_param(t, w, SLOT_DATA), target, weight, NULL);
    int b = op_linear_ce(t, x, tape_param(t, w, SLOT_DATA), target, weight, NULL);
    assert_int_equal(tape_backward(t, op_add(t, a, b), &e), 0);
    assert_int_equal(writers(t, w), 2); /* checks the bits: the loss recorded first comes first */
    assert_int_equal(count(t, OP_SCALE), 0); /* the cotangent of 1 costs nothing */
    assert_int_equal(tape_backward(t, a, &e), -1);
    tape_free(t);
    params_clear(&ps);
}

static void a_scaled_loss_scales_the_ready_made_gradients(void **state)
{
    (void)state;
    struct tape *t = new_tape();
    struct params ps;
    struct err e = ERR_INIT;
    params_init(&ps);
    struct param *w = params_add(&ps, "w", PARAM_TRAINABLE, 2, (int64_t[]){10, 4}, &e);
    int x = tape_input(t, "x", DT_F32, 2, (int64_t[]){6, 4});
    int target = tape_input(t, "target", DT_I32, 1, (int64_t[]){6});
    int weight = tape_input(t, "weight", DT_F32, 1, (int64_t[]){1});
    int a = op_linear_ce(t, x, tape_param(t, w, SLOT_DATA), target, weight, NULL);
    assert_int_equal(tape_backward(t, op_scale(t, a, -1, 0.5f), &e), 0);
    assert_int_equal(writers(t, w), 1);
    const struct node *last = &t->nodes[t->nnodes - 1];
    assert_int_equal(last->op, OP_SCALE);
    assert_ptr_equal(t->tensors[last->out[0]].param, w);
    tape_free(t);
    params_clear(&ps);
}

static void a_ready_made_gradient_that_others_read_stays_where_it_is(void **state)
{
    (void)state;
    struct tape *t = new_tape();
    struct params ps;
    struct err e = ERR_INIT;
    params_init(&ps);
    struct param *w = params_add(&ps, "w", PARAM_TRAINABLE, 2, (int64_t[]){10, 4}, &e);
    int x = tape_input(t, "x", DT_F32, 2, (int64_t[]){6, 4});
    int target = tape_input(t, "target", DT_I32, 1, (int64_t[]){6});
    int weight = tape_input(t, "weight", DT_F32, 1, (int64_t[]){1});
    int data = tape_param(t, w, SLOT_DATA), dw;
    int loss = op_linear_ce(t, x, data, target, weight, NULL);
    assert_int_equal(tape_grad(t, loss, weight, &data, 1, &dw, &e), 0);
    assert_int_equal(t->nodes[t->tensors[dw].producer].op, OP_SCALE);
    int ready = t->nodes[0].out[2];
    assert_int_equal(tape_backward(t, loss, &e), 0);
    assert_int_equal(t->nodes[0].out[2], ready);
    assert_int_equal(writers(t, w), 1);
    tape_free(t);
    params_clear(&ps);
}

static void the_residual_stream_is_added_up_in_place(void **state)
{
    (void)state;
    for (int rank = 0; rank <= 4; rank += 4) {
        struct toy_llama m;
        struct toy_config c = small;
        c.rank = rank;
        record(&m, c);
        assert_int_equal(count(m.tape, OP_ADD), 0);
        toy_llama_clear(&m);
    }
}

static void a_gradient_belongs_to_the_phase_and_the_segment_of_its_node(void **state)
{
    (void)state;
    struct tape *t = new_tape();
    struct err e = ERR_INIT;
    int x = tape_input(t, "x", DT_F32, 1, (int64_t[]){4}), dx;
    tape_segment_begin(t);
    int y = op_swiglu(t, x, x);
    tape_segment_end(t);
    tape_set_phase(t, PHASE_UPDATE);
    tape_segment_begin(t);
    assert_int_equal(tape_grad(t, y, x, &x, 1, &dx, &e), 0);
    assert_int_equal(t->nnodes, 3); /* swiglu, swiglu_bwd, add of both contributions */
    for (int i = 1; i < 3; i++) {
        assert_int_equal(t->nodes[i].phase, PHASE_STEP);
        assert_int_equal(t->nodes[i].segment, 1);
        assert_true(t->nodes[i].backward);
    }
    assert_int_equal(t->phase, PHASE_UPDATE);
    assert_int_equal(t->segment, 2);
    tape_free(t);
}

static void a_node_says_where_it_stands(void **state)
{
    (void)state;
    struct toy_llama m;
    struct toy_config c = small;
    char where[NODE_TEXT];
    bool seen[3] = {false};
    c.train = true;
    c.rank = 0;
    record(&m, c);
    for (int i = 0; i < m.tape->nnodes; i++) {
        tape_where(m.tape, i, where);
        seen[0] |= !strcmp(where, "linear (forward, block 2 of 3, layers.1.up)");
        seen[1] |= !strcmp(where, "linear_dw (backward, block 1 of 3, gradient of layers.0.q)");
        seen[2] |= !strcmp(where, "sumsq (update, gradient of layers.-1.embed)");
    }
    assert_true(seen[0]);
    assert_true(seen[1]);
    assert_true(seen[2]);
    toy_llama_clear(&m);
}

static void what_cannot_be_differentiated_is_refused(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct tape *t = new_tape();
    int x = tape_input(t, "x", DT_F32, 1, (int64_t[]){8});
    int s = tape_input(t, "s", DT_F32, 1, (int64_t[]){1});
    int y = op_scale(t, x, s, 1), ds;
    assert_int_equal(tape_grad(t, y, x, &s, 1, &ds, &e), -1);
    assert_string_equal(e.msg, "scale has no gradient for input 1 (s)");
    tape_free(t);

    t = new_tape();
    x = tape_input(t, "x", DT_F32, 1, (int64_t[]){1});
    y = op_clip(t, x, 1, NULL);
    assert_int_equal(tape_grad(t, y, x, &x, 1, &ds, &e), -1);
    assert_string_equal(e.msg, "clip has no gradient");
    tape_free(t);

    t = new_tape();
    x = tape_input(t, "x", DT_F32, 1, (int64_t[]){1});
    assert_int_equal(tape_backward(t, op_add(t, x, x), &e), -1);
    assert_non_null(strstr(e.msg, "does not depend on any trainable"));
    tape_free(t);
}

static void an_independent_tensor_has_no_gradient(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct tape *t = new_tape();
    int x = tape_input(t, "x", DT_F32, 1, (int64_t[]){8});
    int z = tape_input(t, "z", DT_F32, 1, (int64_t[]){8});
    int dy = tape_input(t, "dy", DT_F32, 1, (int64_t[]){8});
    int y = op_add(t, x, x), dx[3];
    assert_int_equal(tape_grad(t, y, dy, (int[]){x, z, y}, 3, dx, &e), 0);
    assert_true(dx[0] >= 0);
    assert_int_equal(dx[1], -1);
    assert_int_equal(dx[2], dy);
    tape_free(t);
}

/* ---- failing memory -------------------------------------------------------------------------- */

static int everything(struct err *e)
{
    struct toy_config c = small;
    struct toy_llama m;
    struct plan *p = NULL;
    struct exec *x = NULL;
    int rc = -1;
    c.layers = 2;
    c.rank = 2;
    if (toy_llama_record(&m, &c, e)) return -1;
    if (params_alloc(&m.params, e)) goto out;
    p = plan_make(m.tape, &(struct plan_options){.threads = 2}, e);
    if (!p) goto out;
    static const op_run_fn any[OP_COUNT]; /* no kernels: binding must say so */
    static const struct device nothing = {.name = "naive", .table = any};
    x = exec_new(&nothing, 2, e);
    if (!x) goto out;
    rc = exec_bind(x, p, e);
    if (rc && e->code == E_UNSUPPORTED) rc = 0;
out:
    exec_free(x);
    plan_free(p);
    toy_llama_clear(&m);
    return rc;
}

static void every_failing_allocation_is_reported_and_leaks_nothing(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    if (everything(&e)) fail_msg("%s", e.msg); /* caches of the C library fill up */
    size_t before = mem_live();
    int n = 1;
    for (;; n++) {
        err_clear(&e);
        fault_arm(FAULT_MEM, n, false);
        int rc = everything(&e);
        bool reached = fault_count(FAULT_MEM) >= n;
        fault_arm(FAULT_MEM, 0, false);
        assert_int_equal(mem_live(), before);
        assert_int_equal(rc, reached ? -1 : 0);
        if (!reached) break;
        assert_int_equal(e.code, E_NOMEM);
    }
    print_message("%d allocations failed in turn\n", n - 1);
    assert_true(n > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wrong_shape_names_the_op_and_the_shapes_and_sticks),
        cmocka_unit_test(every_rule_refuses_what_does_not_fit),
        cmocka_unit_test(weights_take_any_float_and_the_rest_one_compute_dtype),
        cmocka_unit_test(a_parameter_has_one_tensor_per_slot),
        cmocka_unit_test(views_share_storage_and_keep_the_count),
        cmocka_unit_test(a_frozen_weight_cannot_be_state),
        cmocka_unit_test(absurd_sizes_are_refused),
        cmocka_unit_test(segments_number_the_blocks_and_may_not_nest),
        cmocka_unit_test(full_training_has_a_weight_gradient_per_matrix),
        cmocka_unit_test(
            frozen_weights_have_no_gradient_and_nothing_flows_below_the_lowest_adapter),
        cmocka_unit_test(the_first_writer_of_a_gradient_overwrites_and_later_ones_add),
        cmocka_unit_test(two_losses_on_one_head_are_ordered_by_execution),
        cmocka_unit_test(a_scaled_loss_scales_the_ready_made_gradients),
        cmocka_unit_test(a_ready_made_gradient_that_others_read_stays_where_it_is),
        cmocka_unit_test(the_residual_stream_is_added_up_in_place),
        cmocka_unit_test(a_gradient_belongs_to_the_phase_and_the_segment_of_its_node),
        cmocka_unit_test(a_node_says_where_it_stands),
        cmocka_unit_test(what_cannot_be_differentiated_is_refused),
        cmocka_unit_test(an_independent_tensor_has_no_gradient),
        cmocka_unit_test(every_failing_allocation_is_reported_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
