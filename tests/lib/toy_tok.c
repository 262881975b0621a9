#include "tests/lib/toy_tok.h"

#include "engine/base/buf.h"
#include "engine/base/fs.h"

static const char *const special[TOY_SPECIAL] = {"<s>", "</s>", "<|im_start|>", "<|im_end|>"};
/* One piece per character: space is U+0120 and newline U+010A in byte-level vocabularies. */
static const char *const pieces[] = {"\xc4\xa0", "\xc4\x8a"};

int toy_tok_write(const char *path, struct err *e)
{
    struct buf b;
    buf_init(&b, 1 << 16);
    buf_puts(&b, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[");
    for (int i = 0; i < TOY_SPECIAL; i++)
        buf_printf(&b, "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,"
                   "\"rstrip\":false,\"normalized\":false,\"special\":true}",
                   i ? "," : "", i, special[i]);
    buf_puts(&b, "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\","
             "\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},"
             "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
             "{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
             "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":["
             "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},"
             "{\"Sequence\":{\"id\":\"B\",\"type_id\":1}}],"
             "\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[0],\"tokens\":[\"<s>\"]}}},"
             "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,"
             "\"use_regex\":true},\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
             "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,"
             "\"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{");
    for (int i = 0; i < TOY_SPECIAL; i++) buf_printf(&b, "\"%s\":%d,", special[i], i);
    for (int i = 0; i < 2; i++) buf_printf(&b, "\"%s\":%d,", pieces[i], TOY_SPACE + i);
    for (char c = 'a'; c <= 'z'; c++)
        buf_printf(&b, "\"%c\":%d%s", c, TOY_A + c - 'a', c < 'z' ? "," : "");
    buf_puts(&b, "},\"merges\":[]}}");
    int rc = buf_ok(&b, e) ? -1 : fs_write_file(path, b.data, b.len, e);
    buf_clear(&b);
    return rc;
}
