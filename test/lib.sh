# Functions that the scripts of this folder share. Sourced, not run.

BOLD='' DIM='' RESET='' RED=''
if [ -t 1 ]; then BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' RESET=$'\e[0m'; fi
STARTED=$(date +%s)

# step TITLE: a heading with the time since the start.
step() { printf '\n%s== %s%s %s(%ss)%s\n' "$BOLD" "$*" "$RESET" "$DIM" "$(($(date +%s) - STARTED))" "$RESET"; }

# note TEXT: a remark between commands.
note() { printf '%s# %s%s\n' "$DIM" "$*" "$RESET"; }

# CALLS is a load, for the shell of a pod or a plain host: sh -c "$CALLS" sh FILE URL SECONDS. It goes on in
# the background, for so long or until FILE.stop exists, and then leaves FILE.end. Two workers make requests, each
# on a connection of its own, one after another, at most 20 a second. FILE gets a line for each: when it was over
# (seconds since the machine started), status, curl's exit code, seconds, and what curl says if it failed. No process is started for a request: on
# a busy machine that takes longer than the request, and then the load is none.
CALLS='
  f=$1 url=$2 seconds=$3
  rm -f "$f" "$f.stop" "$f.end"
  read -r now _ </proc/uptime
  end=$((${now%.*} + seconds))
  worker() {
    rm -f "$f.$1" && mkfifo "$f.$1" || return
    curl -s -o /dev/null --max-time 15 --rate 20/s -H "Connection: close" -w "%{stderr}%{http_code} %{exitcode} %{time_total} %{errormsg}\n" \
      "$url#[1-$((20 * seconds))]" 2>"$f.$1" >/dev/null &
    last=
    while read -r status code took message; do
      read -r now _ </proc/uptime
      echo "$now $status $code $took $message"
      [ -z "$last" ] || break
      if [ ${now%.*} -ge $end ] || [ -e "$f.stop" ]; then last=1; fi # one is under way, and counts
    done <"$f.$1"
    kill $!
    rm "$f.$1"
  }
  { worker 1 & worker 2; wait; : >"$f.end"; } </dev/null >"$f" 2>/dev/null &
'

# fail TEXT: says what is wrong and ends the script.
fail() { printf '%sFAIL: %s%s\n' "$RED" "$*" "$RESET" >&2; exit 1; }

# shown COMMAND…: as the user would type it: with quotes only where they are needed.
shown() {
  local word out=''
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_./:=,@%+-]* | '') word="'$word'" ;;
    esac
    out="$out $word"
  done
  printf '%s$%s%s\n' "$BOLD" "$out" "$RESET"
}

# run COMMAND…: prints the command, then what it prints; a failure ends the script.
run() { shown "$@"; "$@" || fail "exit code $? of: $*"; }

# until_true SECONDS WHAT COMMAND…: repeats the command, silently, until it succeeds.
until_true() {
  local bound=$(($(date +%s) + $1)) what=$2 out
  shift 2
  while ! out=$("$@" 2>&1); do
    [ "$(date +%s)" -lt "$bound" ] || { printf '%s\n' "$out" | tail -20 >&2; fail "not within the time: $what"; }
    read -rt 0.3 <> <(:) || : # a pause without a process
  done
}

# has TEXT PATTERN: whether an extended regular expression matches a line of a text.
has() { grep -Eq -- "$2" <<<"$1"; }

# expect WHAT TEXT PATTERN: fails unless it does.
expect() { has "$2" "$3" || { printf '%s\n' "$2" | tail -30 >&2; fail "$1: expected a line like: $3"; }; }
