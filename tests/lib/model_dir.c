#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/buf.h"
#include "engine/base/str.h"
#include "tests/lib/model_dir.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char config[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 8,\n"
    " \"intermediate_size\": 16, \"num_hidden_layers\": 1, \"num_attention_heads\": 2,\n"
    " \"num_key_value_heads\": 1, \"vocab_size\": 264, \"max_position_embeddings\": 64,\n"
    " \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\",\n"
    " \"tie_word_embeddings\": true, \"attention_bias\": false, \"mlp_bias\": false,\n"
    " \"bos_token_id\": 256, \"eos_token_id\": 257, \"torch_dtype\": \"float32\"}\n";

static const struct {
    const char *name;
    int rows, columns; /* rows 0: a vector */
} tensors[] = {
    {"model.embed_tokens.weight", 264, 8},
    {"model.layers.0.input_layernorm.weight", 0, 8},
    {"model.layers.0.mlp.down_proj.weight", 8, 16},
    {"model.layers.0.mlp.gate_proj.weight", 16, 8},
    {"model.layers.0.mlp.up_proj.weight", 16, 8},
    {"model.layers.0.post_attention_layernorm.weight", 0, 8},
    {"model.layers.0.self_attn.k_proj.weight", 4, 8},
    {"model.layers.0.self_attn.o_proj.weight", 8, 8},
    {"model.layers.0.self_attn.q_proj.weight", 8, 8},
    {"model.layers.0.self_attn.v_proj.weight", 4, 8},
    {"model.norm.weight", 0, 8},
};
enum { NTENSORS = sizeof tensors / sizeof *tensors };

static void put_weights(struct buf *b)
{
    struct buf head;
    uint32_t x = 7;
    long at = 0;
    buf_init(&head, 1 << 20);
    for (int i = 0; i < NTENSORS; i++) {
        int rows = tensors[i].rows, columns = tensors[i].columns;
        long bytes = 4L * (rows ? rows : 1) * columns;
        buf_printf(&head, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[", i ? "," : "{",
                   tensors[i].name);
        if (rows) buf_printf(&head, "%d,", rows);
        buf_printf(&head, "%d],\"data_offsets\":[%ld,%ld]}", columns, at, at + bytes);
        at += bytes;
    }
    buf_puts(&head, "}");
    while (head.len % 8) buf_putc(&head, ' ');
    uint64_t n = head.len;
    buf_put(b, &n, sizeof n);
    buf_put(b, head.data, head.len);
    for (int i = 0; i < NTENSORS; i++)
        for (int k = 0; k < (tensors[i].rows ? tensors[i].rows : 1) * tensors[i].columns; k++) {
            x = x * 1664525u + 1013904223u;
            float v = tensors[i].rows ? ((float)(x >> 8) / 16777216.0f - 0.5f) * 0.4f : 1.0f;
            buf_put(b, &v, sizeof v);
        }
    buf_clear(&head);
}

/* The printable stand-in of a byte, as byte-level vocabularies have it. */
static uint32_t stand_in(int byte, int *spare)
{
    if ((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174)
        return (uint32_t)byte;
    return (uint32_t)(256 + (*spare)++);
}

static void put_tokenizer(struct buf *b)
{
    int spare = 0;
    buf_puts(b, "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null,"
                " \"added_tokens\": [");
    for (int i = 0; i < 2; i++)
        buf_printf(b, "%s{\"id\": %d, \"content\": \"%s\", \"single_word\": false,"
                      " \"lstrip\": false, \"rstrip\": false, \"normalized\": false,"
                      " \"special\": true}",
                   i ? ", " : "", 256 + i, i ? "</s>" : "<s>");
    buf_puts(b, "], \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\","
                " \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true},"
                " \"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\","
                " \"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true},"
                " \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null,"
                " \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null,"
                " \"fuse_unk\": false, \"byte_fallback\": false, \"ignore_merges\": false,"
                " \"vocab\": {");
    for (int i = 0; i < 256; i++) {
        char utf8[5];
        utf8[str_utf8_put(stand_in(i, &spare), utf8)] = 0;
        bool escape = utf8[0] == '"' || utf8[0] == '\\';
        buf_printf(b, "%s\"%s%s\": %d", i ? ", " : "", escape ? "\\" : "", utf8, i);
    }
    buf_puts(b, "}, \"merges\": []}}\n");
}

char *model_dir_file(const char *name, size_t *n)
{
    struct buf b;
    buf_init(&b, 1 << 22);
    if (!strcmp(name, "config.json"))
        buf_puts(&b, config);
    else if (!strcmp(name, "tokenizer.json"))
        put_tokenizer(&b);
    else
        put_weights(&b);
    char *p = malloc(b.len + 1);
    assert_non_null(p);
    memcpy(p, b.data, b.len + 1);
    *n = b.len;
    buf_clear(&b);
    return p;
}

void model_dir_write(const char *dir)
{
    static const char *const names[] = {"config.json", "tokenizer.json", "model.safetensors"};
    mkdir(dir, 0700);
    for (int i = 0; i < 3; i++) {
        char path[512];
        size_t n;
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        char *p = model_dir_file(names[i], &n);
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(p, 1, n, f), n);
        fclose(f);
        free(p);
    }
}
