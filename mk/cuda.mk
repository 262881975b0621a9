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
            -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-ffp-contract=off $(if $(CI),-Werror all-warnings)
# Where bits must be those of the CPU no product is fused with a sum (mathx.h); matrix products and
# attention may.
CU_FUSED := gemm k_attn k_attn_bwd k_attn_mma
cu_fmad   = $(if $(filter $(CU_FUSED),$(notdir $(1))),,-fmad=false)

$(CU_SRC:%.cu=$(B)/%.o): $(B)/%.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(CU_FLAGS) $(call cu_fmad,$*) -MMD -MP -MF $(B)/$*.d -c -o $@ $<

$(B)/pic/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALLFLAGS) -fPIC -fvisibility=hidden -MMD -MP -c -o $@ $<

$(B)/libgraft_cuda.so: $(CU_OBJ)
	$(NVCC) $(CU_ARCH) -shared -cudart static -o $@ $^

ifneq ($(HAS_NVCC),)
all: $(B)/libgraft_cuda.so
endif

# ---- emulation ----

EMU_FLAGS := -std=c++17 -O1 -g -I. -D_GNU_SOURCE -DGRAFT_VERSION='"$(VERSION)"' -DCUDA_EMU \
             -fPIC -fvisibility=hidden -Wall -Wextra $(if $(CI),-Werror) $(FPFLAGS) $(SAN)
EMU_OBJ := $(CU_SRC:engine/cuda/%.cu=$(B)/cudaemu/%.o) $(B)/cudaemu/emu.o $(B)/cudaemu/rt.o \
           $(CU_C:%.c=$(B)/pic/%.o)

$(CU_SRC:engine/cuda/%.cu=$(B)/cudaemu/%.o): $(B)/cudaemu/%.o: engine/cuda/%.cu
	@mkdir -p $(@D)
	$(CXX) $(EMU_FLAGS) -x c++ -include tests/cudaemu/emu.h -MMD -MP -c -o $@ $<

$(B)/cudaemu/%.o: tests/cudaemu/%.cc
	@mkdir -p $(@D)
	$(CXX) $(EMU_FLAGS) -MMD -MP -c -o $@ $<

$(B)/libgraft_cudaemu.so: $(EMU_OBJ)
	$(CXX) -shared $(SAN) -o $@ $^

# What the loader finds instead of NVIDIA's library when LD_LIBRARY_PATH names the build folder.
$(B)/libcublasLt.so.13: tests/cudaemu/fake_lt.cc $(B)/libgraft_cudaemu.so
	$(CXX) $(EMU_FLAGS) -fvisibility=default -shared -o $@ $< $(B)/libgraft_cudaemu.so -Wl,-rpath,'$$ORIGIN'
