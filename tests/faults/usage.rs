use std::fs;

use super::{Fault, check, one_line};
use crate::tools::Dir;

fn usage(name: &'static str, line: &'static str, says: &'static [&'static str]) -> Fault {
    Fault { name, spoil: |_| {}, line, status: 2, says }
}

#[test]
fn words_that_are_not_known() {
    check(&[
        usage(
            "a scheme",
            "ptq-init model --scheme w4x8 -o out",
            &["scheme \"w4x8\" is not known", "; write w<bits 2-8>", "w4g128"],
        ),
        usage("bits", "ptq-init model --scheme w9pc -o out", &["scheme \"w9pc\"", "; write"]),
        usage("a fit", "ptq-init model --scheme w4g8 --fit mse -o out", &["fit \"mse\"", "; ", "minmax"]),
        usage("a power", "ptq-init model --scheme w4g8 --fit lp:-1 -o out", &["fit \"lp:-1\"", "; "]),
        usage("a φ", "lr-wrap scales --phi fp8 -o out", &["φ \"fp8\"", "; ", "bf16"]),
        usage(
            "a format",
            "fold checkpoint --format onnx -o out",
            &["format \"onnx\"", "; choose", "compressed-tensors"],
        ),
        usage(
            "a schedule",
            "qat-step wrapped --shards shards --schedule step -o out",
            &["'step' for '--schedule", "[possible values: linear, cosine, constant]", "; see --help"],
        ),
        usage("a device", "eval model --ppl text.txt --device tpu", &["'tpu'", "--device", "auto, cpu, cuda", "; "]),
        usage("a flag", "ptq-init model --schem w4g8 -o out", &["'--schem'", "; ", "'--scheme'"]),
        usage(
            "no scheme",
            "ptq-init model -o out",
            &["model: no --scheme for a model in floating point", "; give one"],
        ),
        usage("no -o", "fold checkpoint", &["--output <DIR>", "; see --help"]),
        usage("no -o to train into", "qat-step wrapped --shards shards", &["--output <DIR>", "; see --help"]),
        usage("a number", "lr-wrap scales --rank many -o out", &["--rank many", "0 to 16384", "; give"]),
        usage("a time", "qat-step wrapped --shards shards --time-limit soon -o out", &["'soon'", "--time-limit", "; "]),
        usage("a temperature of nothing", "eval model --ppl text.txt --temperature 1", &["--generate", "; see --help"]),
        usage(
            "a device for nothing",
            "shard text.txt --tokenizer model --compute f32 -o out",
            &["--teacher", "; leave"],
        ),
        usage("nothing at all", "shard", &["<TEXT>...", "; see --help"]),
    ]);
}

#[test]
fn values_that_cannot_be() {
    check(&[
        usage(
            "a group that does not divide",
            "ptq-init model --scheme w4g48 -o out",
            &[
                "model.layers.0.self_attn.q_proj: a group of 48 does not divide its 32 inputs",
                "; choose a scheme with g16, g32 or pc",
            ],
        ),
        usage("no shards", "qat-step wrapped -o out", &["no --shards", "; give the directory that shard made"]),
        usage("a size below its own", "lr-wrap scales --rank auto:0.9 -o out", &["--rank auto:0.9", "; give"]),
        usage(
            "a rank beyond reason",
            "lr-wrap scales --rank 1000000000000 -o out",
            &["--rank 1000000000000", "; give"],
        ),
        usage("an alpha", "lr-wrap scales --alpha nan -o out", &["--alpha NaN", "; give"]),
        usage("no steps", "qat-step wrapped --shards shards --steps 0 -o out", &["--steps", "; give at least 1"]),
        usage(
            "a sequence of one",
            "qat-step wrapped --shards shards --seq 1 -o out",
            &["--seq must be at least 2", "; "],
        ),
        usage(
            "a batch beyond memory",
            "qat-step wrapped --shards shards --seq 64 --batch 1000000000 -o out",
            &["would hold", "expected at most this machine's", "; lower --batch"],
        ),
        usage(
            "a batch beyond numbers",
            "qat-step wrapped --shards shards --batch 18446744073709551615 -o out",
            &["2^40 tokens", "; lower"],
        ),
        usage("a rate", "qat-step wrapped --shards shards --lr-ab=-1 -o out", &["--lr-ab", "; give numbers"]),
        usage("a warm-up", "qat-step wrapped --shards shards --warmup 2 -o out", &["--warmup", "; give"]),
        usage(
            "a stop beyond the schedule",
            "qat-step wrapped --shards shards --steps 5 --stop-at 6 -o out",
            &["--stop-at 6 lies outside of steps 1 to 5", "; give a step"],
        ),
        usage("no threads", "fold checkpoint -o out --threads 0", &["--threads 0", "; give at least 1"]),
        usage("nothing to measure", "eval model", &["nothing to measure", "; give --ppl TEXT"]),
        usage("no text", "eval model --generate a --max-tokens 0", &["--max-tokens 0", "; give 1"]),
        usage("a temperature", "eval model --generate a --temperature=-1", &["--temperature -1", "; give a temp"]),
        usage("a part", "eval model --generate a --top-p 1.5", &["--top-p 1.5", "; give a temperature"]),
        usage(
            "a text beyond memory",
            "eval model --generate a --max-tokens 2000000",
            &["--max-tokens 2000000", "; give 1 to 1048576"],
        ),
        usage("a block of one", "eval model --ppl text.txt --ctx 1", &["--ctx must be at least 2", "; "]),
        usage(
            "a reference for nothing",
            "eval model --tasks x.jsonl --reference model",
            &["--reference", "; give --ppl"],
        ),
        usage("a bound that is no number", "eval model --ppl text.txt --max-ppl nan", &["--max-ppl NaN", "; give"]),
        usage("a bound for nothing", "eval model --tasks x.jsonl --max-ppl 9", &["--max-ppl", "; give --ppl"]),
        usage(
            "f32 on a GPU",
            "qat-step wrapped --shards shards --device cuda --compute f32 -o out",
            &["--compute f32", "the GPU computes in bf16", "; leave it out, or use --device cpu"],
        ),
    ]);
}

#[test]
fn losses_and_teachers_that_cannot_be() {
    check(&[
        usage(
            "a divergence from nothing",
            "qat-step wrapped --shards shards --loss kl -o out",
            &["shards: shards without a teacher's answers, and no --teacher", "; give --teacher MODEL"],
        ),
        usage(
            "a teacher for nothing",
            "qat-step wrapped --shards shards --teacher model -o out",
            &["--teacher", "; give --loss kl"],
        ),
        usage(
            "two losses",
            "qat-step wrapped --shards shards --loss ce --kl-weight 1 -o out",
            &["--loss ce with --kl-weight", "; give --loss kl"],
        ),
        usage(
            "no loss at all",
            "qat-step wrapped --shards shards --ce-weight 0 -o out",
            &["--kl-weight and --ce-weight must be 0 to 1e9, and not both 0", "; give"],
        ),
        usage(
            "a weight that is no number",
            "qat-step wrapped --shards shards --loss kl --teacher model --ce-weight nan -o out",
            &["--ce-weight must be", "; give"],
        ),
        usage("a loss", "qat-step wrapped --shards shards --loss mse -o out", &["'mse'", "--loss", "ce, kl", "; "]),
        usage(
            "a norm",
            "qat-step wrapped --shards shards --loss-norm sum -o out",
            &["'sum' for '--loss-norm", "[possible values: token, paper]", "; see --help"],
        ),
        usage(
            "no answers to keep",
            "shard text.txt --tokenizer model --teacher model --top-k 0 -o out",
            &["--top-k 0", "; give a number such as 64, or all"],
        ),
        usage(
            "more answers than there are",
            "shard text.txt --tokenizer model --teacher model --top-k 99999 -o out",
            &["--top-k 99999, of a vocabulary of ", "; give a smaller number"],
        ),
        usage(
            "answers of nobody",
            "shard text.txt --tokenizer model --top-k 8 -o out",
            &["--teacher <MODEL>", "; see --help"],
        ),
        usage(
            "a window of one",
            "shard text.txt --tokenizer model --teacher model --seq 1 -o out",
            &["--seq 1", "; give what qat-step"],
        ),
    ]);
}

/// `-` without a path behind it: the stage before failed.
#[test]
fn an_empty_pipe() {
    let dir = Dir::with_stages();
    for line in
        ["ptq-init - --scheme w4g8 -o out", "lr-wrap - -o out", "qat-step - --shards shards -o out", "fold - -o out"]
    {
        let ran = dir.run_with(line, "");
        one_line(
            "an empty pipe",
            line,
            &ran,
            1,
            &["standard input: no path", "expected the path of a stage", "; see why"],
        );
        assert!(!dir.join("out").exists() && !dir.join("out.part").exists());
    }
    fs::write(dir.join("list"), "checkpoint\n").unwrap();
    assert_eq!(dir.shell("\"$FOLD\" - -o out < list").ok(), "out\n");
}

/// A line for each flag: one with a second paragraph, or a value with a sentence of its own, would turn them all into
/// paragraphs.
#[test]
fn help_is_a_line_for_each_flag() {
    let dir = Dir::new();
    for tool in ["ptq-init", "lr-wrap", "shard", "qat-step", "fold", "eval"] {
        let [short, long] = ["-h", "--help"].map(|flag| dir.run(&format!("{tool} {flag}")).ok());
        assert!(short == long && !long.contains("[`"), "{long}");
    }
}
