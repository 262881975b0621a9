# make lint: the rules of the code (tests/lint/README.md); with cppcheck where it is installed.
# make lint TIDY=1 adds a subset of clang-tidy, which takes a minute or more.
TIDY_CHECKS := -*,bugprone-infinite-loop,bugprone-suspicious-mem*,$\
               bugprone-suspicious-semicolon,bugprone-integer-division,bugprone-macro-repeated*,$\
               bugprone-undefined-memory-manipulation,clang-analyzer-core.*,$\
               -clang-analyzer-core.NullDereference,$\
               clang-analyzer-deadcode.*,clang-analyzer-unix.*
LINT_SRC := $(wildcard engine/*/*.c service/*.c handlers/*.c)

.PHONY: lint lint-rules lint-cppcheck lint-tidy
lint: lint-rules lint-cppcheck $(if $(TIDY),lint-tidy)

lint-rules:
	bash tests/lint/lint.sh

lint-cppcheck:
	@if command -v cppcheck >/dev/null; then \
	  echo "cppcheck: $(words $(LINT_SRC)) files"; \
	  cppcheck -q -j2 --std=c11 --enable=warning,portability --inline-suppr --error-exitcode=1 \
	    --suppressions-list=tests/lint/cppcheck -I. $(LINT_SRC); \
	else echo "SKIP: cppcheck is not installed"; fi

lint-tidy:
	@if command -v clang-tidy >/dev/null; then \
	  printf '%s\n' $(LINT_SRC) | xargs -P2 -I{} clang-tidy --quiet --warnings-as-errors='*' \
	    --checks='$(TIDY_CHECKS)' {} -- $(filter-out -W%,$(ALLFLAGS)); \
	else echo "SKIP: clang-tidy is not installed"; fi
