/* attrs.h: the attributes of each operation, stored by value in its node. */
#ifndef GRAFT_ATTRS_H
#define GRAFT_ATTRS_H

#include <stdint.h>

struct attrs_none { char unused; };
struct attrs_alpha { float alpha; };         /* factor on the product */
struct attrs_norm { float eps; };
struct attrs_rope { float sign; };           /* +1 forward, -1 backward (rotation by -angle) */
struct attrs_attn { float scale; };          /* usually 1/sqrt(D) */
struct attrs_dropout { float p; uint32_t salt; }; /* salt: which dropout of the model this is */
struct attrs_rows { int64_t rows; };         /* row count of a scattered-into result */
struct attrs_clip { float max_norm; };       /* 0: no clipping */
struct attrs_adamw { float beta1, beta2, eps; int group; };

#endif
