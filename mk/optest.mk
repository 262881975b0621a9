# The tests of the operations share their checks, tests/op/optest*.c. These objects come after the
# archive on the command line, so the archive is named once more behind them.
OPTEST_OBJ := $(patsubst %.c,$(B)/%.o,$(wildcard tests/op/optest*.c))
OPTEST_BIN := $(patsubst %.c,$(B)/%,$(wildcard tests/op/*_test.c))
$(OPTEST_BIN): $(OPTEST_OBJ)
$(OPTEST_BIN): LIBS := $(B)/libengine.a $(LIBS)
.SECONDARY: $(OPTEST_OBJ)
