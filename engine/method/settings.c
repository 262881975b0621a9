#include "engine/method/settings.h"

#include "engine/base/buf.h"
#include "engine/base/jx.h"
#include "engine/base/str.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* What every method that trains understands. A method may override an entry by its own. */
static const char shared[] =
"{\"n_epochs\": {\"type\": \"integer\", \"minimum\": 1, \"maximum\": 1000, \"default\": 3,"
"  \"description\": \"Passes over the training data.\"},"
" \"max_steps\": {\"type\": \"integer\", \"minimum\": 0, \"maximum\": 10000000, \"default\": 0,"
"  \"description\": \"Optimiser steps; overrides n_epochs unless 0.\"},"
" \"batch_size\": {\"type\": \"integer\", \"minimum\": 1, \"maximum\": 4096, \"default\": 8,"
"  \"description\": \"Rows put through the model at once.\"},"
" \"gradient_accumulation_steps\": {\"type\": \"integer\", \"minimum\": 1, \"maximum\": 4096,"
"  \"default\": 1, \"description\": \"Batches whose gradients make one optimiser step.\"},"
" \"learning_rate\": {\"type\": \"number\", \"exclusiveMinimum\": 0, \"maximum\": 10,"
"  \"default\": 1e-4, \"description\": \"Peak learning rate.\"},"
" \"learning_rate_multiplier\": {\"type\": \"number\", \"exclusiveMinimum\": 0, \"maximum\": 1000,"
"  \"default\": 1, \"description\": \"Multiplies learning_rate.\"},"
" \"lr_scheduler\": {\"type\": \"string\", \"enum\": [\"cosine\", \"linear\", \"constant\"],"
"  \"default\": \"cosine\", \"description\": \"How the learning rate falls after the warm-up.\"},"
" \"warmup_ratio\": {\"type\": \"number\", \"minimum\": 0, \"maximum\": 1, \"default\": 0.03,"
"  \"description\": \"Part of all steps in which the learning rate rises from 0.\"},"
" \"warmup_steps\": {\"type\": \"integer\", \"minimum\": 0, \"maximum\": 10000000, \"default\": 0,"
"  \"description\": \"The same in steps; overrides warmup_ratio unless 0.\"},"
" \"weight_decay\": {\"type\": \"number\", \"minimum\": 0, \"maximum\": 10, \"default\": 0,"
"  \"description\": \"Decoupled weight decay of matrices; norms and biases never decay.\"},"
" \"adam_beta1\": {\"type\": \"number\", \"minimum\": 0, \"maximum\": 0.9999, \"default\": 0.9,"
"  \"description\": \"Decay of AdamW's mean of gradients.\"},"
" \"adam_beta2\": {\"type\": \"number\", \"minimum\": 0, \"maximum\": 0.999999, \"default\": 0.999,"
"  \"description\": \"Decay of AdamW's mean of squared gradients.\"},"
" \"adam_epsilon\": {\"type\": \"number\", \"exclusiveMinimum\": 0, \"maximum\": 1,"
"  \"default\": 1e-8, \"description\": \"AdamW's epsilon.\"},"
" \"max_grad_norm\": {\"type\": \"number\", \"minimum\": 0, \"maximum\": 1e6, \"default\": 1,"
"  \"description\": \"Gradients are scaled down to this global norm; 0 turns it off.\"},"
" \"max_length\": {\"type\": \"integer\", \"minimum\": 0, \"maximum\": 1048576, \"default\": 0,"
"  \"description\": \"Tokens per row, longer rows are cut; 0: the model's maximum, at most"
" 1024.\"},"
" \"packing\": {\"type\": \"boolean\", \"default\": false,"
"  \"description\": \"Several rows of the file share one row of a batch without seeing each other:"
" less padding, fewer and larger steps.\"},"
" \"validation_split\": {\"type\": \"number\", \"minimum\": 0, \"maximum\": 0.5, \"default\": 0,"
"  \"description\": \"Part of the training rows kept for validation if there is no validation"
" file.\"},"
" \"eval_steps\": {\"type\": \"integer\", \"minimum\": 0, \"maximum\": 10000000, \"default\": 0,"
"  \"description\": \"Steps between validations; 0: ten times per job. The end is always"
" validated.\"},"
" \"checkpoint_steps\": {\"type\": \"integer\", \"minimum\": 0, \"maximum\": 10000000,"
"  \"default\": 0, \"description\": \"Steps between checkpoints; 0: every tenth of the job or ten"
" minutes, whichever comes first.\"},"
" \"logging_steps\": {\"type\": \"integer\", \"minimum\": 1, \"maximum\": 10000000, \"default\": 1,"
"  \"description\": \"Steps between progress reports.\"},"
" \"recompute\": {\"type\": \"string\", \"enum\": [\"auto\", \"none\", \"cheap\", \"block\"],"
"  \"default\": \"auto\", \"description\": \"What the forward pass computes again instead of"
" keeping it: none, cheap (norms and activations) or block (everything within a block); auto: the"
" least that fits into memory. The result is the same.\"},"
" \"chat_template\": {\"type\": \"string\", \"enum\": [\"auto\", \"none\", \"chatml\", \"llama2\","
"  \"llama3\", \"mistral\", \"gemma\", \"zephyr\", \"plain\", \"qwen2\", \"qwen2.5\", \"smollm2\","
"  \"llama3.1\", \"mistral-v3\", \"mistral-nemo\", \"gemma3\"],"
"  \"default\": \"auto\","
"  \"description\": \"How messages become text; auto: the one that the model's folder names.\"},"
" \"samples\": {\"type\": \"array\", \"items\": {\"type\": \"string\"}, \"maxItems\": 8,"
"  \"default\": [], \"description\": \"Prompts answered before and after training.\"},"
" \"sample_max_tokens\": {\"type\": \"integer\", \"minimum\": 1, \"maximum\": 4096,"
"  \"default\": 64, \"description\": \"The longest sample answer.\"}}";

json_t *settings_schema(const char *own, struct err *e)
{
    json_t *all = NULL, *add = NULL, *top = NULL;
    if (!(add = jx_parse(own, strlen(own), e)) ||
        !(all = jx_parse(shared, sizeof shared - 1, e)))
        goto out;
    /* The method's own knobs come first; a shared one they override keeps its place there. */
    if (json_object_update_missing(add, all)) {
        err_set(e, E_NOMEM, "out of memory");
        goto out;
    }
    top = jx_pack(e, "{s:s, s:b, s:O}", "type", "object", "additionalProperties", 0,
                  "properties", add);
out:
    json_decref(all);
    json_decref(add);
    return top;
}

static const char *type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT: return "object";
    case JSON_ARRAY: return "array";
    case JSON_STRING: return "string";
    case JSON_INTEGER: return "integer";
    case JSON_REAL: return "number";
    case JSON_TRUE:
    case JSON_FALSE: return "boolean";
    default: return "null";
    }
}

/* True if v may stand for `type`; an integral real is an integer, as JSON Schema has it. */
static bool is_type(const json_t *v, const char *type)
{
    if (str_eq(type, "number")) return json_is_number(v);
    if (str_eq(type, "integer") && json_is_real(v)) {
        double x = json_real_value(v);
        return x == floor(x) && fabs(x) < 0x1p53;
    }
    return str_eq(type, type_name(v));
}

/* The first declared type that v has, or NULL; what[] receives the declaration for messages. */
static const char *match_type(const json_t *schema, const json_t *v, char what[64])
{
    const json_t *type = json_object_get(schema, "type"), *one;
    if (json_is_string(type)) {
        snprintf(what, 64, "%s", json_string_value(type));
        return is_type(v, json_string_value(type)) ? json_string_value(type) : NULL;
    }
    const char *found = NULL;
    size_t i, n = 0;
    json_array_foreach(type, i, one) {
        n += (size_t)snprintf(what + n, 64 - n, "%s%s", i ? " or " : "", json_string_value(one));
        if (!found && is_type(v, json_string_value(one))) found = json_string_value(one);
    }
    return found;
}

static int check_range(const char *key, const json_t *schema, double x, struct err *e)
{
    const json_t *lo = json_object_get(schema, "minimum");
    const json_t *above = json_object_get(schema, "exclusiveMinimum");
    const json_t *hi = json_object_get(schema, "maximum");
    if (!isfinite(x)) return err_set(e, E_RANGE, "%s must be a finite number", key);
    if (lo && x < json_number_value(lo))
        return err_set(e, E_RANGE, "%s is %g, but must be at least %g", key, x,
                       json_number_value(lo));
    if (above && x <= json_number_value(above))
        return err_set(e, E_RANGE, "%s is %g, but must be greater than %g", key, x,
                       json_number_value(above));
    if (hi && x > json_number_value(hi))
        return err_set(e, E_RANGE, "%s is %g, but must be at most %g", key, x,
                       json_number_value(hi));
    return 0;
}

static int check_enum(const char *key, const json_t *schema, const json_t *v, struct err *e)
{
    const json_t *allowed = json_object_get(schema, "enum"), *one;
    size_t i;
    if (!allowed) return 0;
    struct buf list;
    buf_init(&list, 300);
    json_array_foreach(allowed, i, one) {
        if (json_equal(one, v)) {
            buf_clear(&list);
            return 0;
        }
        buf_printf(&list, "%s%s", i ? ", " : "", json_string_value(one));
    }
    err_set(e, E_ARG, "%s must be one of: %s", key, buf_str(&list));
    buf_clear(&list);
    return -1;
}

/* v as it is stored (new reference): "number" as a real, "integer" as an integer. */
static json_t *normalise(const char *key, const json_t *schema, json_t *v, struct err *e)
{
    char what[64] = "";
    const char *type = match_type(schema, v, what);
    json_t *out = NULL, *one;
    size_t i;
    if (!type) {
        err_set(e, E_ARG, "%s must be of type %s, not %s", key, what, type_name(v));
        return NULL;
    }
    if (json_is_number(v) && check_range(key, schema, json_number_value(v), e)) return NULL;
    if (check_enum(key, schema, v, e)) return NULL;
    if (str_eq(type, "number")) {
        out = json_real(json_number_value(v));
    } else if (str_eq(type, "integer")) {
        out = json_integer(json_is_real(v) ? (json_int_t)json_real_value(v)
                                           : json_integer_value(v));
    } else if (str_eq(type, "array")) {
        const json_t *items = json_object_get(schema, "items");
        const json_t *most = json_object_get(schema, "maxItems");
        if (most && json_array_size(v) > (size_t)json_integer_value(most)) {
            err_set(e, E_RANGE, "%s has %zu entries, but at most %d are allowed", key,
                    json_array_size(v), (int)json_integer_value(most));
            return NULL;
        }
        out = json_array();
        json_array_foreach(v, i, one) {
            json_t *n = items ? normalise(key, items, one, e) : json_incref(one);
            if (!n || !out || json_array_append_new(out, n)) {
                json_decref(out);
                return NULL;
            }
        }
    } else {
        out = json_incref(v);
    }
    if (!out) err_set(e, E_NOMEM, "out of memory");
    return out;
}

/* Edit distance of two short names, 99 if either is long. */
static int distance(const char *a, const char *b)
{
    enum { MOST = 63 };
    int n = (int)strlen(a), m = (int)strlen(b), row[MOST + 1];
    if (n > MOST || m > MOST) return 99;
    for (int j = 0; j <= m; j++) row[j] = j;
    for (int i = 1; i <= n; i++) {
        int corner = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int change = corner + (a[i - 1] != b[j - 1]);
            int add = row[j - 1] + 1, drop = row[j] + 1;
            corner = row[j];
            row[j] = change < add ? change : add;
            if (drop < row[j]) row[j] = drop;
        }
    }
    return row[m];
}

static int unknown(const json_t *properties, const char *name, struct err *e)
{
    const char *best[3] = {0}, *key;
    int score[3] = {99, 99, 99};
    json_t *v;
    json_object_foreach((json_t *)properties, key, v) {
        /* Part of one another counts as near: lr_scheduler_type, epochs. */
        bool part = (strlen(name) > 3 && strstr(key, name)) ||
                    (strlen(key) > 3 && strstr(name, key));
        int d = part ? 1 : distance(key, name);
        if (d > 3 && d > (int)strlen(key) / 3) continue;
        for (int i = 0; i < 3; i++) {
            if (d >= score[i]) continue;
            for (int j = 2; j > i; j--) {
                best[j] = best[j - 1];
                score[j] = score[j - 1];
            }
            best[i] = key;
            score[i] = d;
            break;
        }
    }
    struct buf list;
    buf_init(&list, 300);
    for (int i = 0; i < 3 && best[i]; i++) buf_printf(&list, "%s%s", i ? ", " : "", best[i]);
    if (best[0])
        err_set(e, E_ARG, "unknown setting %.80s; did you mean: %s", name, buf_str(&list));
    else
        err_set(e, E_ARG, "unknown setting %.80s", name);
    buf_clear(&list);
    return err_param(e, "hyperparameters.%.70s", name);
}

json_t *settings_fill(const json_t *schema, const json_t *given, struct err *e)
{
    const json_t *properties = json_object_get(schema, "properties");
    const char *key;
    json_t *v, *out = NULL;
    if (given && !json_is_object(given)) {
        err_set(e, E_ARG, "hyperparameters must be an object");
        err_param(e, "hyperparameters");
        return NULL;
    }
    json_object_foreach((json_t *)given, key, v)
        if (!json_object_get(properties, key)) {
            unknown(properties, key, e);
            return NULL;
        }
    if (!(out = json_object())) {
        err_set(e, E_NOMEM, "out of memory");
        return NULL;
    }
    json_object_foreach((json_t *)properties, key, v) {
        json_t *value = given ? json_object_get(given, key) : NULL;
        if (!value || json_is_null(value) || str_eq(json_string_value(value), "auto"))
            value = json_object_get(v, "default");
        json_t *n = normalise(key, v, value, e);
        if (!n || jx_set(out, key, n, e)) {
            err_param(e, "hyperparameters.%s", key);
            json_decref(out);
            return NULL;
        }
    }
    return out;
}

double settings_real(const json_t *s, const char *key)
{
    return json_number_value(json_object_get(s, key));
}

int64_t settings_int(const json_t *s, const char *key)
{
    return json_integer_value(json_object_get(s, key));
}

bool settings_bool(const json_t *s, const char *key)
{
    return json_is_true(json_object_get(s, key));
}

const char *settings_str(const json_t *s, const char *key)
{
    const char *v = json_string_value(json_object_get(s, key));
    return v ? v : "";
}
