/* card.h: the model card of a result: README.md with YAML front matter, as model hubs read it.
 *
 * Every string is a user's or a file's, so each is escaped for the place it lands in: YAML
 * strings are double-quoted, Markdown text can start no link, tag, table or heading.
 */
#ifndef GRAFT_CARD_H
#define GRAFT_CARD_H

#include "engine/base/err.h"

struct card_row {
    const char *name, *value;
};

struct card {
    const char *title;                  /* required */
    const char *base_model;             /* required: hub id of what was adapted */
    const char *library_name;           /* required: "peft", "transformers" */
    const char *pipeline_tag;           /* "text-generation"; NULL: left out */
    const char *license;                /* NULL or "": left out; never invented */
    const char *const *tags;
    int ntags;
    const char *summary;                /* one paragraph; NULL: left out */
    const char *usage;                  /* Python that loads it, shown as code; NULL: left out */
    const struct card_row *rows;        /* a table of settings and measurements */
    int nrows;
};

int card_write(const char *dir, const struct card *c, struct err *e); /* dir/README.md */

/* The licence that the README.md of a base model states in its front matter; "" if there is no
 * README.md, no front matter or no plain one-line `license:` in it. */
int card_base_license(const char *model_dir, char out[64], struct err *e);

#endif
