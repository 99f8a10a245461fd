#!/usr/bin/env bash
# cargo's wrapper for the workspace's own crates (RUSTC_WORKSPACE_WRAPPER): clippy lints and compiles in one go.
# Not for sh: dash loses variables with a hyphen in their names, as cargo has them for the paths of programs.
exec clippy-driver "$@" -D warnings
