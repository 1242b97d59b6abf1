# common.mk - what the pipelines share.
#
# A stage is a rule whose target is a file that a tool renames into place when it is whole: what exists is complete, so
# make continues an interrupted run where it was, and `make -n` is the plan of what is left.  A stage runs anew when its
# prerequisites are newer or its command has changed: OUTPUT_DIR/.STAGE.cmd holds the command that it was made with.
SHELL := /bin/sh
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DEFAULT_GOAL := $(or $(.DEFAULT_GOAL),all)
.PHONY: all FORCE
FORCE:

ROOT := $(patsubst %/pipelines/common.mk,%,$(abspath $(lastword $(MAKEFILE_LIST))))
# Where the tools are: built in this tree, or else in PATH.
DT   ?= $(if $(wildcard $(ROOT)/build/bin/dt-train),$(ROOT)/build/bin/)

# $(call settings,NAMES): takes the blanks off the values of these variables (a comment behind a value leaves some)
settings = $(foreach v,$1,$(eval override $v := $(strip $($v))))
# $(call needed,NAMES): stops unless they have values
needed = $(foreach v,$1,$(if $($v),,$(error $v is not set: the head of $(firstword $(MAKEFILE_LIST)) shows the variables)))

# $(call record,STAGE): the file that holds its command
record = $(OUTPUT_DIR)/.$1.cmd

# $(call changed,STAGE,COMMAND): FORCE if it was made by another command.  A file that someone put there stays.  Quotes do
# not count: the record has none.
differ  = $(or $(subst x$1,,x$2),$(subst x$2,,x$1))
changed = $(if $(wildcard $(call record,$1)),$(if $(call differ,$(strip $(file <$(call record,$1))),$(strip $(subst ',,$2))),FORCE))

# $(call stage,STAGE,COMMAND): the recipe
stage = $(ROOT)/pipelines/stage $(call record,$1) $(strip $2)
