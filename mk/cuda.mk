# CUDA: build/libgraft_cuda.so from engine/cuda/*.cu where nvcc is found (the program loads it at
# run time and builds without it); make check-cudaemu: the same sources compiled for the host
# (tests/cudaemu/README.md); make check-gpu: the same tests on a real device.
NVCC    ?= nvcc
HAS_NVCC := $(shell command -v $(NVCC) 2>/dev/null)

$(B)/libengine.a: $(patsubst %.c,$(B)/%.o,$(wildcard engine/cuda/*.c))

CU_SRC := $(wildcard engine/cuda/*.cu)
# Reports of failures are the engine's own.
CU_C   := engine/base/err.c engine/base/str.c engine/core/dtype.c engine/cuda/cuda_ws.c
CU_OBJ := $(CU_SRC:%.cu=$(B)/%.o) $(CU_C:%.c=$(B)/pic/%.o)

# Compute capability 8.0 and 9.0 as machine code, everything newer through PTX.
CU_ARCH  ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=[sm_90,compute_90]
CU_FLAGS := -std=c++17 -O3 -I. -D_GNU_SOURCE -DGRAFT_VERSION='"$(VERSION)"' $(CU_ARCH) \
            -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-ffp-contract=off -Xptxas -warn-spills $(if $(CI),-Werror all-warnings)
# Where bits must be those of the CPU no product is fused with a sum (mathx.h); matrix products and
# attention may.
CU_FUSED := gemm k_attn k_attn_bwd k_attn_mma
cu_fmad   = $(if $(filter $(CU_FUSED),$(notdir $(1))),,-fmad=false)

$(CU_SRC:%.cu=$(B)/%.o): $(B)/%.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(CU_FLAGS) $(call cu_fmad,$*) -MMD -MP -MF $(B)/$*.d -c -o $@ $<

$(B)/pic/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(BARE_FLAGS) -fPIC -fvisibility=hidden -MMD -MP -c -o $@ $<

$(B)/libgraft_cuda.so: $(CU_OBJ)
	$(NVCC) $(CU_ARCH) -shared -cudart static -o $@ $^

ifneq ($(HAS_NVCC),)
all: $(B)/libgraft_cuda.so
endif

# ---- emulation ----

# The kernels and the emulation under AddressSanitizer; the engine beside them is that of $(B).
EMU_SAN := -fsanitize=address,alignment -fno-sanitize-recover=alignment -fno-omit-frame-pointer
EMU_FLAGS := -std=c++17 -O2 -g -I. -D_GNU_SOURCE -DGRAFT_VERSION='"$(VERSION)"' -DCUDA_EMU \
             -fPIC -fvisibility=hidden -Wall -Wextra $(if $(CI),-Werror) $(FPFLAGS) $(EMU_SAN)
EMU_OBJ := $(CU_SRC:engine/cuda/%.cu=$(B)/cudaemu/%.o) $(B)/cudaemu/emu.o $(B)/cudaemu/rt.o \
           $(CU_C:%.c=$(B)/pic/%.o)

$(CU_SRC:engine/cuda/%.cu=$(B)/cudaemu/%.o): $(B)/cudaemu/%.o: engine/cuda/%.cu
	@mkdir -p $(@D)
	$(CXX) $(EMU_FLAGS) -x c++ -include tests/cudaemu/emu.h -MMD -MP -c -o $@ $<

$(B)/cudaemu/%.o: tests/cudaemu/%.cc
	@mkdir -p $(@D)
	$(CXX) $(EMU_FLAGS) -MMD -MP -c -o $@ $<

$(B)/libgraft_cudaemu.so: $(EMU_OBJ)
	$(CXX) -shared $(EMU_SAN) -o $@ $^

# What the loader finds instead of NVIDIA's library when LD_LIBRARY_PATH names its folder.
$(B)/cudaemu/libcublasLt.so.13: $(B)/cudaemu/fake_lt.o $(B)/libgraft_cudaemu.so
	$(CXX) -shared $(EMU_SAN) -o $@ $^ -Wl,-rpath,'$$ORIGIN/..'

# ---- tests ----

# They take whatever CUDA library GRAFT_CUDA_LIB names, and link no service. For the emulation the
# program must bring the sanitizer.
CU_TEST_SRC := $(wildcard tests/cudaemu/*_test.c)
CU_TEST := $(CU_TEST_SRC:%.c=$(B)/%)
CU_TEST_LIB := $(patsubst %.c,$(B)/%.o,$(wildcard engine/op/ref/*.c tests/op/optest*.c) \
                 tests/lib/toy_llama.c tests/lib/jobdir.c)

$(CU_TEST): $(B)/%: $(B)/%.o $(CU_TEST_LIB) $(B)/libengine.a
	$(CC) $(LDFLAGS) $(CU_TEST_SAN) -o $@ $^ $(B)/libengine.a $(LIBS) -lcmocka

# The emulation's own test holds it in itself.
$(B)/tests/cudaemu/emu_test: $(addprefix $(B)/cudaemu/,emu_test.o emu.o rt.o)
	@mkdir -p $(@D)
	$(CXX) $(LDFLAGS) $(EMU_SAN) -o $@ $^ -lcmocka

.PHONY: check-cudaemu cudaemu-bins
cudaemu-bins: CU_TEST_SAN := $(EMU_SAN)
cudaemu-bins: $(CU_TEST) $(B)/tests/cudaemu/emu_test $(B)/cudaemu/libcublasLt.so.13
check-cudaemu:
	$(MAKE) -j$$(nproc) cudaemu-bins
	bash tests/cudaemu/run.sh $(B)

# ---- a real GPU ----

# The engine below its formats, alone: neither JSON, nor hashes of files, nor a test library, so that
# a machine with nvcc and a C compiler is enough (what calls the missing files is left out by the
# linker). Stand-ins for two headers are in tests/cudaemu/bare.
BARE_SKIP := engine/base/jx.c engine/base/hash.c engine/base/manifest.c \
             engine/core/plan_cache.c
BARE_SRC  := $(filter-out $(BARE_SKIP),$(wildcard $(addsuffix /*.c,$(addprefix engine/,base core op \
               cpu cuda)))) engine/op/ref/*.c tests/op/optest*.c tests/lib/toy_llama.c \
             tests/cudaemu/bare/bare.c
BARE_OBJ  := $(patsubst %.c,$(B)/bare/%.o,$(wildcard $(BARE_SRC))) \
             $(foreach l,$(CPU_LEVELS),$(CPU_KERNELS:%.c=$(B)/bare/%.$l.o))
BARE_TEST := $(patsubst %,$(B)/bare/tests/cudaemu/%,op_test device_test update_test)
BARE_FLAGS := -std=c11 -D_GNU_SOURCE -DGRAFT_VERSION='"$(VERSION)"' -Itests/cudaemu/bare -I. -O2 -g \
              $(WARN) -fPIE -ffunction-sections $(FPFLAGS)

$(B)/bare/engine/cpu/%.o: BARE_FLAGS += -O3 -Wno-psabi
$(B)/bare/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(BARE_FLAGS) -MMD -MP -c -o $@ $<
define BARE_LEVEL_RULE
$(B)/bare/%.$1.o: %.c
	@mkdir -p $$(@D)
	$$(CC) $$(BARE_FLAGS) -DCPU_LEVEL=$1 $$(CPU_FLAGS_$1) -MMD -MP -c -o $$@ $$<
endef
$(foreach l,$(CPU_LEVELS),$(eval $(call BARE_LEVEL_RULE,$l)))

$(BARE_TEST): %: %.o $(BARE_OBJ)
	$(CC) -pie -Wl,--gc-sections -o $@ $^ -lpthread -lm -ldl

.PHONY: check-gpu gpu-bins
gpu-bins: $(BARE_TEST) $(B)/libgraft_cuda.so
check-gpu:
	bash tests/cudaemu/gpu.sh $(B)
