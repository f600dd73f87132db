#!/bin/sh
# Tests of pipelines/run, with stubs in place of the tools. Prints "N passed, N failed"; exits 1 if any failed.
# SHELLS="dash bash" says which shells to try it with (default: sh, and those two where they are installed).
set -u
cd "$(dirname "$0")/../.." || exit 1
project=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for tool in ptq-init lr-wrap shard qat-step fold eval; do
    mkdir -p "$work/tools"
    ln -s "$project/tests/pipelines/stub" "$work/tools/$tool"
done
mkdir -p "$work/model" "$work/texts and blanks"
touch "$work/model/config.json" "$work/model/a.safetensors" "$work/model/tokenizer.json"
echo text >"$work/train.txt"
echo text >"$work/texts and blanks/b c.txt"
echo '{"text":""}' >"$work/texts and blanks/d.jsonl"
echo text >"$work/test.txt"

# The settings of the caller's shell are not the tests'.
for name in $(sh -c '. pipelines/settings.sh && echo $settings'); do
    unset "$name"
done

passed=0
failed=0
check() { # WHAT COMMAND...
    what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED [$shell] $what"
        sed 's/^/    /' "$work/err" "$work/log" 2>/dev/null | tail -n 12
    fi
}
is() { [ "$1" = "$2" ] || { echo "    \"$1\", expected \"$2\"" && false; }; }
says() { grep -q -- "$1" "$work/err"; }
logged() { grep -q -- "$1" "$work/log"; }
calls() { grep -v -e skipped -e step.[0-9] "$work/log" | cut -d' ' -f1 | tr '\n' ' '; }

fresh() {
    rm -rf "$work/run" "$work/err" "$work/out"
    : >"$work/log"
}
run() { # ARGUMENT...: sets $status
    status=0
    STUB_LOG=$work/log TOOLS=$work/tools/ RUN=$work/run "$shell" pipelines/run "$@" >"$work/out" 2>"$work/err" || status=$?
}
llama() { run llama3-8b-w4g128 MODEL="$work/model" DATA="$work/train.txt" EVAL="$work/test.txt" STEPS=5 "$@"; }
# The same in the background; once the log holds UNTIL it gets SIGNAL. A shell starts background commands with SIGINT
# ignored, and what is ignored at the start cannot be trapped: python3 puts that right.
restore_sigint='import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])'
interrupted() { # SIGNAL UNTIL
    STUB_LOG=$work/log TOOLS=$work/tools/ RUN=$work/run python3 -c "$restore_sigint" "$shell" pipelines/run llama3-8b-w4g128 MODEL="$work/model" \
        DATA="$work/train.txt" EVAL="$work/test.txt" STEPS=50 >"$work/out" 2>"$work/err" &
    process=$!
    tries=0
    until logged "$2" || [ $tries -eq 100 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    sleep 0.3
    kill -s "$1" $process
    status=0
    wait $process || status=$?
}

test_whole_pipeline() {
    fresh
    llama
    check "ends well" is $status 0
    check "all stages in order" is "$(calls)" "ptq-init lr-wrap fold shard eval qat-step eval fold eval "
    check "the format before training" logged "^fold $work/run/wrapped --check"
    check "it is no stage" says ": fold --check$"
    check "before training, what there is" logged "^eval $work/model $work/run/scales --ppl .* -o $work/run/untrained.json"
    check "the card gets the figures" logged "^fold $work/run/checkpoint --report $work/run/trained.json -o $work/run/folded"
    check "the scheme and its fit" logged "ptq-init $work/model --scheme w4g128 --fit lp:3 -o $work/run/scales"
    check "the paper's recipe" logged "--batch 4 --accum 8 --seq 1024 --lr-ab 1e-3 --lr-scale 1e-5 --warmup 0.1 --schedule linear"
    check "argument before recipe" logged "--steps 5 "
    check "four artefacts side by side" logged "^eval $work/model $work/run/scales $work/run/checkpoint $work/run/folded --ppl $work/test.txt"
    check "the table on stdout" grep -q "ppl text.txt  *21.09  *19.40" "$work/out"
    check "and nothing else" is "$(head -c 1 "$work/out")" " "
    check "the report as a file" [ -f "$work/run/report.json" ]
    llama
    check "typed again: ends well" is $status 0
    check "typed again: skips" is "$(grep -c skipped "$work/log")" 5
    check "typed again: eval looks at its own report" logged "^eval .* -o $work/run/report.json"
    check "typed again: the table" grep -q "ppl text.txt  *21.09  *19.40" "$work/out"
}

test_settings() {
    fresh
    run --dry-run llama3-8b-w4g128 DATA="$work/texts and blanks" STEPS=7 TIME_LIMIT=3h50m THREADS=2 EVAL=none TASKS=t
    check "dry run: runs nothing" is "$(cat "$work/log")" ""
    check "a folder of texts" grep -q "shard '$work/texts and blanks/b c.txt' '$work/texts and blanks/d.jsonl' --tok" "$work/out"
    check "time limit" grep -q "qat-step .*--time-limit 3h50m .*--threads 2" "$work/out"
    check "no perplexity" is "$(grep -c -e --ppl "$work/out")" 0
    check "tasks" grep -q "eval .*--tasks t " "$work/out"
    STEPS=9 run --dry-run smollm2-135m-w4pc
    check "environment before recipe" grep -q "qat-step .*--steps 9 " "$work/out"
    check "model's fit before the scheme's" grep -q "ptq-init .*--fit lp:3 " "$work/out"
    check "cross entropy needs no teacher" is "$(grep -c -e --teacher "$work/out")" 0
    run --dry-run smollm2-135m-w4pc LOSS=kl MODEL=m
    check "a teacher that runs along" grep -q "qat-step .*--loss kl .*--teacher m " "$work/out"
    check "is not asked before" is "$(grep -c "shard .*--teacher" "$work/out")" 0
    run --dry-run smollm2-135m-w4pc LOSS=kl TEACHER=t TOP_K=64 SEQ=256
    check "a teacher that is asked once" grep -q "shard .*--teacher t --top-k 64 --seq 256 " "$work/out"
    check "does not run along" is "$(grep -c "qat-step .*--teacher" "$work/out")" 0
    for wrong in LOSS= LOSS=ce SHARDS=s; do
        run --dry-run smollm2-135m-w4pc TOP_K=64 LOSS=kl "$wrong"
        check "answers that nothing asks for: usage, $wrong" is $status 2
        check "answers that nothing asks for: named, $wrong" says 'pipelines/run: TOP_K'
    done
    run --dry-run smollm2-135m-w4pc EMBEDDING=q8_0
    check "an embedding's format, before training" grep -q "fold .*--check .*--embedding q8_0" "$work/out"
    for rounding in gptq learned; do
        run --dry-run smollm2-135m-w4pc ROUNDING=$rounding RUN=r
        check "rounding: $rounding" grep -q "lr-wrap r/scales .*--rounding $rounding --shards r/shards " "$work/out"
    done
    check "on text that is there" is "$(sed -n 's/^[^ ]*\(shard\|lr-wrap\) .*/\1/p' "$work/out" | tr '\n' ' ')" "shard lr-wrap "
    run --dry-run demo-w4pc RANK=0
    check "scales alone have no alpha" is "$(grep -c -e --alpha "$work/out")" 0
    run --dry-run demo-w4pc DATA="it's \$x"
    check "a word as a shell reads it" is "$(sed -n "s/.*shard \('.*'\) --tokenizer.*/\1/p" "$work/out")" "'it'\\''s' '\$x'"
    run --dry-run demo-w2g128z
    check "a scheme with a zero point" grep -q "ptq-init demo/model --scheme w2g128z" "$work/out"
    run --dry-run demo-w3g128s
    check "scales of both signs" grep -q "ptq-init demo/model --scheme w3g128s --fit lp:3 " "$work/out"
    run --dry-run demo-w2g128zs
    check "scales of both signs and zero points: usage" is $status 2
    for pair in $(all_pairs); do
        run --dry-run "$pair" || break
        [ $status -eq 0 ] || break
    done
    check "every pair can be read" is "$pair $status" "$pair 0"
    run llama3-8b-w4g128 STEP=3
    check "unknown setting: usage" is $status 2
    check "unknown setting: named" says 'unknown setting "STEP"; known: MODEL DATA'
    run llama3-8b-w9
    check "unknown pair: usage" is $status 2
    check "unknown pair: named" says '"llama3-8b-w9" is no MODEL-SCHEME; models: demo'
    fresh
    run --plan llama3-8b-w4g128 MODEL="$work/model" DATA="$work/train.txt"
    check "plan: stops before training" is "$(calls)" "ptq-init lr-wrap fold shard qat-step "
    check "plan: on stdout" is "$(cat "$work/out")" "planned: 1 byte"
}
all_pairs() {
    for model in pipelines/models/*; do
        for scheme in pipelines/schemes/*; do
            echo "${model##*/}-${scheme##*/}"
        done
    done
}

test_missing_inputs() {
    fresh
    run llama3-8b-w4g128
    check "nothing there: fails" is $status 1
    check "no model" says "^llama3-8b: no model at models/llama3-8b; put the Hugging Face directory of meta-llama/Meta-Llama-3-8B (config.json, \*.safetensors, tokenizer.json) there or pass MODEL=/path$"
    check "no text, said at once too" says "^llama3-8b: no text to train on; put .*DATA="
    check "nothing started" is "$(cat "$work/log")$(ls "$work/run" 2>/dev/null)" ""
    run llama3-8b-w4g128 MODEL="$work/texts and blanks" DATA="$work/train.txt"
    check "not a model" says "no config.json in $work/texts and blanks; put"
    run llama3-8b-w4g128 MODEL="$work/model" DATA="$work/absent.txt" EVAL="$work/gone.txt" TASKS="$work/tasks"
    check "no such text" says "no training text at $work/absent.txt"
    check "no such test text" says "no text for perplexity at $work/gone.txt"
    check "no such tasks" says "no zero-shot task at $work/tasks"
    run llama3-8b-w4g128 MODEL="$work/model" SHARDS="$work/texts and blanks"
    check "no shards" says "no token shards at"
    run smollm2-135m-w4pc --check
    check "options come first" is $status 2
    run llama3-8b-w4g128 MODEL="$work/model" DATA="$work/train.txt" TOOLS="$work/nowhere/lrqat-"
    check "no tools" says "no tool at $work/nowhere/lrqat-ptq-init; run"
    check "no tools: fails" is $status 1
}

test_exit_statuses() {
    fresh
    STUB_FAIL=lr-wrap:1 llama
    check "a failure is kept" is $status 1
    check "and ends the run" is "$(calls)" "ptq-init lr-wrap "
    STUB_FAIL=qat-step:2 llama
    check "wrong usage is kept" is $status 2
    check "the stage is named" says "llama3-8b-w4g128: qat-step failed with exit status 2"
    STUB_FAIL=eval:1 llama
    check "a failed evaluation is kept" is $status 1
    check "and leaves no report" [ ! -e "$work/run/report.json" ]
    STUB_EVAL_STATUS=3 llama MAX_PPL=1
    check "a missed MAX_PPL is 3" is $status 3
    check "with its report" [ -s "$work/run/report.txt" ]
    fresh
    STUB_FAIL=eval:2 llama CTX=1
    check "what cannot be evaluated is news before training" is "$(calls)" "ptq-init lr-wrap fold shard eval "
    check "with the status of eval" is $status 2
    fresh
    llama
    STUB_EVAL_STATUS=3 llama MAX_PPL=1
    check "and 3 again" is $status 3
    fresh
    STUB_STOP_AFTER=2 llama
    check "75 stays 75" is $status 75
    check "and says what to do" says "stopped by its time limit in qat-step; run the same command again"
    llama
    check "goes on: ends well" is $status 0
    check "goes on from there" logged "qat-step resumed at step 2"
}

test_signals() {
    for signal in TERM USR1 INT; do
        fresh
        STUB_STEP_TIME=0.1 interrupted $signal "^qat-step .*--steps"
        check "$signal: 75" is $status 75
        check "$signal: reached the stage" logged "stopped at step .* by SIG${signal#INT}"
        check "$signal: said" says "stopped by SIG$signal in qat-step"
        llama STEPS=50
        check "$signal: goes on" is "$status $(grep -c "resumed at step" "$work/log")" "0 1"
    done
    fresh
    STUB_SLEEP=lr-wrap:30 interrupted USR1 "^lr-wrap"
    check "a stage that dies of the signal: 75" is $status 75
    check "no stage after it" is "$(calls)" "ptq-init lr-wrap "
    llama
    check "starts that stage over" is $status 0
}

for shell in ${SHELLS:-sh $(command -v dash) $(command -v bash)}; do
    test_whole_pipeline
    test_settings
    test_missing_inputs
    test_exit_statuses
    test_signals
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
