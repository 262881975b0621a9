# Files that travel inside the binary, as C arrays in build/gen, made with od and sed alone.
# service/schema.sql becomes gen/schema_sql.h: static const unsigned char schema_sql[], ends in 0.

EMBED := service/schema.sql openapi.yaml

embed_name = $(subst .,_,$(subst -,_,$(notdir $(1))))
embed_out  = $(B)/gen/$(call embed_name,$(1)).h

define EMBED_RULE
$(call embed_out,$(1)): $(1) mk/embed.mk
	@mkdir -p $$(@D)
	@{ echo 'static const unsigned char $(call embed_name,$(1))[] = {'; \
	   od -An -v -tx1 $$< | sed 's/ \([0-9a-f][0-9a-f]\)/0x\1,/g'; echo '0};'; } >$$@.tmp
	@mv $$@.tmp $$@
endef
$(foreach f,$(EMBED),$(eval $(call EMBED_RULE,$(f))))

$(B)/service/store.o: $(call embed_out,service/schema.sql)
$(B)/handlers/openapi.o: $(call embed_out,openapi.yaml)
