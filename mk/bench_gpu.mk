# make bench-gpu: speed and memory of a LoRA job on the GPU beside PyTorch (tests/bench/gpu).
# make bench-gpu-toy: the same program at toy size in the emulation.
BENCH_GPU := $(B)/tests/bench/gpu/bench_gpu

$(BENCH_GPU): $(B)/tests/bench/gpu/bench_gpu.o $(BENCH_OBJ) $(B)/libengine.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

.PHONY: bench-gpu bench-gpu-toy
bench-gpu: $(BENCH_GPU) $(B)/libgraft_cuda.so
	PYTHON=$(PYTHON) BENCH_COMMIT=$$(git rev-parse --short HEAD 2>/dev/null) \
	  GRAFT_CUDA_LIB=$(abspath $(B)/libgraft_cuda.so) $(BENCH_GPU) $(NAME)

bench-gpu-toy: $(BENCH_GPU) $(B)/libgraft_cudaemu.so
	PYTHON=false GRAFT_CUDA_LIB=$(abspath $(B)/libgraft_cudaemu.so) ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) $(BENCH_GPU) toy 2
