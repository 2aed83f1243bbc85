#!/usr/bin/env bash
# The first run on a real Google Cloud project, so that what Google answers can be compared with what the tests believe.
#
#   tools/first_run.sh --project P --region R --model gs://BUCKET/gemma-3-270m            read-only
#   tools/first_run.sh ... --for-real                                                      deploys it on CPU (cents)
#   tools/first_run.sh ... --for-real --l4 [--l4-model gs://BUCKET/MODEL]                  and one job on an L4
#
# Read-only is `doctor`, `plan` and `deploy --dry-run`: nothing is made, granted or paid for. --for-real makes a service
# called coldstream-first-run and destroys it again; what it granted is taken back by coldstream-undo.sh in the report's
# folder. All that was answered lies in one file, without tokens, keys and e-mail addresses: attach it to a report.
set -u

usage() { sed -n '2,12p' "$0" | sed 's/^# \{0,1\}//'; }
fail() { printf 'error: %s\n' "$1" >&2; exit 2; }

project='' region='us-central1' model='' l4_model='' real=no l4=no out='' service=coldstream-first-run
script="$(dirname "$0")/../bench/gpu.py"
while [ $# -gt 0 ]; do
  case "$1" in
    --project) project="${2:?--project wants a value}"; shift 2 ;;
    --region) region="${2:?--region wants a value}"; shift 2 ;;
    --model) model="${2:?--model wants a value}"; shift 2 ;;
    --l4-model) l4_model="${2:?--l4-model wants a value}"; shift 2 ;;
    --out) out="${2:?--out wants a value}"; shift 2 ;;
    --for-real) real=yes; shift ;;
    --l4|--gpu) l4=yes; shift ;;
    --help|-h) usage; exit 0 ;;
    *) fail "$1 is unknown; --help says what there is" ;;
  esac
done
[ -n "$project" ] || fail '--project is missing'
[ -n "$model" ] || fail '--model is missing: gs://BUCKET/FOLDER of a small checkpoint, as gemma-3-270m'
case "$model" in gs://*) ;; *) fail "--model $model: only a gs:// model can be deployed" ;; esac
[ "$l4" = no ] || [ "$real" = yes ] || fail '--l4 costs money: it wants --for-real too'
[ "$l4" = no ] || [ -f "$script" ] || fail "--l4 runs bench/gpu.py, and $script is not there"
command -v coldstream >/dev/null || fail "coldstream is not installed; run: pip install 'coldstream[deploy]'"

out="${out:-first-run-$(date -u +%Y%m%dT%H%M%SZ)}"
mkdir -p "$out" || fail "$out cannot be made"
report="$out/report.txt"
# Every command writes down what it asked of Google and what was answered.
export COLDSTREAM_TRANSCRIPT="$PWD/$out/transcript.jsonl"
case "$out" in /*) COLDSTREAM_TRANSCRIPT="$out/transcript.jsonl" ;; esac
place=(--project "$project" --region "$region" --service "$service")
failures=0

# Tokens, keys, addresses and the project's own name go before anything is written down.
redact() {
  sed -E \
    -e 's/ya29\.[A-Za-z0-9_.-]+/[access token]/g' \
    -e 's/eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*/[identity token]/g' \
    -e 's/(Bearer )[^ "'"'"']+/\1[token]/g' \
    -e 's/AIza[A-Za-z0-9_-]{35}/[api key]/g' \
    -e 's/[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.iam\.gserviceaccount\.com/[service account]/g' \
    -e 's/[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}/[address]/g' \
    -e "s/$(printf '%s' "$project" | sed 's/[.[\*^$/]/\\&/g')/[project]/g" \
    -e 's/(^|[^0-9])[0-9]{11,13}([^0-9]|$)/\1[number]\2/g' \
    -e 's/(^|[^0-9])[0-9]{11,13}([^0-9]|$)/\1[number]\2/g'
}

# Runs a command, and writes down what it said, how it ended and how long it took.
step() {
  local name="$1" begun code; shift
  begun=$(date +%s)
  printf '\n== %s\n$ %s\n' "$name" "$*" | redact | tee -a "$report"
  "$@" > "$out/step.txt" 2>&1 < /dev/null
  code=$?
  redact < "$out/step.txt" | tee -a "$report"
  rm -f "$out/step.txt"
  printf -- '-- %s: exit code %s after %s s\n' "$name" "$code" "$(($(date +%s) - begun))" | tee -a "$report"
  return "$code"
}
must() { step "$@" || { failures=$((failures + 1)); return 1; }; }

{
  printf 'coldstream first run, %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
  printf 'region %s, model %s, for real: %s, l4: %s\n' "$region" "$model" "$real" "$l4"
  uname -srm
  coldstream --help >/dev/null 2>&1 && printf 'coldstream is there\n'
  python3 --version 2>&1
} | redact > "$report"

# Read-only. doctor ends with 1 or 2 where something is missing or not known: that is an answer, not a failure.
step doctor coldstream doctor "$model" "${place[@]}" --cpu --all
step 'doctor as data' coldstream doctor "$model" "${place[@]}" --cpu --json
step 'doctor for an L4' coldstream doctor "$model" "${place[@]}" --all
must plan coldstream plan "$model" "${place[@]}" --cpu --json
must 'plan for an L4' coldstream plan "${l4_model:-$model}" "${place[@]}"
step 'dry run' coldstream deploy "$model" "${place[@]}" --cpu --dry-run

if [ "$real" = yes ]; then
  step fix coldstream doctor "$model" "${place[@]}" --cpu --fix --yes \
    --undo "$out/coldstream-undo.sh" --script "$out/coldstream-grants.sh"
  if must deploy coldstream deploy "$model" "${place[@]}" --cpu --max-instances 1; then
    must status coldstream status "${place[@]}" --json
    must 'deploy again, which must change nothing' coldstream deploy "$model" "${place[@]}" --cpu --max-instances 1
    must 'deploy another configuration' coldstream deploy "$model" "${place[@]}" --cpu --max-instances 1 --concurrency 2
    must rollback coldstream rollback "${place[@]}"
    must logs coldstream logs "${place[@]}" --lines 200
  fi
  if [ "$l4" = yes ]; then
    must 'one job on an L4' coldstream job "${l4_model:-$model}" "${place[@]}" --script "$script" \
      --argument "${l4_model:-$model}"
  fi
  must destroy coldstream destroy "$model" "${place[@]}" --yes
fi

if [ -f "$COLDSTREAM_TRANSCRIPT" ]; then
  printf '\n== what Google was asked, and answered\n' >> "$report"
  redact < "$COLDSTREAM_TRANSCRIPT" >> "$report"
  rm -f "$COLDSTREAM_TRANSCRIPT"
fi
printf '\n%s steps failed\n' "$failures" | tee -a "$report"
printf 'attach %s to a report; read it first\n' "$report"
[ "$failures" -eq 0 ]
