# make [CUDA=1] [SAN=address,undefined] [ARCH=native|x86-64-v3] {all,demo,test,bench,install}
#
# Targets that people type are at the end of this file; `make help` lists them.
-include config.mk                      # site settings; the only place a path is guessed

ARCH    ?= native
OPT     ?= -O3
B       ?= build$(if $(SAN),-san)
CC      ?= cc
CXX     ?= c++
NVCC    ?= nvcc
PREFIX  ?= /usr/local
PKGS    := libcjson libarchive libxxhash libpcre2-8 libutf8proc libpng libjpeg libavformat libavcodec libavfilter libavutil libswscale \
           pangocairo cairo libprotobuf-c sentencepiece
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unversioned)

WARN := -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wno-override-init -Wno-missing-field-initializers
override CFLAGS   += -std=gnu11 $(OPT) -g -march=$(ARCH) -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast $(WARN) -MMD -MP
override CPPFLAGS += -I. -Ilibcommon -I$(B) -D_GNU_SOURCE -DDT_VERSION='"$(VERSION)"' $(shell pkg-config --cflags $(PKGS))
override CXXFLAGS += -std=c++17 -O2 -g -Wall -Wextra -MMD -MP
override LDLIBS   += $(shell pkg-config --libs $(PKGS)) -ldnnl -llapacke -lstdc++ -lm -ldl -fopenmp
ifdef SAN
override CFLAGS   += -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=undefined
override CXXFLAGS += -fsanitize=$(SAN)
override LDFLAGS  += -fsanitize=$(SAN)
endif

TOOLS := $(patsubst tools/%.c,%,$(wildcard tools/dt-*.c))
LIB_C := $(filter-out %_test.c,$(wildcard libcommon/*/*.c kernels/*.c))
LIB_X := $(wildcard libcommon/*/*.cc)
LIB_P := $(wildcard libcommon/*/*.proto)
LIB_O := $(LIB_C:%.c=$(B)/%.o) $(LIB_X:%.cc=$(B)/%.cc.o) $(LIB_P:libcommon/%.proto=$(B)/%.pb-c.o)
UNITS := $(patsubst tests/unit/%.c,$(B)/unit/%,$(wildcard tests/unit/*.c))
CASES := $(patsubst %.c,$(B)/%.o,$(wildcard kernels/*_test.c))

all: $(TOOLS:%=$(B)/bin/%)

$(B)/libdt.a: $(LIB_O)
	rm -f $@ && $(AR) rcs $@ $^
$(B)/bin/%: $(B)/tools/%.o $(B)/libdt.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -rdynamic -o $@ $^ $(LDLIBS)
$(B)/unit/%: $(B)/tests/unit/%.o $(B)/libdt.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS)
$(B)/golden: $(patsubst %.c,$(B)/%.o,tests/golden.c $(wildcard tests/golden/*.c)) $(B)/libdt.a
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(B)/checkop: $(B)/tests/checkop.o $(CASES) $(B)/libdt.a
	$(CC) $(CFLAGS) $(LDFLAGS) -rdynamic -o $@ $^ $(LDLIBS)
$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<
$(B)/%.cc.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -c -o $@ $<

# Protobuf messages: #include "train/x.pb-c.h" is $(B)/train/x.pb-c.h
$(B)/%.pb-c.c $(B)/%.pb-c.h: libcommon/%.proto
	@mkdir -p $(@D)
	protoc-c --proto_path=libcommon --c_out=$(B) $<
$(B)/%.pb-c.o: $(B)/%.pb-c.c
	$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<
$(LIB_P:%.proto=$(B)/%.o): $(B)/libcommon/%.o: $(B)/%.pb-c.h

lib: $(B)/libdt.a
units: $(UNITS)

-include $(shell find $(B) -name '*.d' 2>/dev/null)
.SECONDARY:
.DELETE_ON_ERROR:
.PHONY: all lib units
