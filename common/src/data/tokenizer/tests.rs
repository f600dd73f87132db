//! Ids against other implementations: llama.cpp's expected ids, Mistral's own tokenizer.json. Data from shared/.

use std::io::Write;

use super::*;
use crate::format::gguf::Gguf;

fn shared(test: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared");
    let root = std::env::var_os("LRQAT_SHARED").map_or(PathBuf::from(beside), PathBuf::from);
    let data = root.join("data");
    if !data.is_dir() {
        // Not eprintln!, which the harness shows of failed tests only.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no shared/ data");
        return None;
    }
    Some(data)
}

fn from_gguf(path: &Path) -> Tokenizer {
    let files = hf_tokenizer_files(&Gguf::open(path).unwrap()).unwrap();
    Tokenizer::from_files(path, &files).unwrap()
}

/// llama.cpp's test texts and the ids it expects for them.
fn cases(vocab: &Path) -> Vec<(String, Vec<u32>)> {
    let read = |ext: &str| std::fs::read_to_string(format!("{}.{ext}", vocab.display())).unwrap();
    let (texts, ids) = (read("inp"), read("out"));
    let texts = texts.split_terminator("\n__ggml_vocab_test__\n");
    let ids = ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect());
    let cases: Vec<_> = texts.map(str::to_string).zip(ids).collect();
    assert!(cases.len() > 40);
    cases
}

#[test]
fn gguf_tokenizers_give_the_ids_of_llama_cpp() {
    let Some(data) = shared("gguf_tokenizers_give_the_ids_of_llama_cpp") else { return };
    for name in ["ggml-vocab-gpt-2.gguf", "ggml-vocab-llama-spm.gguf"] {
        let vocab = data.join("tokenizers/llamacpp_vocab").join(name);
        let tokenizer = from_gguf(&vocab);
        for (text, ids) in cases(&vocab) {
            assert_eq!(tokenizer.encode(&text, false).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{name}");
        }
    }
}

/// The same vocabulary as a SentencePiece model.
#[test]
fn llama_2_as_sentencepiece_gives_the_ids_of_llama_cpp() {
    let Some(data) = shared("llama_2_as_sentencepiece_gives_the_ids_of_llama_cpp") else { return };
    let tokenizer = Tokenizer::from_dir(&data.join("tokenizers/llama2")).unwrap();
    for (text, ids) in cases(&data.join("tokenizers/llamacpp_vocab/ggml-vocab-llama-spm.gguf")) {
        assert_eq!(tokenizer.encode(&text, false).unwrap(), ids, "{text:?}");
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos()), (Some(1), Some(2), true));
    assert_eq!(tokenizer.vocab_size(), 32000);
    assert_eq!(tokenizer.encode("Hello", true).unwrap(), [1, 15043]);
}

/// Mistral publishes both forms: what is made of the SentencePiece model is the tokenizer.json, merges included.
#[test]
fn mistral_as_sentencepiece_becomes_its_tokenizer_json() {
    let Some(data) = shared("mistral_as_sentencepiece_becomes_its_tokenizer_json") else { return };
    let dir = data.join("tokenizers/mistral");
    let model = std::fs::read(dir.join("tokenizer.model.v1")).unwrap();
    let made = sentencepiece::tokenizer_json(&dir, &model, &Value::Null).unwrap();
    let published: Value = serde_json::from_slice(&std::fs::read(dir.join("tokenizer.json")).unwrap()).unwrap();
    for part in ["added_tokens", "normalizer", "pre_tokenizer", "decoder"] {
        assert_eq!(made[part], published[part], "{part}");
    }
    assert_eq!(made["post_processor"]["single"], published["post_processor"]["single"]);
    assert!(made["model"]["vocab"] == published["model"]["vocab"], "vocabularies differ");
    assert!(made["model"]["merges"] == published["model"]["merges"], "merges differ");
}

#[test]
fn long_texts_give_the_ids_of_the_whole_text() {
    let Some(data) = shared("long_texts_give_the_ids_of_the_whole_text") else { return };
    let mut text = std::fs::read_to_string(data.join("wikitext2/test.txt")).unwrap();
    for (text_of, _) in cases(&data.join("tokenizers/llamacpp_vocab/ggml-vocab-gpt-2.gguf")) {
        text.push_str(&text_of);
    }
    text.push_str(" </s> the</s>end <s> of <|endoftext|> it");
    let vocabs = data.join("tokenizers/llamacpp_vocab");
    let mut tokenizers =
        vec![from_gguf(&vocabs.join("ggml-vocab-gpt-2.gguf")), from_gguf(&vocabs.join("ggml-vocab-llama-spm.gguf"))];
    let mistral = std::fs::read(data.join("tokenizers/mistral/tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&mistral).unwrap();
    json["normalizer"]["normalizers"].as_array_mut().unwrap().remove(0);
    tokenizers.push(Tokenizer::new("no space before".as_ref(), &json, None, None).unwrap());
    json["normalizer"] = Value::Null;
    for scheme in ["first", "always", "never"] {
        json["pre_tokenizer"] =
            serde_json::json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        tokenizers.push(Tokenizer::new(scheme.as_ref(), &json, None, None).unwrap());
    }
    for mut tokenizer in tokenizers {
        let whole = tokenizer.encode_piece(&text, true).unwrap();
        for bytes in [1, 5000] {
            tokenizer.cut = Some(tokenizer.cut.take().unwrap().with_pieces_of(bytes));
            assert!(tokenizer.encode(&text, true).unwrap() == whole, "{} {bytes}", tokenizer.origin.display());
        }
    }
}

#[test]
fn the_digest_is_that_of_the_content() {
    let Some(data) = shared("the_digest_is_that_of_the_content") else { return };
    let dir = data.join("tokenizers/mistral");
    let published = Tokenizer::from_dir(&dir).unwrap();
    let json: Value = serde_json::from_slice(&std::fs::read(dir.join("tokenizer.json")).unwrap()).unwrap();
    let mut compact = json.clone();
    compact["padding"] = serde_json::json!({"strategy": {"Fixed": 8}});
    assert_eq!(tokenizer_json::digest(&compact), published.digest());
    compact["model"]["vocab"]["<s>"] = serde_json::json!(7);
    assert_ne!(tokenizer_json::digest(&compact), published.digest());
}

#[test]
fn directories_and_files_without_a_usable_tokenizer_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |part: &str| {
        let e = Tokenizer::from_dir(dir.path()).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains(part) && !e.contains('\n'), "{e}");
    };
    refused("no tokenizer, expected tokenizer.json or tokenizer.model");
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    write("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0fhello");
    refused("not a SentencePiece model");
    // Two pieces, no trainer: the default algorithm is unigram.
    write("tokenizer.model", b"\x0a\x03\x0a\x01a\x0a\x03\x0a\x01b");
    refused("a unigram SentencePiece model");
    write("tokenizer.model", b"\x0a\x03\x0a\x01a\x0a\x03\x0a\x01a\x12\x02\x18\x02\x1a\x02\x20\x00");
    refused("piece \"a\" twice");
    write("tokenizer.json", b"{");
    refused("tokenizer.json: not JSON");
    write("tokenizer.json", b"{\"model\": {\"type\": \"BPE\"}}");
    refused("an unusable tokenizer");
}
