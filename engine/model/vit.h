/* vit.h: which parameter of a Vision Transformer plays which part. Private to vit*.c.
 *
 * The order of the sites of a block is the order of vit_site; timm has one for q, k and v.
 */
#ifndef GRAFT_VIT_H
#define GRAFT_VIT_H

#include "engine/model/parts.h"
#include "engine/model/vit_config.h"

enum vit_site { VIT_Q, VIT_K, VIT_V, VIT_O, VIT_UP, VIT_DOWN, VIT_SITES };

struct vit_block {
    struct parts_affine norm1, norm2;
    int site[VIT_SITES]; /* in model.sites; the same one three times where q, k, v are one */
};

struct vit_layout {
    struct vit_config cfg;
    struct param *class_token, *dist_token, *places;
    struct parts_affine patches;          /* w[C,I,S,S] */
    struct parts_affine pre_norm, norm;
    struct parts_affine head, dist_head;  /* w is NULL if there are no labels */
    struct vit_block blocks[];
};

/* Fills the parameters from the .npz of the original ViT (model.npz). */
int vit_npz_load(struct model *m, const struct vit_layout *y, struct err *e);

#endif
