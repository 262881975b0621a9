#include "engine/tok/post.h"

#include "engine/base/jx.h"
#include "engine/base/str.h"

#include <stdbool.h>

static int add_part(struct post_list *p, int32_t part, struct err *e)
{
    if (p->n == POST_PARTS)
        return err_set(e, E_LIMIT, "more than %d parts in a post-processor", POST_PARTS);
    p->part[p->n++] = part;
    return 0;
}

static int add_id(struct post_list *p, const json_t *v, int32_t size, struct err *e)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= size)
        return err_set(e, E_FORMAT, "an id must be a number from 0 to %d", size - 1);
    return add_part(p, (int32_t)json_integer_value(v), e);
}

static int add_piece(struct post_list *p, bool two, const json_t *piece, const json_t *tokens,
                     int32_t size, struct err *e)
{
    const json_t *seq = json_object_get(piece, "Sequence");
    const json_t *spec = json_object_get(piece, "SpecialToken");
    const char *name;
    json_t *ids;
    if (seq) {
        if (jx_str(seq, "id", &name, e)) return -1;
        if (str_eq(name, "A")) return add_part(p, POST_SEQUENCE, e);
        if (two && str_eq(name, "B")) return add_part(p, POST_SECOND, e);
        return err_set(e, E_FORMAT, "a sequence '%.20s' in the template for %s", name,
                       two ? "two" : "one");
    }
    if (jx_str(spec, "id", &name, e)) return -1;
    const json_t *token = json_object_get(tokens, name);
    if (!token) return err_set(e, E_FORMAT, "'%.40s' is not in 'special_tokens'", name);
    if (jx_array(token, "ids", &ids, e)) return -1;
    for (size_t i = 0; i < json_array_size(ids); i++)
        if (add_id(p, json_array_get(ids, i), size, e)) return err_wrap(e, "ids[%zu]", i);
    return 0;
}

static int add_template(struct post *p, const json_t *o, int32_t size, struct err *e)
{
    json_t *single, *tokens, *pair = json_object_get(o, "pair");
    if (jx_array(o, "single", &single, e) || jx_object(o, "special_tokens", &tokens, e)) return -1;
    for (size_t i = 0; i < json_array_size(single); i++)
        if (add_piece(&p->one, false, json_array_get(single, i), tokens, size, e))
            return err_wrap(e, "single[%zu]", i);
    for (size_t i = 0; i < json_array_size(pair); i++)
        if (add_piece(&p->two, true, json_array_get(pair, i), tokens, size, e))
            return err_wrap(e, "pair[%zu]", i);
    return 0;
}

/* cls, text, sep, of two texts with a sep between them, or RoBERTa's two; each is ["<s>", 0]. */
static int add_cls_sep(struct post *p, const json_t *o, bool roberta, int32_t size, struct err *e)
{
    json_t *cls, *sep;
    if (jx_array(o, "cls", &cls, e) || jx_array(o, "sep", &sep, e)) return -1;
    const json_t *first = json_array_get(cls, 1), *last = json_array_get(sep, 1);
    if (add_id(&p->one, first, size, e)) return err_wrap(e, "cls[1]");
    if (add_part(&p->one, POST_SEQUENCE, e)) return -1;
    if (add_id(&p->one, last, size, e)) return err_wrap(e, "sep[1]");
    p->two = p->one;
    if (roberta && add_id(&p->two, last, size, e)) return -1;
    return add_part(&p->two, POST_SECOND, e) ? -1 : add_id(&p->two, last, size, e);
}

static int add(struct post *p, const json_t *o, int32_t size, struct err *e)
{
    const char *type;
    if (jx_str(o, "type", &type, e)) return -1;
    if (str_eq(type, "ByteLevel")) return 0; /* moves offsets only */
    if (str_eq(type, "Sequence")) {
        json_t *list;
        if (jx_array(o, "processors", &list, e)) return -1;
        for (size_t i = 0; i < json_array_size(list); i++)
            if (add(p, json_array_get(list, i), size, e)) return err_wrap(e, "processors[%zu]", i);
        return 0;
    }
    bool is_template = str_eq(type, "TemplateProcessing");
    if (!is_template && !str_eq(type, "RobertaProcessing") && !str_eq(type, "BertProcessing"))
        return err_set(e, E_UNSUPPORTED, "graft does not have the post-processor '%.40s'", type);
    if (p->one.n)
        return err_set(e, E_UNSUPPORTED, "'%.40s' is a second one that adds tokens", type);
    if (is_template) return add_template(p, o, size, e);
    return add_cls_sep(p, o, str_eq(type, "RobertaProcessing"), size, e);
}

int post_build(struct post *p, const json_t *v, int32_t size, struct err *e)
{
    *p = (struct post){0};
    if (v && !json_is_null(v) && add(p, v, size, e)) return -1;
    if (!p->one.n && add_part(&p->one, POST_SEQUENCE, e)) return -1;
    if (p->two.n) return 0;
    return add_part(&p->two, POST_SEQUENCE, e) || add_part(&p->two, POST_SECOND, e) ? -1 : 0;
}
