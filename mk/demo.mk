# README command 1: installs what is missing, builds, adapts the bundled model, shows what changed.
.PHONY: demo
demo:
	bash scripts/deps.sh build
	$(MAKE) -j$$(nproc) $(B)/graft
	bash demo/demo.sh
