# The helper through which tests/ecosystem/test_safetensors.py and test_formats.py see graft's formats.
$(B)/tests/ecosystem/st_dump: $(B)/tests/ecosystem/st_dump.o $(B)/libengine.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)
