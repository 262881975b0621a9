/* toy_tok.h: a byte-level tokenizer.json small enough to count ids by hand.
 *
 * One id per character: <s> 0, </s> 1, <|im_start|> 2, <|im_end|> 3, space 4, newline 5, a..z from
 * 6 on. The post-processor puts <s> in front. Any other character cannot be encoded.
 */
#ifndef GRAFT_TOY_TOK_H
#define GRAFT_TOY_TOK_H

#include "engine/base/err.h"

enum { TOY_BOS, TOY_EOS, TOY_START, TOY_END, TOY_SPECIAL, TOY_SPACE = TOY_SPECIAL, TOY_NEWLINE,
       TOY_A };

int toy_tok_write(const char *path, struct err *e);

#endif
