# make bench [NAME=part of a name]: speed of kernels and of whole jobs against what else could be
# used. Each tests/bench/bench_*.c is a program; the other sources there are what they share.
# They print lines   bench <name> graft=<x> peer=<y> ratio=<z> unit=<u>   (tests/bench/README.md)
BENCH_BIN := $(patsubst %.c,$(B)/%,$(wildcard tests/bench/bench_*.c))
BENCH_OBJ := $(patsubst %.c,$(B)/%.o,$(filter-out tests/bench/bench_%.c,$(wildcard tests/bench/*.c)))

$(BENCH_BIN): $(B)/%: $(B)/%.o $(BENCH_OBJ) $(B)/libengine.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

.PHONY: bench
bench: $(BENCH_BIN)
	@export PYTHON=$(PYTHON) BENCH_COMMIT=$$(git rev-parse --short HEAD 2>/dev/null); \
	for b in $(BENCH_BIN); do echo "# $$(basename $$b)"; $$b $(NAME) || exit 1; done
