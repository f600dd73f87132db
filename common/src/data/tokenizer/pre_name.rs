//! Which pre-tokenizer a tokenizer.json has, under the name that a GGUF file gives it.
//!
//! llama.cpp's converter knows a pre-tokenizer by a hash of the ids that it gives for one text, so it knows only
//! vocabularies that it has seen. Here what counts is how it splits: a tokenizer.json has the name of the pre-tokenizer
//! whose splits are the same for every text of up to three characters, one of each class that some pattern tells from
//! another, and for the longer texts below. So it does not matter how it is written.

use serde_json::{Value, json};
use tokenizers::{
    NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    PreTokenizerWrapper,
};

use super::byte_bpe;
use super::spm::SPACE;

/// One character of every class that the known patterns, or a normalizer, tell from the others.
const CLASSES: [&str; 22] = [
    "a", "s", "T", "É", "ǅ", "中", "あ", "가", "7", "²", " ", "\n", "\r", "\t", "\u{a0}", "'", ".", "/", "$", "`",
    "\u{301}", "🚀",
];

/// Longer texts: digits, contractions, blanks, line ends, mixed scripts, punctuation.
const TEXTS: [&str; 16] = [
    "1 12 123 1234 12345 123456 1234567 12345678 x1234y 1,234.5678 ٠١٢٣٤ ½³ Ⅷ",
    "I've you're he'll she'd it's don't I'm 'tis ''s a'sb 've",
    "a'sb a'tb a'reb a'veb a'mb a'llb a'db a'xb 'sb 'tb 'reb 'veb 'mb 'llb 'db a's1 a't1 a're1 a've1 a'm1 a'll1 a'd1",
    "A'SB A'TB A'REB A'VEB A'MB A'LLB A'DB 'SB 'TB 'REB 'VEB 'MB 'LLB 'DB a'Ts a'lLs a'Rex",
    "I'VE YOU'RE HE'LL SHE'D IT'S DON'T I'M We'Ll we'rE",
    "a  b   c    d     e \t f\t\tg \t\n h  ",
    "one\ntwo\n\nthree\n\n\nfour\r\nfive\r\n\r\nsix \n seven\n eight \n\n  nine\n",
    "   \n   \n\n \t\n  end   ",
    "\n\n\n",
    "     ",
    "camelCase HTMLParser XMLHttpRequest iPhone15Pro ÉCOLEécole ǅungla ΑΒΓαβγ",
    "fn main() { let x = a[1] + b->c; /* !== */ } // http://a.b/c?d=e&f=#g\n/\n//\r\n...\n!!!\n\n",
    "我想在apple工作1314151天～ ひらがなカタカナ漢字 한국어 텍스트 ！？。、「」",
    "e\u{301}a\u{308}o a\u{301}\u{302}b \u{301}c कि न्दी ภาษาไทย שָׁלוֹם ﬁ ﬀ Å Ω ①",
    "🚀 (normal) 😶\u{200d}🌫\u{fe0f} (joined) ✅🦙🦙 a🚀b 👩\u{1f3fd}\u{200d}💻",
    "''''''```````\"\"\"\"......!!!!!!?????? ------======= $$ ++ <=> ^~| «a» “b” …\u{3000}x\u{2003}y\u{85}z",
];

/// What a text becomes before the model of a tokenizer.json sees it.
struct Splitter {
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
}

impl Splitter {
    fn new(json: &Value) -> Option<Splitter> {
        let present = |key: &str| Some(json[key].clone()).filter(|v| !v.is_null());
        let normalizer = present("normalizer").map(serde_json::from_value).transpose().ok()?;
        let pre_tokenizer = present("pre_tokenizer").map(serde_json::from_value).transpose().ok()?;
        Some(Splitter { normalizer, pre_tokenizer })
    }

    fn split(&self, text: &str) -> Option<Vec<String>> {
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = &self.normalizer {
            normalizer.normalize(&mut normalized).ok()?;
        }
        let mut pieces = PreTokenizedString::from(normalized);
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut pieces).ok()?;
        }
        let splits = pieces.get_splits(OffsetReferential::Normalized, OffsetType::None);
        Some(splits.into_iter().map(|split| split.0.to_string()).collect())
    }
}

fn probes() -> impl Iterator<Item = String> {
    let ends = || [""].into_iter().chain(CLASSES);
    let short = CLASSES.iter().flat_map(move |a| ends().flat_map(move |b| ends().map(move |c| [*a, b, c].concat())));
    short.chain(TEXTS.map(String::from))
}

/// The names of the known pre-tokenizers that split as this one does.
pub(super) fn byte_level_names(json: &Value) -> Vec<&'static str> {
    let Some(given) = Splitter::new(json) else { return Vec::new() };
    let same = |name: &&&str| {
        let known = byte_bpe::pre(name).and_then(|pre| Splitter::new(&json!({"pre_tokenizer": pre.pre_tokenizer})));
        known.is_some_and(|known| {
            probes().all(|text| matches!((given.split(&text), known.split(&text)), (Some(a), Some(b)) if a == b))
        })
    };
    byte_bpe::PRE_NAMES.iter().filter(same).copied().collect()
}

/// Whether a SentencePiece tokenizer puts a space before each text; `None` if it does more to a text than that and
/// writing spaces as "▁", or splits it. Texts that begin with a space are left out: `Metaspace` puts none before them.
pub(super) fn space_prefix(json: &Value) -> Option<bool> {
    let given = Splitter::new(json)?;
    let prefix = match given.split("a")?.as_slice() {
        [text] if text == "a" => "",
        [text] if *text == [SPACE, "a"].concat() => SPACE,
        _ => return None,
    };
    let as_it_is = |text: String| match given.split(&text).as_deref() {
        Some([piece]) => piece.strip_prefix(prefix) == Some(text.replace(' ', SPACE).as_str()),
        _ => false,
    };
    probes().filter(|text| !text.starts_with(' ')).all(as_it_is).then_some(!prefix.is_empty())
}

#[cfg(test)]
#[path = "pre_name_tests.rs"]
mod tests;
