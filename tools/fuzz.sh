#!/bin/sh
# Runs every fuzz target of the module for a while: fuzz.sh TIME
set -eu
grep -rl --include='*_test.go' '^func Fuzz' . | grep -v '^./lab/' | xargs -n1 dirname | sort -u | while read -r dir; do
  grep -ho '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | sed 's/^func //' | while read -r target; do
    echo "$dir $target"
    go test "$dir" -run '^$' -fuzz "^$target\$" -fuzztime "$1"
  done
done
