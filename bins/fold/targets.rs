//! `fold --list-targets`: scheme × format × engine.

use std::path::Path;

use common::cli::{self, flags::Common};
use common::error::Result;
use common::model::Config;
use common::model::names;
use common::stage::float::read_config;
use common::stage::folded::targets::{Engine, Row, table, usual_linear, usual_schemes};
use common::stage::record::{Kind, Stage};
use common::stage::scales::scheme_of;

/// For the stage at `path`, or for the usual schemes.
pub fn list(common: &Common, path: Option<&Path>) -> Result<()> {
    let rows = match path {
        None => table(&usual_schemes(), usual_linear),
        Some(path) => {
            let stage = Stage::open(path, &[Kind::Checkpoint, Kind::Wrapped])?;
            let scheme = scheme_of(&stage)?;
            let wrapped = match stage.record.kind {
                Kind::Checkpoint => stage.open_input("wrapped", Kind::Wrapped)?,
                _ => stage,
            };
            let config = Config::parse(&wrapped.dir.join("config.json"), &read_config(&wrapped.dir)?)?;
            table(&[scheme], |_| names::linears(&config))
        }
    };
    let text = if common.json { json(&rows) } else { text(&rows) };
    cli::print(&text)
}

fn json(rows: &[Row]) -> String {
    let engines = Engine::ALL.map(|e| (e.name().to_string(), serde_json::json!(e.release())));
    let engines: serde_json::Map<_, _> = engines.into_iter().collect();
    format!("{:#}\n", serde_json::json!({"engines": engines, "targets": rows}))
}

/// A line per scheme and format; what is to be known is numbered and told below.
fn text(rows: &[Row]) -> String {
    let mut notes: Vec<String> = Vec::new();
    let mut note = |text: &str| {
        let at = notes.iter().position(|n| n == text).unwrap_or_else(|| {
            notes.push(text.to_string());
            notes.len() - 1
        });
        format!("[{}]", at + 1)
    };
    let mut out = format!("{:<9}{:<20}{:<12}", "scheme", "format", "holds it");
    out.extend(Engine::ALL.map(|engine| format!("{:<14}", engine.name())));
    out = out.trim_end().to_string() + "\n";
    for row in rows {
        let holds = match &row.refused {
            None => "yes".to_string(),
            Some(why) => format!("no {}", note(why)),
        };
        let mut line = format!("{:<9}{:<20}{holds:<12}", row.scheme, row.format);
        for engine in Engine::ALL {
            let cell = match row.engines.iter().find(|cell| cell.engine == engine.name()) {
                None => "-".to_string(),
                Some(cell) => {
                    let word = if cell.loads { "loads" } else { "no" };
                    cell.note.map_or(word.to_string(), |text| format!("{word} {}", note(text)))
                }
            };
            line += &format!("{cell:<14}");
        }
        out += line.trim_end();
        out.push('\n');
    }
    out.push('\n');
    for engine in Engine::ALL {
        out += &format!("{}: {}\n", engine.name(), engine.release());
    }
    for (i, text) in notes.iter().enumerate() {
        out += &format!("[{}] {text}\n", i + 1);
    }
    out
}
