# make san: the unit and op tests under the address and undefined-behaviour sanitizers, then the
# tests that start threads under the thread sanitizer. Builds apart from the others.
ASAN_FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
TSAN_FLAGS := -fsanitize=thread -fno-omit-frame-pointer
# validate_test: its child is to die of a signal, which a sanitizer turns into an exit.
SAN_SKIP   := tests/unit/validate_test
# llama_grad_test: minutes under this one, and nothing but the kernels that kernel_test runs.
TSAN_SKIP  := $(SAN_SKIP) tests/unit/llama_grad_test
SAN_TESTS  := $(filter-out $(SAN_SKIP),$(patsubst %.c,%,$(wildcard tests/unit/*_test.c tests/op/*_test.c)))
# Whoever names a pool, a thread or the service, and the kernels (which run on 7 threads).
TSAN_TESTS := $(filter-out $(TSAN_SKIP),$(patsubst %.c,%,$(shell \
                grep -lE 'base/pool\.h|pthread\.h|core/exec\.h|"service/' tests/unit/*_test.c))) \
              tests/op/kernel_test

# Options for the run: mem_* asks for too much on purpose and expects NULL. No
# detect_stack_use_after_return: gcc 12 misaligns vectors on its fake stack (gcc bug 110027).
SAN_ENV := ASAN_OPTIONS=allocator_may_return_null=1 \
           UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1

.PHONY: san san-run
san:
	$(MAKE) B=build-san SAN="$(ASAN_FLAGS)" SAN_RUN="$(SAN_TESTS)" san-run
	$(MAKE) B=build-tsan SAN="$(TSAN_FLAGS)" SAN_RUN="$(TSAN_TESTS)" \
	  SAN_FILTER='*match_the_reference' san-run

# SAN_FILTER: which tests of the op binaries; the others take no pattern.
san-run: $(SAN_RUN:%=$(B)/%)
	@failed=0; for t in $(SAN_RUN); do \
	  case $$t in tests/op/*) args=$(if $(SAN_FILTER),"'$(SAN_FILTER)'") ;; *) args= ;; esac; \
	  if env $(SAN_ENV) sh -c "timeout -k 5 600 $(B)/$$t $$args" >$(B)/san.log 2>&1; \
	  then echo "ok      $$t"; \
	  else failed=1; echo "FAILED  $$t"; grep -vE '^\[ (RUN|      OK)' $(B)/san.log | tail -n 60; fi; \
	done; exit $$failed
