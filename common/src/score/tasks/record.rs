//! The eight tasks: from a record with the field names of its Hugging Face data set to contexts and continuations
//! (templates of lm-evaluation-harness, `lm_eval/tasks/*/*.yaml`, fewshot 0, delimiter " ").

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Piqa,
    Hellaswag,
    Winogrande,
    ArcEasy,
    ArcChallenge,
    Boolq,
    Openbookqa,
    LambadaOpenai,
}

/// One record.
#[derive(Debug)]
pub struct Question {
    pub line: usize,
    pub pairs: Vec<(String, String)>,
    /// Per choice, its length without the delimiter in Unicode code points.
    pub characters: Vec<usize>,
    /// Index of the right choice.
    pub gold: usize,
}

/// What is wrong with a record.
pub struct Wrong {
    line: usize,
    found: String,
    expected: &'static str,
}

impl Wrong {
    pub fn at(self, path: &Path) -> Error {
        Error::input(path, format!("line {}: {}", self.line, self.found), self.expected, "correct or drop the record")
    }
}

impl Kind {
    pub const NAMES: [(&'static str, Kind); 8] = [
        ("piqa", Kind::Piqa),
        ("hellaswag", Kind::Hellaswag),
        ("winogrande", Kind::Winogrande),
        ("arc_easy", Kind::ArcEasy),
        ("arc_challenge", Kind::ArcChallenge),
        ("boolq", Kind::Boolq),
        ("openbookqa", Kind::Openbookqa),
        ("lambada_openai", Kind::LambadaOpenai),
    ];

    pub fn of(stem: &str) -> Option<Kind> {
        Kind::NAMES.iter().find(|(name, _)| *name == stem).map(|&(_, kind)| kind)
    }

    pub fn name(self) -> &'static str {
        Kind::NAMES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    pub fn has_acc_norm(self) -> bool {
        !matches!(self, Kind::Winogrande | Kind::Boolq | Kind::LambadaOpenai)
    }

    pub fn question(self, line: &[u8], number: usize) -> Result<Question, Wrong> {
        let fields = match serde_json::from_slice(line) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => return Err(Wrong { line: number, found: "not an object".to_string(), expected: "a JSON object" }),
            Err(e) => return Err(Wrong { line: number, found: format!("not JSON ({e})"), expected: "a JSON object" }),
        };
        let record = Record { line: number, fields: &fields };
        match self {
            Kind::Piqa => record.piqa(),
            Kind::Hellaswag => record.hellaswag(),
            Kind::Winogrande => record.winogrande(),
            Kind::ArcEasy | Kind::ArcChallenge => record.arc(),
            Kind::Boolq => record.boolq(),
            Kind::Openbookqa => record.openbookqa(),
            Kind::LambadaOpenai => record.lambada(),
        }
    }
}

struct Record<'a> {
    line: usize,
    fields: &'a Map<String, Value>,
}

impl Record<'_> {
    fn piqa(&self) -> Result<Question, Wrong> {
        let context = format!("Question: {}\nAnswer:", self.text("goal")?);
        self.choices(context, &[self.text("sol1")?, self.text("sol2")?], self.index("label", 2)?)
    }

    fn hellaswag(&self) -> Result<Question, Wrong> {
        let (activity, a, b) = (self.text("activity_label")?, self.text("ctx_a")?, self.text("ctx_b")?);
        let context = without_brackets(&format!("{activity}: {a} {}", capitalized(b)));
        let endings: Vec<String> = self.texts(self.fields, "endings")?.into_iter().map(without_brackets).collect();
        let endings: Vec<&str> = endings.iter().map(String::as_str).collect();
        self.choices(context, &endings, self.index("label", endings.len())?)
    }

    /// The options complete the context, the continuation is the same for both.
    fn winogrande(&self) -> Result<Question, Wrong> {
        let sentence = self.text("sentence")?;
        let Some((before, after)) = sentence.split_once('_') else {
            return Err(self.wrong("sentence", "without \"_\"", "a blank \"_\" to fill"));
        };
        let continuation = format!(" {}", after.trim_matches(python_space));
        let pairs = ["option1", "option2"]
            .map(|option| Ok((format!("{before}{}", self.text(option)?), continuation.clone())))
            .into_iter()
            .collect::<Result<Vec<_>, Wrong>>()?;
        let gold = match self.word("answer")?.as_str() {
            "1" => 0,
            "2" => 1,
            other => return Err(self.wrong("answer", &format!("\"{other}\""), "\"1\" or \"2\"")),
        };
        let characters = pairs.iter().map(|(context, _)| context.chars().count()).collect();
        Ok(Question { line: self.line, pairs, characters, gold })
    }

    fn arc(&self) -> Result<Question, Wrong> {
        let context = format!("Question: {}\nAnswer:", self.text("question")?);
        self.labelled(context, &self.word("answerKey")?)
    }

    fn openbookqa(&self) -> Result<Question, Wrong> {
        let context = self.text("question_stem")?.to_string();
        self.labelled(context, self.word("answerKey")?.trim_start_matches(python_space))
    }

    fn boolq(&self) -> Result<Question, Wrong> {
        let context = format!("{}\nQuestion: {}?\nAnswer:", self.text("passage")?, self.text("question")?);
        let gold = match (self.fields.get("label"), self.fields.get("answer")) {
            (Some(Value::Bool(yes)), _) | (None, Some(Value::Bool(yes))) => usize::from(*yes),
            (None, Some(_)) => return Err(self.wrong("answer", "not a boolean", "true or false")),
            _ => self.index("label", 2)?,
        };
        self.choices(context, &["no", "yes"], gold)
    }

    /// The context is all words but the last, where only the space U+0020 parts words.
    fn lambada(&self) -> Result<Question, Wrong> {
        let text = self.text("text")?;
        let (context, word) = text.rsplit_once(' ').unwrap_or(("", text));
        let pairs = vec![(context.to_string(), format!(" {word}"))];
        Ok(Question { line: self.line, pairs, characters: vec![word.chars().count()], gold: 0 })
    }

    fn choices(&self, context: String, choices: &[&str], gold: usize) -> Result<Question, Wrong> {
        let pairs = choices.iter().map(|choice| (context.clone(), format!(" {choice}"))).collect();
        let characters = choices.iter().map(|choice| choice.chars().count()).collect();
        Ok(Question { line: self.line, pairs, characters, gold })
    }

    /// `choices` holds the texts and their labels, `key` is the label of the right one.
    fn labelled(&self, context: String, key: &str) -> Result<Question, Wrong> {
        let Some(Value::Object(choices)) = self.fields.get("choices") else {
            return Err(self.wrong("choices", "missing or not an object", "an object of \"text\" and \"label\""));
        };
        let texts = self.texts(choices, "text")?;
        let labels = Record { line: self.line, fields: choices }.words("label")?;
        let gold = labels.iter().position(|label| label == key).filter(|&gold| gold < texts.len());
        let Some(gold) = gold else {
            return Err(self.wrong("answerKey", &format!("\"{key}\""), "one of the labels"));
        };
        self.choices(context, &texts, gold)
    }

    fn text(&self, name: &str) -> Result<&str, Wrong> {
        match self.fields.get(name) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(self.wrong(name, "not a string", "a string")),
            None => Err(self.wrong(name, "missing", "a string")),
        }
    }

    fn texts<'a>(&self, fields: &'a Map<String, Value>, name: &str) -> Result<Vec<&'a str>, Wrong> {
        let Some(Value::Array(items)) = fields.get(name) else {
            return Err(self.wrong(name, "missing or not a list", "a list of strings"));
        };
        let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
        texts
            .filter(|texts| !texts.is_empty())
            .ok_or_else(|| self.wrong(name, "an empty list or not strings", "strings"))
    }

    /// A string, or a whole number as one writes it.
    fn word(&self, name: &str) -> Result<String, Wrong> {
        let value = self.fields.get(name);
        value.and_then(word).ok_or_else(|| self.wrong(name, "missing or not a string", "a string or a number"))
    }

    fn words(&self, name: &str) -> Result<Vec<String>, Wrong> {
        let items = self.fields.get(name).and_then(Value::as_array);
        let words = items.and_then(|items| items.iter().map(word).collect());
        words.ok_or_else(|| self.wrong(name, "missing or not a list of strings", "a list of strings"))
    }

    /// The index of one of `n` choices.
    fn index(&self, name: &str, n: usize) -> Result<usize, Wrong> {
        let word = self.word(name)?;
        let index = word.trim().parse().ok().filter(|&index: &usize| index < n);
        index.ok_or_else(|| self.wrong(name, &format!("\"{word}\""), "the number of a choice, from 0"))
    }

    fn wrong(&self, field: &str, found: &str, expected: &'static str) -> Wrong {
        Wrong { line: self.line, found: format!("field \"{field}\": {found}"), expected }
    }
}

fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => number.is_i64().then(|| number.to_string()),
        _ => None,
    }
}

/// What Python's `str.isspace` says, by which the harness strips: Unicode white space and four control characters.
pub fn python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str.capitalize`: the first character in upper case, all others in lower case. (Its title case of the
/// first one is another character for a few ligatures and digraphs, which English text does not begin with.)
fn capitalized(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    // Lower case of the whole text, since a final sigma depends on what is before it.
    let lower = text.to_lowercase();
    let skipped: usize = first.to_lowercase().map(char::len_utf8).sum();
    first.to_uppercase().chain(lower[skipped..].chars()).collect()
}

/// HellaSwag's clean-up of WikiHow texts (`preprocess` of the harness): `" [title]"` ends a sentence, what else is in
/// brackets goes, double spaces become one.
fn without_brackets(text: &str) -> String {
    let text = text.trim_matches(python_space).replace(" [title]", ". ");
    let (mut kept, mut rest) = (String::with_capacity(text.len()), text.as_str());
    while let Some(open) = rest.find('[') {
        kept.push_str(&rest[..open]);
        rest = &rest[open..];
        // A bracket is closed in its own line, else it stays.
        match rest.find([']', '\n']) {
            Some(end) if rest[end..].starts_with(']') => rest = &rest[end + 1..],
            _ => {
                kept.push('[');
                rest = &rest[1..];
            }
        }
    }
    kept.push_str(rest);
    kept.replace("  ", " ")
}
