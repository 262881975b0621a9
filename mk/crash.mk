# make crash: every visit of every crash point (tests/crash/README.md); `make test` takes a sample.

.PHONY: crash
crash: $(B)/tests/crash/crash_test
	CRASH=all $(B)/tests/crash/crash_test

$(B)/tests/crash/crash_check: $(B)/tests/crash/crash_check.o $(B)/tests/lib/check.o $(SERVICE_OBJ) \
                              $(B)/libengine.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)
