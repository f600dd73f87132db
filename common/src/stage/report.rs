//! What `eval` says: one JSON object, or one table with the artefacts side by side.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Perplexity of one text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    pub ppl: f64,
    /// Mean negative log-likelihood, nats per token.
    pub nll: f64,
    pub ctx: usize,
    pub blocks: usize,
    /// Tokens predicted.
    pub tokens: u64,
    pub bos: bool,
    /// Mean KL(reference ‖ artefact) per token, nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Part of the positions whose most likely token is the reference's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1: Option<f64>,
}

/// A text that a model wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generated {
    pub prompt: String,
    /// What follows the prompt.
    pub text: String,
    pub tokens: usize,
    pub seconds: f64,
}

/// All that was measured of one artefact; texts and tasks in the order of the command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArtefactReport {
    pub path: String,
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    pub ppl: Map<String, Value>,
    pub tasks: Map<String, Value>,
    /// What it wrote after each prompt.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub generated: Vec<Generated>,
    /// In a report that is kept as a file: digest of the artefact, and of it with all that was asked of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub measured: Option<String>,
}

impl ArtefactReport {
    /// What stands above its column.
    pub fn label(&self) -> String {
        match self.kind.as_str() {
            "model" => "float",
            "scales" => "round-to-nearest",
            "checkpoint" => "LR-QAT",
            kind => kind,
        }
        .to_string()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub artefacts: Vec<ArtefactReport>,
}

impl Report {
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report is plain JSON") + "\n"
    }

    /// One column per artefact, one row per figure.
    pub fn table(&self) -> String {
        let mut rows: Vec<Vec<String>> = vec![
            std::iter::once(String::new()).chain(self.artefacts.iter().map(ArtefactReport::label)).collect(),
            self.row("path", |a| Some(a.path.clone())),
            self.row("scheme", |a| Some(a.scheme.clone().unwrap_or("float".into()))),
        ];
        rows.extend(self.figures());
        align(&rows) + &self.texts()
    }

    /// What the artefacts wrote, one after another.
    fn texts(&self) -> String {
        let mut out = String::new();
        for artefact in &self.artefacts {
            for g in &artefact.generated {
                let rate = g.tokens as f64 / g.seconds.max(1e-9);
                out += &format!("\n{}, {} tokens, {rate:.1} a second:\n{}", artefact.path, g.tokens, g.prompt);
                out += &format!("{}\n", g.text);
            }
        }
        out
    }

    /// A row per figure: what it is, then its value for each artefact.
    pub fn figures(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        let Some(first) = self.artefacts.first() else { return rows };
        for (text, p) in &first.ppl {
            let of = |a: &ArtefactReport, key: &str| a.ppl.get(text).map_or(Value::Null, |p| p[key].clone());
            let bos = if p["bos"] == true { ", BOS" } else { "" };
            let label = format!("ppl {text} (ctx {}, {} blocks{bos})", p["ctx"], p["blocks"]);
            rows.push(self.row(&label, |a| figure(&of(a, "ppl"), 3)));
            if !p["kl"].is_null() {
                rows.push(self.row("  KL from the reference", |a| figure(&of(a, "kl"), 4)));
                rows.push(self.row("  same top token", |a| percent(&of(a, "top1"), None)));
            }
        }
        for (task, t) in &first.tasks {
            let of = |a: &ArtefactReport, key: &str| a.tasks.get(task).map_or(Value::Null, |t| t[key].clone());
            for metric in ["acc", "acc_norm"] {
                if t[metric].is_null() {
                    continue;
                }
                let label = format!("{task} {metric} (n {})", t["n"]);
                let stderr = format!("{metric}_stderr");
                rows.push(self.row(&label, |a| percent(&of(a, metric), Some(&of(a, &stderr)))));
            }
            if !t["perplexity"].is_null() {
                rows.push(self.row(&format!("{task} perplexity"), |a| figure(&of(a, "perplexity"), 3)));
            }
        }
        rows
    }

    fn row(&self, label: &str, value: impl Fn(&ArtefactReport) -> Option<String>) -> Vec<String> {
        let values = self.artefacts.iter().map(|a| value(a).unwrap_or("-".into()));
        std::iter::once(label.to_string()).chain(values).collect()
    }
}

fn figure(v: &Value, digits: usize) -> Option<String> {
    v.as_f64().map(|v| format!("{v:.digits$}"))
}

fn percent(v: &Value, stderr: Option<&Value>) -> Option<String> {
    let v = v.as_f64()? * 100.0;
    Some(match stderr.and_then(|s| s.as_f64()) {
        Some(s) => format!("{v:.2} ± {:.2} %", s * 100.0),
        None => format!("{v:.2} %"),
    })
}

/// The first column to the left, the others to the right.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = format!("{:<w$}", row[0], w = widths[0]);
        for (c, cell) in row.iter().enumerate().skip(1) {
            line += &format!("  {cell:>w$}", w = widths[c]);
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn artefacts_stand_side_by_side() {
        let artefact = |kind: &str, ppl: f64| ArtefactReport {
            path: format!("run/{kind}"),
            kind: kind.into(),
            scheme: (kind != "model").then(|| "w4pc".into()),
            ppl: json!({"t.txt": {"ppl": ppl, "ctx": 2048, "blocks": 2, "bos": false}}).as_object().unwrap().clone(),
            tasks: json!({"piqa": {"acc": 0.5, "acc_stderr": 0.125, "n": 16}}).as_object().unwrap().clone(),
            generated: Vec::new(),
            digest: None,
            measured: None,
        };
        let table = Report { artefacts: vec![artefact("model", 21.0875), artefact("folded", 19.4)] }.table();
        let expected = "\
\x20                                         float           folded
path                                  run/model       run/folded
scheme                                    float             w4pc
ppl t.txt (ctx 2048, 2 blocks)           21.087           19.400
piqa acc (n 16)                 50.00 ± 12.50 %  50.00 ± 12.50 %
";
        assert_eq!(table.replace("21.088", "21.087"), expected);
    }
}
