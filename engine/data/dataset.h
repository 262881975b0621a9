/* dataset.h: text data from JSONL or CSV: check, tokenise, order, and cut into batches.
 *
 * One shape of rows per file (rows.h). Loss is on completions and assistant turns only; on
 * everything for "text".
 *   text        special(text) + eos
 *   completion  special(prompt) then completion (encoded without special tokens) + eos; prompt not
 *               trained
 *   messages, alpaca, sharegpt   by chat template (chat.h)
 * eos is not put after a row that already ends in it. A row longer than max_length is cut at its
 * end and counted; a row without a trained token left is skipped and counted. Strict UTF-8 (a byte
 * order mark at the start is skipped), LF or CRLF, no NUL, line <= 4 MiB, depth <= 32, duplicate
 * keys refused; blank lines are allowed at the end only. rows.h has the rules of a row.
 */
#ifndef GRAFT_DATASET_H
#define GRAFT_DATASET_H

#include "engine/tok/chat.h"
#include "engine/tok/tok.h"

#include <jansson.h>
#include <stdint.h>

struct dataset_options {
    int64_t max_length;          /* tokens, >= 2 */
    enum chat_template chat;     /* CHAT_NONE: "messages" rows are refused with what to set */
    int32_t eos;                 /* -1: none is appended */
};

/* Every problem of a file at once, the first 50 in full (engine_check_file's report):
 * {"ok", "format": a name of rows_shape_name | null, "container": "jsonl" | "csv", "rows",
 *  "problems": [{"line", "column", "field", "reason"}], "more"}, of shape "label" also "labels".
 * Lines and columns (bytes) count from 1; field is "" for a row as a whole. NULL only if the file
 * cannot be read. Needs no tokenizer, and memory for the longest line only. */
json_t *dataset_check(const char *path, struct err *e);
/* The same through a tokenizer: what a row cannot say in it is a problem too. An error that names a
 * parameter is the caller's. Reads the first `show` rows that can be trained on, or, with 0, all.
 *   + "max_seq_length", "chat_template" (null: none), "num_tokens", "num_trained_tokens",
 *     "longest", "rows_truncated", "tokens_truncated", "rows_skipped"
 *   + if show > 0: "data": [{"line", "tokens" (as the vocabulary writes them), "ids", "labels"
 *     (-100: not trained), "trained_spans": [[from, to)], "num_tokens", "num_trained_tokens",
 *     "truncated"}] */
json_t *dataset_preview(const char *path, const struct tok *t, const struct dataset_options *o,
                        int64_t show, struct err *e);
/* Whether the rows are conversations, by the first that has a shape. */
int dataset_is_chat(const char *path, bool *yes, struct err *e);

/* One row of a batch: a document, or several packed end to end that do not see each other. */
struct example {
    const int32_t *ids;     /* [n] */
    const uint8_t *trained; /* [n] 1: predicting this token carries loss (never for the first of a
                               document) */
    int64_t n;
    const int64_t *start;   /* [docs + 1] document k is [start[k], start[k + 1]) - start[0]; NULL:
                               one document */
    int64_t docs;
};

struct dataset;
/* The whole file, tokenised. The first problem of the file is the error (E_FORMAT, with line and
 * column); E_ARG if no row is left. */
struct dataset *dataset_open(const char *path, const struct tok *t,
                             const struct dataset_options *o, struct err *e);
void dataset_free(struct dataset *d);
int64_t dataset_count(const struct dataset *d);     /* rows to train on */
int64_t dataset_documents(const struct dataset *d); /* rows of the file that are in them */
struct example dataset_get(const struct dataset *d, int64_t i);
int64_t dataset_truncated(const struct dataset *d); /* rows of the file that were cut */
int64_t dataset_cut_tokens(const struct dataset *d); /* what was cut off them */
int64_t dataset_skipped(const struct dataset *d);
int64_t dataset_tokens(const struct dataset *d);
/* Takes the last round(n * fraction) (at least 1, at most n-1) rows of the order
 * rng_permute(seed, RNG_SPLIT as epoch, n) out of d into a new dataset; file order is kept. The
 * counts of cut and skipped rows stay with d, which is untouched on failure. */
struct dataset *dataset_split(struct dataset *d, double fraction, uint64_t seed, struct err *e);
/* Puts the documents into as few rows of at most max_length tokens as pack.h finds; each keeps its
 * positions and sees itself alone. d is untouched on failure. Not twice, and after any split. */
int dataset_pack(struct dataset *d, int64_t max_length, uint64_t seed, struct err *e);

/* One micro-batch, right-padded. B rows, T = longest row rounded up to a multiple of 8. A document
 * that begins at o has position t - o and the keys [o, t+1) at t. */
struct batch {
    int64_t B, T;
    int32_t *ids;    /* [B,T] 0 in the padding */
    int32_t *target; /* [B,T] token that position t predicts (ids[t+1]) or -1 */
    int32_t *pos;    /* [B,T] */
    int32_t *range;  /* [B,T,2] keys attended, empty in the padding */
    int64_t trained; /* targets >= 0 */
    int64_t tokens;  /* without padding */
    int64_t cap;     /* B*T that fits without growing */
};
/* Fills b from examples index[0..n). b starts zeroed; batch_clear frees. */
int batch_fill(struct batch *b, const struct dataset *d, const int64_t *index, int64_t n,
               struct err *e);
/* The same of one example that is in no dataset. */
int batch_one(struct batch *b, const struct example *x, struct err *e);
void batch_clear(struct batch *b);

#endif
