# make [CUDA=1] [SAN=address,undefined] [ARCH=native|x86-64-v3] [V=1: whole command lines] [TARGET]
#
# Targets that people type are at the end of this file; `make help` lists them.
-include config.mk                      # site settings; the only place a path is guessed

comma   := ,
ARCH    ?= native
OPT     ?= -O3
B       ?= build$(if $(SAN),-$(firstword $(subst $(comma), ,$(SAN))))
# One name for one folder: the rules in *.d name objects by it.
override B := $(B:$(CURDIR)/%=%)
CC      ?= cc
CXX     ?= c++
NVCC    ?= nvcc
PREFIX  ?= /usr/local
PKGS    := libcjson libarchive libxxhash libpcre2-8 libutf8proc libpng libjpeg libwebp libdeflate \
           libavformat libavcodec libavfilter libavutil libswscale pangocairo cairo libprotobuf-c sentencepiece
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unversioned)
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)
PKG_GONE   := $(shell for p in tomlplusplus $(if $(PKG_LIBS),,$(PKGS)); do pkg-config --exists $$p || printf '%s ' $$p; done)
Q           = $(if $(V)$(findstring s,$(firstword -$(MAKEFLAGS))),,@echo '  $1 $@';)      # not with make -s

WARN := -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wno-override-init -Wno-missing-field-initializers
override CFLAGS   += -std=gnu11 $(OPT) -g -march=$(ARCH) -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast $(WARN) -MMD -MP
override CPPFLAGS += -I. -Ilibcommon -I$(B) -D_GNU_SOURCE -DDT_VERSION='"$(VERSION)"' $(PKG_CFLAGS)
override CXXFLAGS += -std=c++17 -O2 -g -Wall -Wextra -MMD -MP
override LDLIBS   += $(PKG_LIBS) -ldnnl -llapacke -lstdc++ -lm -ldl -fopenmp
# The fuzz targets are built with FUZZ_BUILD=1 B=some folder of their own: clang, libFuzzer and its sanitizers.
ifdef FUZZ_BUILD
CC       = clang
CXX      = clang++
OPT      = -O1
SAN      = fuzzer-no-link,address,undefined
override CFLAGS  += -Wno-pass-failed
override LDFLAGS += -fsanitize-link-c++-runtime
endif
ifdef SAN
override CFLAGS   += -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=undefined
override CXXFLAGS += -fsanitize=$(SAN)
override LDFLAGS  += -fsanitize=$(SAN)
endif

ifdef COV                               # lines of libcommon and tools are counted, kernels are not
$(B)/libcommon/%.o $(B)/tools/%.o: override CFLAGS += --coverage -fprofile-update=atomic
override LDFLAGS  += --coverage
endif

TOOLS := $(patsubst tools/%.c,%,$(wildcard tools/dt-*.c))
LIB_C := $(filter-out %_test.c,$(wildcard libcommon/*/*.c kernels/*.c))
LIB_X := $(wildcard libcommon/*/*.cc)
LIB_P := $(wildcard libcommon/*/*.proto)
LIB_O := $(LIB_C:%.c=$(B)/%.o) $(LIB_X:%.cc=$(B)/%.cc.o) $(LIB_P:libcommon/%.proto=$(B)/%.pb-c.o)
UNITS := $(patsubst tests/unit/%.c,$(B)/unit/%,$(wildcard tests/unit/*.c))
PROGS := $(patsubst tests/%.c,$(B)/%,$(shell grep -ls '^int main' tests/*.c))
FUZZ  := $(patsubst tests/fuzz/%.c,$(B)/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
CASES := $(patsubst %.c,$(B)/%.o,$(wildcard kernels/*_test.c))
BENCH := $(patsubst %.c,$(B)/%.o,$(wildcard tests/bench/*.c))
CU    := $(wildcard kernels/*.cu)
EMU_O := $(CU:%.cu=$(B)/cuemu/%.o) $(B)/tests/cuemu/cuemu.cc.o

all: $(TOOLS:%=$(B)/bin/%)
packages:
	@test -z '$(PKG_GONE)' || { echo 'pkg-config misses $(PKG_GONE)or what they need: "make deps" installs Debian packages' >&2; exit 1; }

$(B)/libdt.a: $(LIB_O)
	$(call Q,AR)rm -f $@ && $(AR) rcs $@ $^
$(B)/bin/%: $(B)/tools/%.o $(B)/libdt.a
	@mkdir -p $(@D)
	$(call Q,LD)$(CC) $(CFLAGS) $(LDFLAGS) -rdynamic -o $@ $^ $(LDLIBS)
$(B)/unit/%: $(B)/tests/unit/%.o $(B)/libdt.a
	@mkdir -p $(@D)
	$(call Q,LD)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS)
# tests/X.c with a main is a program; tests/X_*.c and tests/X/*.c are parts of it.
.SECONDEXPANSION:
$(PROGS): $(B)/%: $(B)/tests/%.o $$(addprefix $(B)/,$$(addsuffix .o,$$(basename $$(wildcard tests/$$*_*.c tests/$$*/*.c)))) $(B)/libdt.a
	$(call Q,LD)$(CC) $(CFLAGS) $(LDFLAGS) -rdynamic -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LDLIBS)
$(B)/%.o: %.c | packages
	@mkdir -p $(@D)
	$(call Q,CC)$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<
$(B)/%.cc.o: %.cc | packages
	@mkdir -p $(@D)
	$(call Q,CXX)$(CXX) $(CPPFLAGS) $(CXXFLAGS) -c -o $@ $<

# Protobuf messages: #include "train/x.pb-c.h" is $(B)/train/x.pb-c.h
$(B)/%.pb-c.c $(B)/%.pb-c.h: libcommon/%.proto
	@mkdir -p $(@D)
	protoc-c --proto_path=libcommon --c_out=$(B) $<
$(B)/%.pb-c.o: $(B)/%.pb-c.c
	$(call Q,CC)$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<
$(LIB_P:%.proto=$(B)/%.o): $(B)/libcommon/%.o: $(B)/%.pb-c.h

# Fuzz targets.  tests/fuzz/X.c that is no target is a part of every one; the tools come in with their mains renamed.
FUZZ_O  := $(patsubst %.c,$(B)/%.o,$(filter-out tests/fuzz/fuzz_%,$(wildcard tests/fuzz/*.c)))
$(FUZZ): $(B)/fuzz/%: $(B)/tests/fuzz/%.o $(FUZZ_O) $(B)/fuzz/tools.a $(B)/libdt.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LDLIBS) -lz
$(B)/fuzz/tools.a: $(TOOLS:%=$(B)/fuzz/%.o)
	rm -f $@ && $(AR) rcs $@ $^
$(B)/fuzz/dt-%.o: $(B)/tools/dt-%.o
	@mkdir -p $(@D)
	objcopy --redefine-sym main=dt_$(subst -,_,$*)_main $< $@

$(B)/checkop: $(CASES) $(EMU_O)
$(BENCH): override CPPFLAGS += -Itests
$(B)/bench: $(BENCH) $(B)/libdt.a
	$(call Q,LD)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(B)/bench-data: $(B)/tests/bench/data/driver.o $(B)/libdt.a
	$(call Q,LD)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# CUDA.  The plugin: machine code for A100 and H100, PTX for what comes later.
override NVCCFLAGS += -std=c++17 -O3 -lineinfo -gencode arch=compute_80,code=sm_80 -gencode 'arch=compute_90,code=[sm_90,compute_90]' \
    -I. -Ilibcommon -MMD -MP -Xcompiler -fPIC,-Wall,-Wextra,-Wno-missing-field-initializers -Wno-deprecated-gpu-targets
ifdef CUDA
all: $(B)/bin/libdt-cuda.so
endif
$(B)/bin/libdt-cuda.so: $(CU:%.cu=$(B)/%.cu.o)
	@mkdir -p $(@D)
	$(call Q,LD)$(NVCC) -shared -Xlinker -z,defs -o $@ $^
$(B)/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(call Q,NVCC)$(NVCC) $(NVCCFLAGS) -c -o $@ $<
# The same files under the emulation in tests/cuemu, on any machine.
$(B)/cuemu/%.o: %.cu
	@mkdir -p $(@D)
	$(call Q,CXX)$(CXX) -Itests/cuemu -I. -Ilibcommon $(CXXFLAGS) -Wno-missing-field-initializers -x c++ -c -o $@ $<
$(filter $(B)/unit/cuemu_%,$(UNITS)): $(B)/unit/%: $(B)/tests/unit/%.o $(B)/cuemu/tests/cuemu/broken.o $(EMU_O) $(B)/libdt.a
	@mkdir -p $(@D)
	$(call Q,LD)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS)

# What prints the version is compiled anew when it changes.
$(B)/version: FORCE
	@mkdir -p $(@D)
	@echo '$(VERSION)' | cmp -s - $@ || echo '$(VERSION)' >$@
$(patsubst %.c,$(B)/%.o,$(shell grep -ls DT_VERSION libcommon/*/*.c tools/*.c)): $(B)/version

-include $(shell find $(B) -name '*.d' 2>/dev/null)
.SECONDARY:
.DELETE_ON_ERROR:
FORCE:
.PHONY: FORCE packages all lib units progs fuzzers cppflags check check-threads deps demo test san fuzz lint valgrind coverage \
    bench bench-data bench-scale bench-torch man install clean help

$(CURDIR)/$(B)/%: $(B)/%
	@:
lib: $(B)/libdt.a
units: $(UNITS)
progs: $(PROGS) $(B)/bench
fuzzers: $(FUZZ)
cppflags:
	@echo '$(CPPFLAGS)'
check: all units progs
	@B=$(B) tests/run $(wildcard tools/*.t tests/*.t) $(PROGS) $(UNITS)
check-threads: all units $(B)/golden
	@B=$(B) tests/run $(UNITS) $(B)/golden $(wildcard tools/*.t)

# --- targets that people type ---
JOBS = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))
deps:           ## install the Debian packages that are missing (DEPS=skip: leave the system alone)
	@DEPS='$(DEPS)' pipelines/deps.sh
demo: deps      ## fine-tune a tiny FLUX on eight pictures of examples/ and sample it: out/demo
	@$(MAKE) --no-print-directory $(JOBS) all
	@$(MAKE) --no-print-directory -f pipelines/demo.mk EXAMPLES=examples DT=$(B)/bin/
test: deps      ## build everything and run all tests; `make check` does it without looking at packages
	@$(MAKE) --no-print-directory $(JOBS) check
san:            ## run all tests under ASan and UBSan, and those with threads under TSan (wants clang and its libomp)
	@$(MAKE) --no-print-directory $(JOBS) SAN=address,undefined check
	@$(MAKE) --no-print-directory $(JOBS) SAN=thread CC=clang CXX=clang++ check-threads
fuzz:           ## run every fuzz target for FUZZ_SECONDS (60) after its corpus, two at a time (wants clang and its libomp)
	@$(MAKE) --no-print-directory -s $(JOBS) FUZZ_BUILD=1 B=$(B)-fuzz fuzzers
	@B=$(B)-fuzz tests/fuzz/run -s $(or $(FUZZ_SECONDS),60)
lint:           ## static analysis: gcc -fanalyzer, clang-tidy and cppcheck; prints one line if there is nothing open
	@B=$(B) tests/lint/run
valgrind:       ## run the short paths of all tools under valgrind's memcheck (wants valgrind)
	@$(MAKE) --no-print-directory $(JOBS) B=build-valgrind ARCH=x86-64-v3 OPT=-O1 all
	@B=build-valgrind tests/valgrind
coverage:       ## run all tests and report how many lines of libcommon and tools they run
	@find build-cov -name '*.gcda' -delete 2>/dev/null; $(MAKE) --no-print-directory $(JOBS) COV=1 B=build-cov check || \
	    echo 'coverage: what counts takes memory and time: tests that measure them or run out of memory may fail here'
	@tests/coverage build-cov
bench: $(B)/bench $(B)/checkop      ## time every op and every network, as shares of what this machine can do at most
	@$(B)/checkop -b
	@$(B)/bench
	@$(B)/bench -t bf16
bench-data: all $(B)/bench-data     ## work on data beside Pillow and tokenizers, one core: PYTHON=one that has them; tests/bench/data.sh
	@B=$(B) PYTHON=$(or $(PYTHON),python3) tests/bench/data.sh
bench-scale: all $(B)/bench-data    ## time and memory of dt-bucket and dt-cache-latents for 1,000 to 100,000 pictures
	@B=$(B) tests/bench/scale.sh
bench-torch: $(B)/bench     ## the same networks beside PyTorch's: PYTHON=one that has torch, diffusers, transformers and peft
	@B=$(B) $(or $(PYTHON),python3) tests/bench/torch_compare.py
	@$(MAKE) --no-print-directory bench-data
man: all        ## write the OPTIONS sections of man/ anew from the tools
	B=$(B) tests/man.t -u
install: all    ## copy programs, manual pages and completion to $(DESTDIR)$(PREFIX)
	install -d $(DESTDIR)$(PREFIX)/bin $(addprefix $(DESTDIR)$(PREFIX)/share/man/man,$(sort $(patsubst .%,%,$(suffix $(wildcard man/*.[157])))))
	install $(TOOLS:%=$(B)/bin/%) $(if $(CUDA),$(B)/bin/libdt-cuda.so) $(DESTDIR)$(PREFIX)/bin
	for t in $(TOOLS); do for s in bash=bash-completion/completions/$$t zsh=zsh/site-functions/_$$t fish=fish/vendor_completions.d/$$t.fish; do \
	    $(B)/bin/$$t --completion $${s%%=*} >$(B)/completion && \
	    install -D -m 644 $(B)/completion $(DESTDIR)$(PREFIX)/share/$${s#*=} || exit 1; done; done
	for p in $(wildcard man/*.[157]); do install -m 644 $$p $(DESTDIR)$(PREFIX)/share/man/man$${p##*.}; done
clean:          ## remove what was built
	rm -rf build build-*
help:           ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12
