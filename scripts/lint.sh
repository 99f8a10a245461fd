#!/usr/bin/env bash
# cargo's wrapper for the workspace's own crates (RUSTC_WORKSPACE_WRAPPER): clippy lints and
# compiles in one step. It needs bash, because dash drops environment variables with a hyphen in
# their names, and cargo passes the paths of programs in such variables.
exec clippy-driver "$@" -D warnings
