/* chat_render.h: a chat template as data, and the text that is made of it. For chat*.c alone. */
#ifndef GRAFT_CHAT_RENDER_H
#define GRAFT_CHAT_RENDER_H

#include "engine/base/buf.h"
#include "engine/tok/chat.h"

enum { CHAT_NEEDS = 4 };

/* Where a template of questions and answers puts the system message. */
enum chat_system { SYSTEM_NOWHERE, SYSTEM_FIRST, SYSTEM_LAST };

/* A turn is open, role, close, lead, content, end, after. Templates with an `ask` know only a
 * question and its answer: ask, content, asked; open, lead, content, end, after. */
struct chat_style {
    const char *name;
    const char *begin;          /* before the first turn */
    const char *open, *close;   /* around the role: the header, where a generation starts */
    const char *lead;           /* said by the model before the content */
    const char *end;            /* end-of-turn token; "$eos": the tokenizer's */
    const char *after;
    const char *ask, *asked;    /* around a question */
    enum chat_system place;
    const char *system_open, *system_close; /* around the system message in a question */
    const char *system;         /* the system message of a conversation without one, or NULL */
    const char *system_prefix;  /* in front of every system message */
    bool trim;                  /* content without spaces around it */
    bool trim_whole;            /* ... of a question together with the system message in it */
    bool trim_answer;           /* ... of answers alone */
    bool no_tool;               /* "tool" turns are not rendered as other turns are */
    bool tools;                 /* rendered by chat_tools.c */
    bool capital;               /* "User" instead of "user" */
    bool special;               /* the post-processor runs */
    const char *need[CHAT_NEEDS]; /* tokens that must exist */
};

/* A rendered conversation: the text, and the spans of it that are trained. */
struct chat_span {
    size_t start, end;
};
struct chat_render {
    struct buf text;
    struct chat_span *span;
    int nspan;
    const struct chat_style *style;
    const char *end; /* the end-of-turn token, "" if there is none */
};

const struct chat_style *chat_style(enum chat_template c);
/* "developer" is "system". */
bool chat_is_role(const struct chat_message *m, const char *role);
void chat_put_content(struct chat_render *r, const char *s, bool trim);
void chat_put_turn(struct chat_render *r, const struct chat_message *m);
void chat_put_header(struct chat_render *r, const char *role);
/* Everything since start is what the message makes the model say. */
void chat_add_span(struct chat_render *r, const struct chat_message *m, size_t start);

/* chat_tools.c: a conversation of a style with `tools`. */
int chat_render_tools(struct chat_render *r, enum chat_template c, const struct chat_talk *talk,
                      struct err *e);
/* chat_json.c: JSON as Python's json.dumps writes it (ensure_ascii off); indent 0: on one line. */
void chat_put_json(struct buf *b, const json_t *v, int indent);

#endif
