# C programs of tests/ecosystem: each *.c prints what a Python test compares.
ECO_SRC := $(wildcard tests/ecosystem/*.c)
ECO_BIN := $(ECO_SRC:%.c=$(B)/%)

$(ECO_BIN): $(B)/tests/ecosystem/%: $(B)/tests/ecosystem/%.o $(B)/tests/lib/refbatch.o $(B)/libengine.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

.PHONY: eco-bins check-ecosystem
eco-bins: $(ECO_BIN)
check-ecosystem: eco-bins $(B)/graft
	VENV=$(VENV) PYTHON=$(PYTHON) bash tests/ecosystem/run.sh $(FILTER)
