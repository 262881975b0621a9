# The CPU kernels, once per instruction-set level. engine/cpu/kernel.h says how the copies get
# their names; the copy without a level is built by the general rule.
CPU_KERNELS := $(wildcard engine/cpu/k_*.c) engine/cpu/gemm.c engine/cpu/cpu_table.c
CPU_LEVELS := avx2 avx512
CPU_FLAGS_avx2 := -mavx2 -mfma
CPU_FLAGS_avx512 := $(CPU_FLAGS_avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprfchw \
                    -mprefer-vector-width=512
CPU_LEVEL_OBJ := $(foreach l,$(CPU_LEVELS),$(CPU_KERNELS:%.c=$(B)/%.$l.o))

$(CPU_KERNELS:%.c=$(B)/%.o) $(CPU_LEVEL_OBJ): ALLFLAGS += -O3 -Wno-psabi

define CPU_LEVEL_RULE
$(B)/%.$1.o: %.c
	@mkdir -p $$(@D)
	$$(CC) $$(ALLFLAGS) -DCPU_LEVEL=$1 $$(CPU_FLAGS_$1) -MMD -MP -c -o $$@ $$<
endef
$(foreach l,$(CPU_LEVELS),$(eval $(call CPU_LEVEL_RULE,$l)))

$(B)/libengine.a: $(CPU_LEVEL_OBJ)
