use std::collections::HashMap;
use std::io::Write;

use serde_json::Value;

use super::*;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/");
const NO_LIMIT: Option<usize> = None;

fn golden(name: &str) -> Value {
    serde_json::from_slice(&fs::read(Path::new(DATA).join(name)).unwrap()).unwrap()
}

fn three(name: &str) -> Task {
    Task::open(&Path::new(DATA).join("tasks").join(format!("{name}.jsonl")), NO_LIMIT).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// From pairs [log-likelihood, greedy].
fn scored(value: &Value) -> Vec<Scored> {
    let pairs = value.as_array().unwrap().iter();
    pairs.map(|s| Scored { loglik: s[0].as_f64().unwrap(), greedy: s[1].as_bool().unwrap() }).collect()
}

/// Texts and ids of lm_eval itself; its tokenizer is a table of what it said.
#[test]
fn requests_are_those_of_lm_eval() {
    for case in golden("lm_eval_requests.json")["cases"].as_array().unwrap() {
        let task = three(case["task"].as_str().unwrap());
        let plain: HashMap<&str, Vec<u32>> =
            case["plain"].as_object().unwrap().iter().map(|(text, list)| (text.as_str(), ids(list))).collect();
        let encode = |text: &str| {
            plain.get(text).cloned().ok_or_else(|| Error::usage(format!("{text:?}: lm_eval never encodes it"), ""))
        };
        let empty = case["prefix"].as_u64().unwrap() as u32;
        let prefix = Prefix { bos: case["bos"].as_bool().unwrap().then_some(empty), empty };
        let requests = task.requests(&encode, prefix, case["max_length"].as_u64().unwrap() as usize).unwrap();
        let expected = case["requests"].as_array().unwrap();
        assert_eq!(requests.len(), expected.len());
        for ((request, pair), expected) in requests.iter().zip(task.pairs()).zip(expected) {
            assert_eq!(pair.0, expected["context"].as_str().unwrap());
            assert_eq!(pair.1, expected["continuation"].as_str().unwrap());
            assert_eq!(request.continuation, ids(&expected["target"]), "{pair:?}");
            let all = [&request.context[..], &request.continuation].concat();
            assert_eq!(all[..all.len() - 1], ids(&expected["input"]), "{pair:?}");
        }
    }
}

#[test]
fn reports_are_those_of_lm_eval() {
    for (name, case) in golden("lm_eval_metrics.json").as_object().unwrap() {
        let report = three(name).report(&scored(&case["scored"])).unwrap();
        for (metric, value) in serde_json::to_value(&report).unwrap().as_object().unwrap() {
            let (found, expected) = (value.as_f64().unwrap(), case[metric].as_f64().unwrap());
            assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{name} {metric}: {found} {expected}");
        }
        assert_eq!(report.acc_norm.is_some(), case.get("acc_norm").is_some());
        assert_eq!(report.perplexity.is_some(), case.get("perplexity").is_some());
    }
}

/// lm_eval's log-likelihoods of SmolLM2 give lm_eval's accuracies.
fn compare_results(golden: &Value, directory: &Path) {
    for (name, records) in golden["samples"].as_object().unwrap() {
        let records = records.as_array().unwrap();
        let task = Task::open(&directory.join(format!("{name}.jsonl")), Some(records.len())).unwrap();
        let report = task.report(&records.iter().flat_map(|record| scored(&record["ll"])).collect::<Vec<_>>()).unwrap();
        let results = &golden["results"][name];
        assert_eq!(Some(report.n as u64), results["sample_len"].as_u64());
        assert_eq!(Some(report.acc), results["acc,none"].as_f64(), "{name}");
        assert_eq!(report.acc_norm, results["acc_norm,none"].as_f64(), "{name}");
        let perplexity = results["perplexity,none"].as_f64();
        assert!(report.perplexity.zip(perplexity).is_none_or(|(a, b)| (a - b).abs() <= 1e-12 * b), "{name}");
    }
}

#[test]
fn accuracies_of_a_real_model_are_those_of_lm_eval() {
    compare_results(&golden("lm_eval_three_tasks.json"), &Path::new(DATA).join("tasks"));
    let Some(shared) = shared("accuracies_of_a_real_model_are_those_of_lm_eval") else { return };
    let bytes = fs::read(shared.join("golden/lm_eval_smollm2.json")).unwrap();
    compare_results(&serde_json::from_slice(&bytes).unwrap(), &shared.join("data/tasks"));
}

fn shared(test: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared");
    let shared = std::env::var_os("LRQAT_SHARED").map_or(PathBuf::from(beside), PathBuf::from);
    if !shared.exists() {
        // Not eprintln!, which the harness shows of failed tests only.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no shared/ data");
        return None;
    }
    Some(shared)
}

/// Every text that lm_eval makes of the public task files, by its digest: `lm_eval_tasks.py digests`.
#[test]
fn texts_of_the_public_tasks_are_those_of_lm_eval() {
    let Some(shared) = shared("texts_of_the_public_tasks_are_those_of_lm_eval") else { return };
    let expected = [
        ("arc_easy", 4, "715f6ef3b68bf3e194495ce2abcb040e005319076b15fc6cd245ce63afd32a53"),
        ("boolq", 2, "6d57ad6e9248c64256fb5c110a0d266efd57e66982a0f7848b3d0ab1cbf62fc2"),
        ("hellaswag", 4, "2300c1fb5a25ad19f9622aeb5dd486c15dd928d4f21843b15ad4e7ac8e016a92"),
        ("piqa", 2, "a8dd5be0bd4c6b49d3ca2e4c64802992ac165c05acbf0511e2c8ebe6686aeeeb"),
        ("winogrande", 2, "15807a880c86111873a6c24031bfdbc39c7ea231746edf6549ed950857fa226b"),
    ];
    for (name, choices, digest) in expected {
        let task = Task::open(&shared.join(format!("data/tasks/{name}.jsonl")), NO_LIMIT).unwrap();
        let mut hasher = blake3::Hasher::new();
        for question in &task.questions {
            assert!(question.pairs.len() == choices || name == "arc_easy");
            hasher.update(&serde_json::to_vec(&question.pairs).unwrap());
            hasher.update(b"\n");
        }
        assert_eq!(hasher.finalize().to_hex().as_str(), digest, "{name}");
    }
}

fn write(stem: &str, lines: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("{stem}.jsonl"));
    fs::write(&path, lines).unwrap();
    (dir, path)
}

fn refused(stem: &str, lines: &str) -> String {
    let (_dir, path) = write(stem, lines);
    let message = Task::open(&path, NO_LIMIT).expect_err(lines).to_string();
    message.replace(&path.display().to_string(), "FILE")
}

/// HellaSwag's clean-up; the expected texts are from Python: `str.strip`, `str.capitalize`, `re.sub("\\[.*?\\]", "", s)`.
#[test]
fn hellaswag_texts_are_cleaned() {
    let record = serde_json::json!({
        "activity_label": " Cooking", "ctx_a": "How to boil [title] an egg [step] in  water[a]b]", "ctx_b": "the Cook ΑΣ",
        "endings": ["x [a\nb] y", "[[c]", "\u{1f} [title]d ", "e   f"], "label": 2
    });
    let (_dir, path) = write("hellaswag", &record.to_string());
    let task = Task::open(&path, NO_LIMIT).unwrap();
    let contexts: Vec<_> = task.pairs().map(|pair| pair.0.as_str()).collect();
    assert_eq!(contexts, ["Cooking: How to boil. an egg in waterb] The cook ας"; 4]);
    let endings: Vec<_> = task.pairs().map(|pair| pair.1.as_str()).collect();
    assert_eq!(endings, [" x [a\nb] y", " ", " d", " e  f"]);
}

#[test]
fn labels_may_be_numbers_strings_or_booleans() {
    let golds = |stem: &str, lines: &str| -> Vec<usize> {
        let (_dir, path) = write(stem, lines);
        Task::open(&path, NO_LIMIT).unwrap().questions.iter().map(|q| q.gold).collect()
    };
    let piqa = r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": "#;
    assert_eq!(golds("piqa", &format!("{piqa}1}}\n{piqa}\"0\"}}\n")), [1, 0]);
    let boolq = r#"{"question": "q", "passage": "p", "#;
    let lines = ["\"label\": 1", "\"answer\": true", "\"answer\": false", "\"label\": 0, \"answer\": false"];
    assert_eq!(golds("boolq", &lines.map(|l| format!("{boolq}{l}}}")).join("\n\n")), [1, 1, 0, 0]);
    let arc = r#"{"question": "q", "choices": {"text": ["x", "y"], "label": [1, "2"]}, "answerKey": "#;
    assert_eq!(golds("arc_easy", &format!("{arc}\"1\"}}\n{arc}2}}")), [0, 1]);
    let winogrande = r#"{"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "#;
    assert_eq!(golds("winogrande", &format!("{winogrande}\"2\"}}\n{winogrande}1}}")), [1, 0]);
}

#[test]
fn wrong_records_are_named_by_line_and_field() {
    let end = |expected: &str| format!(", expected {expected}; correct or drop the record");
    let good = r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}"#;
    let choice = "the number of a choice, from 0";
    let cases = [
        (r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": 2}"#, "\"label\": \"2\"", choice),
        (r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": -1}"#, "\"label\": \"-1\"", choice),
        (r#"{"goal": "g", "sol1": "a", "label": 0}"#, "\"sol2\": missing", "a string"),
        (r#"{"goal": 3, "sol1": "a", "sol2": "b", "label": 0}"#, "\"goal\": not a string", "a string"),
    ];
    for (line, found, expected) in cases {
        let message = refused("piqa", &format!("{good}\n\n{line}\n"));
        assert_eq!(message, format!("FILE: line 3: field {found}{}", end(expected)));
    }
    let arc = |choices: &str| format!(r#"{{"question": "q", "choices": {choices}, "answerKey": "B"}}"#);
    let open = |choices: &str| format!(r#"{{"question_stem": "q", "choices": {choices}, "answerKey": "A"}}"#);
    let blank = |rest: &str| format!(r#"{{"option1": "x", "option2": "y", {rest}}}"#);
    let ending = |rest: &str| format!(r#"{{"activity_label": "a", "ctx_a": "b", "ctx_b": "c", {rest}}}"#);
    let boolq = |rest: &str| format!(r#"{{"passage": "p", "question": "q"{rest}}}"#);
    let cases = [
        ("arc_easy", arc(r#"{"text": ["x"], "label": ["A"]}"#), "\"answerKey\": \"B\""),
        ("arc_easy", arc(r#"{"text": ["x"], "label": ["A", "B"]}"#), "\"answerKey\": \"B\""),
        ("arc_easy", arc(r#"["x"]"#), "\"choices\": missing or not an object"),
        ("openbookqa", open(r#"{"text": [1], "label": ["A"]}"#), "\"text\": an empty list or not strings"),
        ("openbookqa", open(r#"{"text": ["x"], "label": "A"}"#), "\"label\": missing or not a list of strings"),
        ("winogrande", blank(r#""sentence": "ab", "answer": "1""#), "\"sentence\": without"),
        ("winogrande", blank(r#""sentence": "a_b", "answer": """#), "\"answer\": \"\""),
        ("hellaswag", ending(r#""endings": [], "label": "0""#), "\"endings\": an empty list"),
        ("hellaswag", ending(r#""endings": ["d"], "label": """#), "\"label\": \"\""),
        ("boolq", boolq(""), "\"label\": missing"),
        ("boolq", boolq(r#", "answer": "yes""#), "\"answer\": not a boolean"),
        ("lambada_openai", r#"{"text": null}"#.to_string(), "\"text\": not a string"),
    ];
    for (stem, line, found) in cases {
        let message = refused(stem, &line);
        assert!(message.starts_with(&format!("FILE: line 1: field {found}")), "{message}");
    }
    assert!(refused("piqa", "{\"goal\"").starts_with("FILE: line 1: not JSON (EOF"));
    assert!(refused("piqa", "[]").starts_with("FILE: line 1: not an object, expected a JSON object"));
    assert_eq!(refused("piqa", "\n"), "FILE: no records, expected JSON lines; check the file and --limit");
    assert_eq!(
        refused("mmlu", "{}"),
        "FILE: a file called \"mmlu\", expected one of the tasks piqa, hellaswag, winogrande, arc_easy, arc_challenge, \
         boolq, openbookqa, lambada_openai; rename the file"
    );
}

/// One id a byte, so that what a test expects can be read off.
fn bytes(text: &str) -> Result<Vec<u32>> {
    Ok(text.bytes().map(u32::from).collect())
}

#[test]
fn requests_that_cannot_be_scored_are_refused() {
    let (_dir, path) =
        write("lambada_openai", "{\"text\": \"a b\"}\n{\"text\": \"a bcd\"}\n{\"text\": \" \\u001f bc\"}\n");
    let task = Task::open(&path, NO_LIMIT).unwrap();
    let prefix = Prefix { bos: Some(1), empty: 2 };
    let message = task.requests(&bytes, prefix, 3).unwrap_err().to_string();
    assert!(message.ends_with(
        "line 2: a continuation of 4 tokens, expected at most 3; drop the record or take a model of longer context"
    ));
    let message = task.requests(&|_| Ok(vec![7]), prefix, 3).unwrap_err().to_string();
    assert!(message.contains("line 1: a continuation without a token of its own, expected at least one"));
    let requests = task.requests(&bytes, prefix, 9).unwrap();
    assert_eq!(requests[0], Request { context: vec![1, 97], continuation: vec![32, 98] });
    // A context of white space alone counts as empty.
    assert_eq!(requests[2], Request { context: vec![2], continuation: vec![32, 31, 32, 98, 99] });
    // Texts that begin with BOS get no second one.
    let requests = task.requests(&bytes, Prefix { bos: Some(97), empty: 32 }, 9).unwrap();
    assert_eq!(requests[0], Request { context: vec![97], continuation: vec![32, 98] });
    assert_eq!(requests[2], Request { context: vec![32], continuation: vec![31, 32, 98, 99] });
}

#[test]
fn limits_directories_and_scores_that_do_not_fit() {
    let (dir, path) = write("lambada_openai", "{\"text\": \"a b\"}\nnot read\n");
    let task = Task::open(&path, Some(1)).unwrap();
    assert_eq!(task.name(), "lambada_openai");
    assert_eq!(files(dir.path()).unwrap(), std::slice::from_ref(&path));
    assert_eq!(files(&path).unwrap(), [path]);
    let scored = Scored { loglik: -1.0, greedy: true };
    let report = task.report(&[scored]).unwrap();
    assert_eq!((report.acc, report.acc_stderr, report.n), (1.0, None, 1));
    assert_eq!(report.perplexity, Some(1f64.exp()));
    assert!(task.report(&[scored, scored]).is_err());
    assert!(task.report(&[Scored { loglik: f64::NAN, ..scored }]).is_err());
}
