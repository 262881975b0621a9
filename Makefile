# graft: make | make demo | make test | make check-ecosystem | make lint | make san | make bench
# Plain make, no configure step. Sources are found by folder: adding a file needs no change here.

CC      ?= gcc
PYTHON  ?= python3
B       := build
VENV    ?= $(B)/venv
VERSION := 0.1.0

PKGS    := libmicrohttpd jansson sqlite3 libcrypto libpcre2-8 libutf8proc openblas libarchive
WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wconversion \
           -Wno-sign-conversion -Wno-format-truncation $(if $(CI),-Werror)
HARDEN  := -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fPIE
# No contraction and no fast-math: the same bits from every compiler and level (mathx.h).
FPFLAGS := -ffp-contract=off -fno-math-errno -fno-trapping-math
CFLAGS  ?= -O2 -g
ALLFLAGS = -std=c11 -D_GNU_SOURCE -DGRAFT_VERSION='"$(VERSION)"' -I. -I$(B)/gen $(CFLAGS) \
           $(WARN) $(HARDEN) $(FPFLAGS) $(shell pkg-config --cflags $(PKGS)) $(SAN)
LDFLAGS += -pie -Wl,-z,relro,-z,now $(SAN)
LIBS    := $(shell pkg-config --libs $(PKGS)) -lpthread -lm

ENGINE_SRC := $(wildcard engine/base/*.c engine/core/*.c engine/op/*.c engine/cpu/*.c engine/opt/*.c \
               engine/data/*.c engine/tok/*.c engine/fmt/*.c engine/model/*.c engine/method/*.c \
               engine/job/*.c)
SERVICE_SRC := $(filter-out service/main.c,$(wildcard service/*.c handlers/*.c))
ENGINE_OBJ := $(ENGINE_SRC:%.c=$(B)/%.o)
SERVICE_OBJ := $(SERVICE_SRC:%.c=$(B)/%.o)

.PHONY: all
all: $(B)/graft

$(B)/libengine.a: $(ENGINE_OBJ)
	@rm -f $@
	ar rcs $@ $^

$(B)/graft: $(B)/service/main.o $(SERVICE_OBJ) $(B)/libengine.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALLFLAGS) $(EXTRA_$(notdir $*)) -MMD -MP -c -o $@ $<

include $(wildcard mk/*.mk)

.PHONY: clean
clean:
	rm -rf $(B)

-include $(shell find $(B) -name '*.d' 2>/dev/null)
