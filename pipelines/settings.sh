# Read by pipelines/run: what is to be run (the settings), and whether everything it needs is there (the checks).
# A recipe file holds NAME=VALUE lines without blanks or quotes, so that /bin/sh and make read it alike.

settings='MODEL DATA EVAL TASKS REFERENCE SHARDS RUN TOOLS FIT ROUNDING RANK ALPHA PHI ADAPTER TARGETS DROPOUT SEED STEPS
BATCH ACCUM SEQ LR_AB LR_SCALE WARMUP SCHEDULE CLIP MOMENTS LOSS KL_WEIGHT CE_WEIGHT LOSS_NORM TEACHER TOP_K SAVE_EVERY
STOP_AT TIME_LIMIT MEMORY FORMAT EMBEDDING CTX MAX_BLOCKS LIMIT MAX_PPL DEVICE COMPUTE THREADS'
recipe_only='HUB FETCH'

# names KIND: the models or schemes that have a file.
names() {
    (cd "$here/$1" && echo *)
}

# scheme_file: where the settings of $scheme lie. Scales of both signs (w4g128s) take those of the symmetric scheme.
scheme_file() {
    case $scheme in
    *zs) ;;
    *s) [ -f "$here/schemes/$scheme" ] || scheme=${scheme%s} ;;
    esac
    echo "$here/schemes/$scheme"
}

# split_pair: MODEL-SCHEME into $model and $scheme. Either may hold a "-" itself, so the files decide.
split_pair() {
    for file in "$here/models"/*; do
        model=${file##*/}
        scheme=${pair#"$model"-}
        if [ "$scheme" != "$pair" ] && [ -f "$(scheme_file)" ]; then
            return
        fi
    done
    wrong_usage "\"$pair\" is no MODEL-SCHEME; models: $(names models), schemes: $(names schemes), and with an s scales of both signs"
}

wrong_usage() {
    say "pipelines/run: $*"
    exit 2
}

known() {
    case " $(echo $1) " in *" $2 "*) ;; *) return 1 ;; esac
}

# set_argument NAME=VALUE
set_argument() {
    case $1 in *=*) ;; *) wrong_usage "\"$1\" is no NAME=VALUE" ;; esac
    known "$settings" "${1%%=*}" || wrong_usage "unknown setting \"${1%%=*}\"; known: $(echo $settings)"
    eval "${1%%=*}=\${1#*=}"
}

# read_recipe FILE: gives every name in the file its value, unless it has one.
read_recipe() {
    while IFS='=' read -r name value; do
        case $name in '' | '#'*) continue ;; esac
        known "$settings $recipe_only" "$name" || wrong_usage "$1: unknown setting \"$name\""
        case $name=$value in
        *=none) ;;
        MODEL=* | DATA=* | EVAL=* | TASKS=*) value=$root$value ;;
        esac
        eval "[ -n \"\$$name\" ] || $name=\$value"
    done <"$1"
}

# default NAME PATH: gives the setting this path if it is there.
default() {
    if eval "[ -z \"\$$1\" ]" && [ -e "$root$2" ]; then
        eval "$1=\$root\$2"
    fi
}

# load_settings: arguments and environment are set by now; then the model's file, then the scheme's, then the defaults.
load_settings() {
    asked_model=$MODEL
    HUB= FETCH=
    read_recipe "$here/models/$model"
    read_recipe "$(scheme_file)"
    : "${MODEL:=${root}models/$model}"
    : "${RUN:=${root}run/$pair}"
    : "${TOOLS:=${CARGO_TARGET_DIR:-${root}target}/release/}"
    default DATA data/train
    default EVAL data/eval
    default EVAL demo/test.txt
    default TASKS data/tasks
    : "${REFERENCE:=$MODEL}"
    if [ -n "$TOP_K" ]; then
        [ -z "$SHARDS" ] || wrong_usage "TOP_K asks a teacher while text is tokenized, and SHARDS are made already: leave one out"
        [ "$LOSS" != ce ] && [ "$LOSS$KL_WEIGHT" ] || wrong_usage "TOP_K without LOSS=kl or LOSS=lrec: nothing would learn from the answers"
    fi
    # Shards that were made before may carry answers.
    if [ -z "$SHARDS" ] && [ "$LOSS${KL_WEIGHT:+kl}" ] && [ "$LOSS" != ce ]; then
        : "${TEACHER:=$MODEL}"
    fi
    [ "$EVAL" != none ] || EVAL=
    [ "$TASKS" != none ] || TASKS=
    [ "$REFERENCE" != none ] || REFERENCE=
}

# paths LIST [SUFFIX]...: the list, one path a line; with suffixes, a folder becomes the files in it that have one.
paths() {
    [ ! -e "$1" ] || IFS= # one path, with whatever blanks it holds
    list=$1
    shift
    for path in $list; do
        if [ $# -eq 0 ] || [ ! -d "$path" ]; then
            printf '%s\n' "$path"
            continue
        fi
        for suffix in "$@"; do
            for file in "$path"/*."$suffix"; do
                [ ! -f "$file" ] || printf '%s\n' "$file"
            done
        done
    done
}
training_texts() { paths "$DATA" txt jsonl jsonl.zst parquet; }
evaluation_texts() { paths "$EVAL" txt jsonl; }

lacking=0
lacks() {
    say "$model: $*"
    lacking=1
}

# check_list NAME WHAT LIST: every path of the list must be there.
check_list() {
    while IFS= read -r path; do
        [ -z "$path" ] || [ -e "$path" ] || lacks "no $2 at $path; put it there or pass $1='file...' (or a folder)"
    done <<-END
	$3
	END
}

check_model() {
    cure="put the Hugging Face directory${HUB:+ of $HUB} (config.json, *.safetensors, tokenizer.json) there or pass MODEL=/path"
    if [ ! -e "$MODEL" ]; then
        if [ -n "$FETCH" ] && [ -z "$asked_model" ]; then
            return # fetched when the run begins
        fi
        lacks "no model at $MODEL; $cure"
    elif [ -d "$MODEL" ]; then
        for file in "$MODEL"/*.safetensors "$MODEL"/config.json "$MODEL"/tokenizer.*; do
            [ -e "$file" ] || lacks "no ${file##*/} in $MODEL; $cure"
        done
    fi
}

# check_inputs: names everything that is lacking, then ends.
check_inputs() {
    check_model
    if [ -n "$SHARDS" ]; then
        [ -f "$SHARDS/stage.json" ] || lacks "no token shards at $SHARDS; make them with shard, or pass DATA= instead"
    elif [ -z "$DATA" ]; then
        lacks "no text to train on; put .txt, .jsonl, .jsonl.zst or .parquet files into ${root}data/train or pass DATA='file...'"
    elif [ -z "$(training_texts)" ]; then
        lacks "no .txt, .jsonl, .jsonl.zst or .parquet file in $DATA; put some there or pass DATA='file...'"
    else
        check_list DATA "training text" "$(training_texts)"
    fi
    check_list EVAL "text for perplexity" "$(evaluation_texts)"
    check_list TASKS "zero-shot task" "$(paths "$TASKS")"
    [ -z "$REFERENCE" ] || [ "$REFERENCE" = "$MODEL" ] || [ -e "$REFERENCE" ] || lacks "no reference model at $REFERENCE"
    [ "$lacking" -eq 0 ] || exit 1
}

check_tools() {
    for tool in ptq-init lr-wrap shard qat-step fold eval; do
        if [ ! -x "$TOOLS$tool" ]; then
            say "pipelines/run: no tool at $TOOLS$tool; run \"make build\" or pass TOOLS=/path/to/ (with the prefix, if any)"
            exit 1
        fi
    done
}
