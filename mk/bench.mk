# make bench: speed of the kernels, and of whole parts, against what else could be used.
# Each tests/bench/NAME.c is a program that prints lines
#   bench <name> graft=<x> peer=<y> ratio=<z> unit=<u>
BENCH_BIN := $(patsubst %.c,$(B)/%,$(wildcard tests/bench/*.c))

$(BENCH_BIN): $(B)/%: $(B)/%.o $(B)/libengine.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

.PHONY: bench
bench: $(BENCH_BIN)
	@for b in $(BENCH_BIN); do echo "# $$b $(BENCH_ARGS)"; $$b $(BENCH_ARGS) || exit 1; done
