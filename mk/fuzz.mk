# make fuzz [MIN=minutes] [FUZZ=name]: libFuzzer on the parsers of files from outside.
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_$(or $(FUZZ),*).c)
FUZZ_B   := build-fuzz
FUZZ_SAN := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
MIN      ?= 1

# Each rule fills $(FUZZ_B)/corpus-NAME, which grows from run to run.
.PHONY: fuzz fuzz-run seeds_tok seeds_npz seeds_rows
seeds_tok:
	@mkdir -p $(FUZZ_B)/corpus-tok
	@for f in tests/unit/golden/tok_*.json; do \
	  { cat $$f; printf '\0na\303\257ve fox <s>12345\n'; } >$(FUZZ_B)/corpus-tok/$$(basename $$f); done

seeds_npz:
	@mkdir -p $(FUZZ_B)/corpus-npz
	@cp tests/unit/golden/npz_*.npz $(FUZZ_B)/corpus-npz

define FUZZ_ROWS
text,label
"a ""b""
c",1
{"prompt":"p","completion":"c","id":7}
{"messages":[{"role":"user","content":"q"},{"role":"assistant","tool_calls":[{"type":"function",$\
"function":{"name":"f","arguments":"{\\"a\\":1}"}}],"weight":1}],"tools":[]}
{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"}],"system":"s"}
{"instruction":"i","input":"x","output":"o","history":[]}
endef
export FUZZ_ROWS
seeds_rows:
	@mkdir -p $(FUZZ_B)/corpus-rows
	@echo "$$FUZZ_ROWS" | head -n 3 >$(FUZZ_B)/corpus-rows/csv
	@for i in 4 5 6 7; do echo "$$FUZZ_ROWS" | sed -n "$${i}p" >$(FUZZ_B)/corpus-rows/jsonl$$i; done

fuzz:
	$(MAKE) B=$(FUZZ_B) CC=clang SAN="$(FUZZ_SAN) -fsanitize=fuzzer-no-link" fuzz-run

fuzz-run: $(FUZZ_SRC:tests/fuzz/fuzz_%.c=seeds_%) $(FUZZ_SRC:%.c=$(B)/%)
	@for f in $(FUZZ_SRC:tests/fuzz/fuzz_%.c=%); do echo "== $$f"; \
	  $(B)/tests/fuzz/fuzz_$$f -max_total_time=$$(($(MIN) * 60)) -max_len=40000 -timeout=20 \
	    -rss_limit_mb=4096 -artifact_prefix=$(B)/crash- $(B)/corpus-$$f || exit 1; done

# The parsers alone: the kernels need not build with clang for this.
FUZZ_OBJ := $(patsubst %.c,$(B)/%.o,$(wildcard engine/base/*.c engine/tok/*.c engine/fmt/*.c \
              engine/data/*.c engine/core/dtype.c))
$(B)/libparsers.a: $(FUZZ_OBJ)
	@rm -f $@
	ar rcs $@ $^

$(FUZZ_SRC:%.c=$(B)/%): $(B)/%: $(B)/%.o $(B)/libparsers.a
	$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBS)
