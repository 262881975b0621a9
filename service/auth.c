#include "service/auth.h"

#include "engine/base/str.h"

#include <arpa/inet.h>
#include <openssl/crypto.h>
#include <string.h>
#include <strings.h>

/* The name in "name", "name:port", "[v6]" or "[v6]:port"; "" if it is malformed. */
static void host_name(const char *host, char out[256])
{
    const char *from = host, *end = strchr(host, ':');
    out[0] = 0;
    if (*host == '[') {
        from = host + 1;
        end = strchr(host, ']');
        if (!end) return;
    }
    size_t n = end ? (size_t)(end - from) : strlen(from);
    if (n >= 256) return;
    memcpy(out, from, n);
    out[n] = 0;
}

static bool is_address(const char *name)
{
    unsigned char a[16];
    return inet_pton(AF_INET, name, a) == 1 || inet_pton(AF_INET6, name, a) == 1;
}

static bool listed(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = list; *p; p += strspn(p, ", ")) {
        size_t k = strcspn(p, ", ");
        if (k == n && !strncasecmp(p, name, n)) return true;
        p += k;
    }
    return false;
}

bool auth_is_loopback(const char *address)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (inet_pton(AF_INET, address, &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
    if (inet_pton(AF_INET6, address, &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
    return !strcasecmp(address, "localhost");
}

static int check_host(const struct auth *a, const struct request *r, struct reply *o,
                      struct err *e)
{
    const char *host = request_header(r, "host");
    char name[256];
    if (a->key[0] || !host) return 0;
    host_name(host, name);
    if (is_address(name) || auth_is_loopback(name) || listed(a->hosts, name)) return 0;
    err_set(e, E_AUTH, "'%.100s' is not a name of this server; add it with --allowed-hosts, or set "
            "an API key", name);
    return reply_fail(o, 421, "unknown_host");
}

static int check_origin(const struct request *r, struct reply *o, struct err *e)
{
    const char *origin = request_header(r, "origin"), *host = request_header(r, "host");
    if (!origin) return 0;
    const char *at = strstr(origin, "://");
    if (at && host && !strcasecmp(at + 3, host)) return 0;
    err_set(e, E_AUTH, "requests from pages of other sites are not served");
    return reply_fail(o, 403, "foreign_origin");
}

/* The comparison takes as long for a wrong key as for the right one, whatever its length. */
static bool same_key(const char *given, const char *key)
{
    size_t n = strlen(key), m = strlen(given);
    char padded[256] = {0};
    if (n >= sizeof padded) return false;
    memcpy(padded, given, m < sizeof padded ? m : sizeof padded);
    return (CRYPTO_memcmp(padded, key, n) == 0) & (m == n);
}

int auth_check(const struct auth *a, const struct request *r, bool open, struct reply *o,
               struct err *e)
{
    if (check_host(a, r, o, e) || check_origin(r, o, e)) return -1;
    if (open || !a->key[0]) return 0;
    const char *v = request_header(r, "authorization");
    if (v && !strncasecmp(v, "Bearer ", 7) && same_key(v + 7 + strspn(v + 7, " "), a->key))
        return 0;
    err_set(e, E_AUTH, v ? "the API key is not valid" : "an API key is needed: Authorization: "
            "Bearer KEY");
    return reply_fail(o, 401, "invalid_api_key");
}
