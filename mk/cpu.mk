# The CPU kernels, once per instruction-set level. engine/cpu/kernel.h says how the copies get
# their names; the copy without a level is built by the general rule.
CPU_KERNELS := $(wildcard engine/cpu/k_*.c) engine/cpu/gemm.c engine/cpu/cpu_table.c
CPU_AVX2_OBJ := $(CPU_KERNELS:%.c=$(B)/%.avx2.o)

$(CPU_KERNELS:%.c=$(B)/%.o) $(CPU_AVX2_OBJ): ALLFLAGS += -O3 -Wno-psabi
$(CPU_AVX2_OBJ): ALLFLAGS += -DCPU_LEVEL=avx2 -mavx2 -mfma -mf16c

$(B)/%.avx2.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALLFLAGS) -MMD -MP -c -o $@ $<

$(B)/libengine.a: $(CPU_AVX2_OBJ)
