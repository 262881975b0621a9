#include "engine/tok/uclass.h"

#include "engine/tok/uclass_data.h"

#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* The tables have few rows and are asked about rare characters only. */
static bool listed(const struct uclass_run *v, size_t n, uint32_t cp)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (cp > v[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n && cp >= v[lo].first;
}

static utf8proc_category_t category(uint32_t cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    if (c != UTF8PROC_CATEGORY_CN) return c;
    size_t lo = 0, hi = COUNT(since14);
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (cp > since14[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < COUNT(since14) && cp >= since14[lo].first ? since14[lo].category : c;
}

/* utf8proc numbers the categories in the order Lu Ll Lt Lm Lo, Mn Mc Me, Nd Nl No, Pc .. Po. */
static bool within(utf8proc_category_t c, utf8proc_category_t first, utf8proc_category_t last)
{
    return c >= first && c <= last;
}

bool uclass_space(uint32_t cp)
{
    if (cp < 0x80) return cp == ' ' || cp - 9u < 5u;
    return cp == 0x85 || cp == 0xa0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200a) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f || cp == 0x3000;
}

enum uclass uclass_of(uint32_t cp)
{
    if (cp < 0x80) {
        if ((cp | 32u) - 'a' < 26u) return UC_LETTER;
        if (cp - '0' < 10u) return UC_NUMBER;
        return uclass_space(cp) ? UC_SPACE : UC_OTHER;
    }
    utf8proc_category_t c = category(cp);
    if (within(c, UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LO)) return UC_LETTER;
    if (within(c, UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO)) return UC_NUMBER;
    return uclass_space(cp) ? UC_SPACE : UC_OTHER;
}

bool uclass_word(uint32_t cp)
{
    if (cp < 0x80) return (cp | 32u) - 'a' < 26u || cp - '0' < 10u || cp == '_';
    /* Join_Control, and the circled and squared letters that are Alphabetic but not letters. */
    if (cp == 0x200c || cp == 0x200d) return true;
    if ((cp >= 0x24b6 && cp <= 0x24e9) || (cp >= 0x1f130 && cp <= 0x1f149) ||
        (cp >= 0x1f150 && cp <= 0x1f169) || (cp >= 0x1f170 && cp <= 0x1f189))
        return true;
    utf8proc_category_t c = category(cp);
    return within(c, UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_NL) || c == UTF8PROC_CATEGORY_PC;
}

bool uclass_numeric(uint32_t cp)
{
    return uclass_of(cp) == UC_NUMBER || listed(numeric17, COUNT(numeric17), cp);
}

bool uclass_punct(uint32_t cp)
{
    if (cp < 0x80) return cp > ' ' && cp < 0x7f && uclass_of(cp) == UC_OTHER;
    if (listed(also_punct, COUNT(also_punct), cp)) return true;
    return within(utf8proc_category((utf8proc_int32_t)cp), UTF8PROC_CATEGORY_PC,
                  UTF8PROC_CATEGORY_PO) &&
           !listed(not_punct, COUNT(not_punct), cp);
}

bool uclass_inert(uint32_t cp)
{
    return cp >= inert[0].first && listed(inert, COUNT(inert), cp);
}

int uclass_lower(uint32_t cp, uint32_t out[2])
{
    out[0] = (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp);
    if (cp == 0x130) { /* the only letter whose lower case is two code points */
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    for (size_t i = 0; cp >= lower17[0].first && i < COUNT(lower17); i++)
        if (cp >= lower17[i].first && cp <= lower17[i].last)
            out[0] = (uint32_t)((int32_t)cp + lower17[i].delta);
    return 1;
}

bool uclass_put_new(struct buf *b, const char *name)
{
    static const char *const names[] = {
        "Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps",
        "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co",
    };
    size_t n = strlen(name);
    bool known = false;
    /* "Cn" shrinks as others grow, and "C" with it: neither can be mended by adding. */
    if (n < 1 || n > 2 || (name[0] == 'C' && (n == 1 || name[1] == 'n'))) return false;
    for (size_t i = 1; i < COUNT(names); i++) known |= strncmp(names[i], name, n) == 0;
    for (size_t i = 0; known && i < COUNT(since14); i++)
        if (strncmp(names[since14[i].category], name, n) == 0)
            buf_printf(b, "\\x{%x}-\\x{%x}", since14[i].first, since14[i].last);
    return known;
}
