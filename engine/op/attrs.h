/* attrs.h: the attributes of each operation, stored by value in its node. */
#ifndef GRAFT_ATTRS_H
#define GRAFT_ATTRS_H

#include <stdint.h>

struct attrs_none { char unused; };
/* compute: enum dtype of the output, f32 (0) or bf16 */
struct attrs_embed { int compute; };
struct attrs_alpha { float alpha; };         /* factor on the product */
struct attrs_linear { float alpha; int wt; }; /* wt: the weight is stored transposed */
struct attrs_norm { float eps; };
struct attrs_rope { float sign; };           /* +1 forward, -1 backward (rotation by -angle) */
struct attrs_attn { float scale; };          /* usually 1/sqrt(D) */
enum act_kind {
    ACT_GELU,       /* x Phi(x), Phi the distribution function of the normal law */
    ACT_GELU_TANH,  /* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
    ACT_QUICK_GELU, /* x sigmoid(1.702 x) */
    ACT_RELU,       /* its slope at 0 is 0 */
    ACT_SILU,       /* x sigmoid(x) */
    ACT_TANH,
    ACT_KINDS
};
struct attrs_act { int kind; };
struct attrs_dropout { float p; uint32_t salt; }; /* salt: which dropout of the model this is */
struct attrs_rows { int64_t rows; };         /* row count of a scattered-into result */
struct attrs_slice { int64_t at, width; };   /* first column; columns of the result */
struct attrs_patches { int64_t size; int compute; }; /* side of a patch */
struct attrs_clip { float max_norm; };       /* 0: no clipping */
/* c1, c2: 1 - beta1 and 1 - beta2 rounded once from double, as torch does; 1 minus a rounded beta
 * is off by up to 1.3e-5 of itself. */
struct attrs_adamw { float c1, beta2, c2, eps; int group; };
struct attrs_adamw attrs_adamw(double beta1, double beta2, double eps, int group);

#endif
