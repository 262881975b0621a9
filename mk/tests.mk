# Tests. A C test is one file NAME_test.c (cmocka, own main); it links the engine and the service.
# `make test` builds and runs them all, then the shell tests tests/*/*_test.sh, and prints one total.

TEST_SRC := $(wildcard tests/unit/*_test.c tests/op/*_test.c tests/model/*_test.c \
             tests/method/*_test.c tests/api/*_test.c tests/crash/*_test.c)
TEST_LIB_SRC := $(wildcard tests/lib/*.c engine/op/ref/*.c)
TEST_LIB_OBJ := $(TEST_LIB_SRC:%.c=$(B)/%.o)
TEST_BIN := $(TEST_SRC:%.c=$(B)/%)
TEST_LIBS := -lcmocka -lcurl

$(B)/tests/%_test: $(B)/tests/%_test.o $(TEST_LIB_OBJ) $(SERVICE_OBJ) $(B)/libengine.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS) $(TEST_LIBS)

.PHONY: test test-bins
test-bins: $(TEST_BIN) $(B)/graft
# README command 2: installs what is missing, then needs no network.
test:
	bash scripts/deps.sh build test
	$(MAKE) -j$$(nproc) test-bins
	bash tests/run.sh $(FILTER)
